"""``deberta-jax export`` and ``export_onnx``: the directory that is written, and what is refused."""

import json
import sys

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.export import export_onnx, export_stablehlo
from deberta_jax.export.onnx import exporting
from deberta_jax.models import HEADS
from deberta_jax.weights.choose import heads_in
from deberta_jax.weights.opening import open_source
from tests.cases import Case, apply, draw_params
from tests.made import TINY, refused, saved_model, weighted_model


class OwnModel(deberta_jax.DebertaForSequenceClassification):
    """A head from outside the package."""


TEXTS = ["ban kost rin", "tell"]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory):
    return weighted_model(tmp_path_factory.mktemp("made") / "model")


def session(directory) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(directory / "onnx" / "model.onnx"))


@pytest.mark.slow
def test_the_command_writes_a_directory_that_computes_what_the_model_does(model_directory, tmp_path, capsys):
    target = tmp_path / "exported"
    main(["export", str(model_directory), str(target), "--to", "onnx"])
    out = capsys.readouterr().out
    assert out.startswith("sequence-classification, float32, ")
    assert out.endswith(f"wrote {target}\n")
    assert [path.name for path in (target / "onnx").iterdir()] == ["model.onnx"]
    config = json.loads((target / "config.json").read_text())
    assert config["architectures"] == ["DebertaV2ForSequenceClassification"]
    proto = onnx.load(target / "onnx" / "model.onnx")
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]

    model, params = deberta_jax.from_pretrained(model_directory, head="sequence-classification")
    encoding = deberta_jax.load_tokenizer(str(target))(TEXTS, padding=True)
    names = [value.name for value in session(target).get_inputs()]
    (found,) = session(target).run(["logits"], {name: np.int64(encoding[name]) for name in names})
    np.testing.assert_allclose(found, model(params, **encoding).logits, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_quantized_model_is_exported_with_the_values_of_its_weights(model_directory, tmp_path):
    model, params = deberta_jax.from_pretrained(model_directory, head="sequence-classification", quantization="int8")
    export_onnx((model, params), tmp_path / "out")
    batch = {"input_ids": np.arange(5, 29).reshape(2, 12), "attention_mask": np.ones((2, 12), np.int64)}
    (found,) = session(tmp_path / "out").run(None, batch)
    expected = apply(model, params, {name: array.astype(np.int32) for name, array in batch.items()}).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    plain, floats = deberta_jax.from_pretrained(model_directory, head="sequence-classification")
    assert np.abs(found - plain(floats, batch["input_ids"].astype(np.int32)).logits).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_int8_is_smaller_and_near(keep, tmp_path):
    """The encoder's products have 8 bits, and the embeddings as asked for."""
    case = Case("export-int8", "v3", "sequence-classification", {"hidden_size": 128, "intermediate_size": 512})
    model = case.model()
    model = model.clone(config=model.config.replace(vocab_size=4000))
    params, target = draw_params(model), tmp_path / "int8"
    done = export_onnx((model, params), target, dtype="int8", keep_embeddings=keep)
    floats = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    proto = onnx.load(target / "onnx" / "model.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    assert kinds["word_embeddings"] == (onnx.TensorProto.FLOAT if keep else onnx.TensorProto.INT8)
    assert sum(node.op_type == "MatMulInteger" for node in proto.graph.node) > 12
    assert done.nbytes < floats * (0.8 if keep else 0.3)
    assert 0 < done.difference < 0.1
    batch = {"input_ids": np.arange(24).reshape(2, 12), "attention_mask": np.ones((2, 12), np.int64)}
    (found,) = session(target).run(None, batch)
    expected = apply(model, params, {name: array.astype(np.int32) for name, array in batch.items()}).logits
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_a_destination_with_contents_is_left_alone(model_directory, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    line = refused(["export", model_directory, tmp_path / "there", "--to", "onnx"], capsys)
    assert "there: exists and is not empty; give a new directory" in line
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "mine.txt"]


@pytest.mark.parametrize("arguments", [["--to", "tflite"], ["--to", "onnx", "--dtype", "int3"], []])
def test_unknown_choices_exit_with_2(model_directory, tmp_path, arguments):
    """What is printed for them is the parser's; its older versions print it once for all tests of a process."""
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(model_directory), str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float16", "--keep-embeddings"], "keep_embeddings is for dtype int8"),
        (["--head", "question-answering"], "qa_outputs"),
        (["--head", "question"], "head 'question' does not exist; choose one of encoder"),
    ],
)
def test_what_does_not_fit_is_one_line(model_directory, tmp_path, capsys, arguments, message):
    assert message in refused(["export", model_directory, tmp_path / "out", "--to", "onnx", *arguments], capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("named", ["encoder", "nothing"])
def test_a_discriminator_is_exported_as_one(tmp_path, named):
    """transformers has no class for it, so config.json names the encoder's."""
    case = Case("export-rtd", "v3", "replaced-token-detection")
    model, params = case.model(), draw_params(case.model())
    deberta_jax.save_pretrained(tmp_path / "model", model, params)
    if named == "nothing":
        without_architectures(tmp_path / "model")
    main(["export", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "onnx"])
    batch = {"input_ids": np.arange(24).reshape(2, 12), "attention_mask": np.ones((2, 12), np.int64)}
    (found,) = session(tmp_path / "out").run(["logits"], batch)
    expected = apply(model, params, {name: array.astype(np.int32) for name, array in batch.items()}).logits
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def without_architectures(directory):
    (directory / "checksums.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    del config["architectures"]
    (directory / "config.json").write_text(json.dumps(config))


def test_a_head_that_neither_config_nor_weights_tell_is_asked_for(tmp_path, capsys):
    config = TINY.replace(id2label=("score",))
    model = saved_model(tmp_path / "model", deberta_jax.DebertaForSequenceClassification(config))
    without_architectures(model)
    line = refused(["export", model, tmp_path / "out", "--to", "onnx"], capsys)
    assert "its weights are those of sequence-classification and multiple-choice; name one" in line


@pytest.mark.parametrize("head", HEADS)
def test_every_head_is_known_by_its_weights(head, tmp_path):
    """Multiple choice has the tensors of a sequence classifier with one label."""
    for base in ("v1", "v3"):
        case = Case(f"export-known-{head}", base, head)
        deberta_jax.save_pretrained(tmp_path / base, case.model(), draw_params(case.model()))
        same = ("sequence-classification", "multiple-choice") if head == "multiple-choice" else (head,)
        assert heads_in(open_source(tmp_path / base).found) == (() if head == "encoder" else same)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(model_directory, tmp_path, capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    line = refused(["export", model_directory, tmp_path / "out", "--to", "onnx"], capsys)
    assert f"export to ONNX needs {package}, which is missing; pip install 'deberta_jax[onnx]'" in line
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_exported(tmp_path, monkeypatch):
    case = Case("export-refused", "v3", "sequence-classification")
    model, params = case.model(), draw_params(case.model())
    monkeypatch.setitem(HEADS, "own", deberta_jax.models.HeadSpec(model=OwnModel, parts=("pooler", "classifier")))
    modified = case.model(score_modifier=lambda scores, **indices: scores)
    for source, message in (
        ((OwnModel(case.config), params), "head 'own' cannot be exported to ONNX; those that can be"),
        (deberta_jax.prepare_for_inference(model, params), "prepared for inference; export the original"),
        ((modified, params), "score_modifier cannot be exported"),
    ):
        with pytest.raises(deberta_jax.InputError, match=message):
            export_onnx(source, tmp_path / "out")
    with pytest.raises(deberta_jax.InputError, match="head='encoder': the model has the head 'sequence-classif"):
        export_onnx((model, params), tmp_path / "out", head="encoder")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def classifier():
    case = Case("export-given", "v3", "sequence-classification")
    return case.model(), draw_params(case.model())


@pytest.mark.parametrize("export", [export_onnx, export_stablehlo])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            lambda m, p: (m, {}),
            "not those of this DebertaForSequenceClassification: classifier/bias is missing, expect",
        ),
        (lambda m, p: (m, {"deberta": p["deberta"]}), "classifier/bias is missing, expected .*, and 3 more are wrong"),
        (lambda m, p: (m, p | {"qa_outputs": p["classifier"]}), "qa_outputs/bias is .*, expected none"),
        (lambda m, p: (m, p | {"pooler": p["classifier"]}), "pooler/"),
        (lambda m, p: (m, {"params": p}), "the parameters are not those"),
        (lambda m, p: (m, {**p, "classifier": [1, 2]}), "the parameters are not those"),
        (lambda m, p: (m, None), "the parameters are None; give"),
        (lambda m, p: (p, m), "is no model of deberta_jax"),
        (lambda m, p: (m,), "give a model directory, a hub id, or .model, params."),
        (lambda m, p: (m, p, None), "give a model directory, a hub id, or .model, params."),
        (lambda m, p: [m, p], "give a model directory, a hub id, or .model, params."),
        (lambda m, p: m, "give a model directory, a hub id, or .model, params."),
        (lambda m, p: None, "cannot export None; give"),
        (lambda m, p: 3, "cannot export 3; give"),
    ],
)
def test_a_source_that_is_no_model_with_its_parameters(export, source, message, classifier, tmp_path, unchecked):
    with pytest.raises(deberta_jax.InputError, match=message):
        export(source(*classifier), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export", [export_onnx, export_stablehlo])
@pytest.mark.parametrize(("tokenizer", "message"), [(3, "tokenizer=3: give a tokenizer"), ("./none", "no such direc")])
def test_a_tokenizer_that_is_none(export, tokenizer, message, classifier, tmp_path, unchecked):
    with pytest.raises(deberta_jax.InputError, match=message):
        export(classifier, tmp_path / "out", tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_is_given_by_its_directory(model_directory, classifier, tmp_path):
    export_onnx(classifier, tmp_path / "out", tokenizer=str(model_directory))
    ids = [deberta_jax.load_tokenizer(str(path))(TEXTS).input_ids for path in (model_directory, tmp_path / "out")]
    np.testing.assert_array_equal(np.concatenate(ids[0]), np.concatenate(ids[1]))


@pytest.mark.slow
def test_a_file_that_differs_from_the_model_is_not_written(tmp_path, monkeypatch):
    """In float16 these weights are infinite; and a graph with a wrong weight is found by its outputs."""
    case = Case("export-wrong", "v3", "sequence-classification")
    model, params = case.model(), draw_params(case.model())
    large = {"kernel": params["classifier"]["kernel"] * 1e6, "bias": params["classifier"]["bias"]}
    with pytest.raises(deberta_jax.InputError, match="the exported file gives NaN or infinity where the model does"):
        export_onnx((model, params | {"classifier": large}), tmp_path / "out", dtype="float16")
    wrong = {"kernel": params["classifier"]["kernel"] * 1.001, "bias": params["classifier"]["bias"]}
    build = exporting.build
    monkeypatch.setattr(
        exporting, "build", lambda m, p, *args, **options: build(m, p | {"classifier": wrong}, *args, **options)
    )
    with pytest.raises(
        deberta_jax.InputError, match=r"the float32 file differs from the model by .*nothing is written"
    ):
        export_onnx((model, params), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
