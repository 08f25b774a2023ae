"""Quantized models: written, loaded, applied, saved, and converted back to float models."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import deberta_jax
from deberta_jax import DebertaConfig, InputError, Quantization, from_pretrained, quantize_model, save_pretrained
from deberta_jax.cli.main import main
from deberta_jax.models import abstract_params, prepare_for_inference
from deberta_jax.ops.quantization import dense_values, is_compressed
from deberta_jax.weights import convert, inspect
from deberta_jax.weights.quantization import quantized_shapes, scheme_of_bits
from tests.made import refused, saved_model, write_table
from tests.weights.files import same

HEAD = "sequence-classification"
SMALL = {
    "vocab_size": 50,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": 32,
    "relative_attention": True,
    "pos_att_type": ("c2p", "p2c"),
    "position_biased_input": False,
}
CONFIGS = {
    "v1": DebertaConfig(model_type="deberta", **SMALL),
    "v2": DebertaConfig(conv_kernel_size=3, embedding_size=64, **SMALL),
    "v3": DebertaConfig(share_att_key=True, position_buckets=8, norm_rel_ebd="layer_norm", **SMALL),
}
IDS = jnp.arange(24).reshape(2, 12)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Directories of small models by generation."""
    home = tmp_path_factory.mktemp("models")
    return {
        name: saved_model(home / name, deberta_jax.DebertaForSequenceClassification(config))
        for name, config in CONFIGS.items()
    }


def logits(model, params):
    return np.asarray(jax.jit(lambda params: model(params, IDS).logits)(params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("v1", {"scheme": "nf4", "double": True}),
        ("v2", {"scheme": "int4", "keep": ["pooler"]}),
        ("v3", {"scheme": "nf4", "embeddings": True}),
        ("v3", {"scheme": "int8"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_directory_is_loaded_saved_and_made_float_without_a_changed_bit(models, name, options, tmp_path):
    source, quantized, again, plain = models[name], tmp_path / "q", tmp_path / "again", tmp_path / "plain"
    result = quantize_model(source, quantized, Quantization(**options))
    weights = quantized / "model.safetensors"
    assert result.after < weights.stat().st_size < result.before * 0.4
    model, params = from_pretrained(quantized, HEAD)
    assert sum(map(is_compressed, jax.tree.leaves(params, is_leaf=is_compressed))) > 5
    # Quantizing while loading gives the same arrays.
    assert same(params, from_pretrained(source, HEAD, quantization=Quantization(**options))[1])

    save_pretrained(again, model, params)
    assert same(params, from_pretrained(again, HEAD)[1])
    if options != {"scheme": "nf4", "double": True}:  # v1: blocks of 256 scales span query, key and value of this width
        assert (again / "model.safetensors").read_bytes() == weights.read_bytes()

    convert(quantized, plain, to="hf")
    floats = safetensors.numpy.load_file(plain / "model.safetensors")
    assert {array.dtype for array in floats.values()} == {np.dtype(np.float32)}
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    dense = jax.tree.map(dense_values, params, is_leaf=is_compressed)
    assert same(dense, from_pretrained(plain, HEAD)[1])
    assert same(dense, from_pretrained(quantized, HEAD, quantization="none")[1])
    np.testing.assert_allclose(logits(model, params), logits(model, dense), atol=1e-6)


@pytest.mark.slow
def test_quantized_kernels_in_every_form_of_a_model(models):
    """Prepared, unrolled and in bfloat16; and close to the model in float32."""
    source = models["v3"]
    model, params = from_pretrained(source, HEAD, quantization="int8")
    dense = jax.tree.map(dense_values, params, is_leaf=is_compressed)
    expected = logits(model, dense)
    np.testing.assert_allclose(logits(*prepare_for_inference(model, params)), expected, atol=1e-6)
    np.testing.assert_allclose(logits(model.clone(scan=False), params), expected, atol=1e-6)
    half = model.clone(dtype=jnp.bfloat16)
    np.testing.assert_allclose(logits(half, params), logits(half, dense), atol=1e-6)
    original = logits(*from_pretrained(source, HEAD))
    assert 0 < np.abs(expected - original).max() < 0.02 * np.abs(original).max()


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_model_never_has_a_dequantized_stack(models, scheme):
    model, params = from_pretrained(models["v3"], HEAD, quantization=scheme)
    compiled = jax.jit(lambda params: model(params, IDS).logits).lower(params).compile().as_text()
    shapes = {tuple(map(int, found.split(","))) for found in re.findall(r"(?:f32|bf16)\[([\d,]+)\]", compiled)}
    stacks = {shape for shape in shapes if shape[0] == 3 and np.prod(shape) >= 3 * 128 * 128}
    assert not stacks, "[layers, D, F] in float"
    assert any(np.prod(shape) == 128 * 192 for shape in shapes), "one layer"


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_no_program_for_an_accelerator_has_a_dequantized_stack(models, platform):
    """Not compiled, because there is none here: no operation of the lowered program makes [layers, D, F] in float."""
    model, params = from_pretrained(models["v3"], HEAD, quantization="nf4", attention="xla")
    traced = jax.jit(lambda params: model(params, IDS).logits).trace(params)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    shapes = {tuple(map(int, found.split("x"))) for found in re.findall(r"tensor<([\dx]+)x(?:f32|bf16)>", program)}
    assert not {shape for shape in shapes if shape[0] == 3 and np.prod(shape) >= 3 * 128 * 128}
    assert (128, 192) in shapes, "one layer"


def test_masked_lm_reads_a_quantized_table(tmp_path):
    config = CONFIGS["v3"].replace(legacy=False)
    source = saved_model(tmp_path / "m", deberta_jax.DebertaForMaskedLM(config))
    model, params = from_pretrained(source, "masked-lm", quantization=Quantization(scheme="int8", embeddings=True))
    dense = jax.tree.map(dense_values, params, is_leaf=is_compressed)
    np.testing.assert_allclose(logits(model, params), logits(model, dense), atol=1e-5)
    with pytest.raises(InputError, match="the word embeddings are quantized"):
        deberta_jax.resize_vocabulary(config, params, 60, jax.random.key(0))


def test_memory_of_v3_large():
    """In bytes of all arrays against float32, the word embeddings quantized too; then with them in float."""
    model = deberta_jax.DebertaForSequenceClassification(deberta_jax.PRESETS["deberta-v3-large"])
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    whole = size(abstract_params(model))
    ratio = lambda **options: size(quantized_shapes(model, Quantization(**options))) / whole
    assert ratio(scheme="int8", embeddings=True) < 0.30
    assert ratio(scheme="nf4", embeddings=True) < 0.18
    assert ratio(scheme="nf4", embeddings=True, double=True) < ratio(scheme="nf4", embeddings=True)
    assert 0.35 < ratio(scheme="nf4") < ratio(scheme="int8") < 0.5


def test_shapes_are_those_of_loaded_arrays(models):
    for name, options in (("v1", {"scheme": "nf4", "double": True}), ("v2", {"scheme": "int8", "embeddings": True})):
        model, params = from_pretrained(models[name], HEAD, quantization=Quantization(**options))
        shape_of = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        assert jax.tree.map(shape_of, params) == quantized_shapes(model, Quantization(**options))


def test_parameters_of_another_model_are_refused(models):
    _, params = from_pretrained(models["v3"], HEAD, quantization="int8")
    other = deberta_jax.DebertaForSequenceClassification(CONFIGS["v3"].replace(intermediate_size=256))
    with pytest.raises(InputError, match=r"encoder/layers is not one of this model"):
        other(params, IDS)


@pytest.mark.slow
def test_the_command_prints_sizes_and_accuracy_before_and_after(trained, tmp_path, capsys):
    out, data = tmp_path / "q", trained.task.home / "eval.csv"
    text = ["--text", "sentence", "--label", "kind"]
    main(
        ["quantize", str(trained.directory), str(out), "--bits", "8", "--quantize-embeddings", "--evaluate", str(data)]
    )
    *lines, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"int8: [\d,]+ of [\d,]+ values quantized; \d+\.\d MB, 0\.\d+ of float32", lines[0])
    found = json.loads(last)
    assert abs(found["before"]["accuracy"] - found["after"]["accuracy"]) <= 0.05
    main(["evaluate", "--model", str(out), "--data", str(data), "--max-length", "16", *text])
    assert json.loads(capsys.readouterr().out) == found["after"]
    answers = tmp_path / "answers.jsonl"
    main(["predict", "--model", str(out), "--input", str(data), "--output", str(answers), "--text", "sentence"])
    assert len(answers.read_text().splitlines()) > 10
    answer = deberta_jax.pipeline("text-classification", out)("ban kost rill")
    assert answer[0]["label"] in ("pos", "neg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "fp4"], "--scheme='fp4': expected one of 'int8', 'int4', 'nf4'"),
        (["--scheme", "NF4"], "did you mean 'nf4'?"),
        (["--bits", "8", "--block", "32"], "int8 has one scale for each output channel; blocks and double"),
        (["--bits", "8", "--keep", "pooler,poller"], "keep 'poller': matches no tensor"),
        (["--bits", "8", "--keep", "embeddings", "--quantize-embeddings"], "keep 'embeddings': keeps the word embeddi"),
        (["--bits", "8", "--keep", "*"], "keep ['*']: nothing is left to quantize"),
        (["--bits", "5"], "bits 5: weights are quantized to 8 or 4 bits"),
        ([], "give the scheme (int8, int4 or nf4) or the bits (8 or 4)"),
        (["--bits", "8", "--scheme", "nf4"], "bits 8: the scheme nf4 has 4"),
        (["--scheme", "nf4", "--block", "16"], "block 16: too small a block"),
        (["--scheme", "nf4", "--block", "256"], "has no whole blocks of 256 inputs"),
        (["--scheme", "int8", "--double-quant"], "int8 has one scale for each output channel"),
        (["--scheme", "int8", "--keep", "poller"], "keep 'poller': matches no tensor"),
        (["--scheme", "int8", "--keep", "layer.0"], "keep 'layer.0': matches some of the layers"),
    ],
)
def test_bad_arguments(models, arguments, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert message in refused(["quantize", models["v3"], out, *arguments], capsys)
    assert list(tmp_path.iterdir()) == []


def test_bad_models(models, tmp_path, capsys):
    quantized = tmp_path / "q"
    quantize_model(models["v3"], quantized, Quantization(scheme="nf4"))
    out = ["quantize", quantized, tmp_path / "out", "--bits", "8"]
    assert "is quantized already (nf4)" in refused(out, capsys)
    broken = shutil.copytree(models["v3"], tmp_path / "broken")
    (broken / "checksums.json").unlink()
    state = safetensors.numpy.load_file(broken / "model.safetensors")
    state["deberta.encoder.layer.1.output.dense.weight"] = np.full((128, 192), np.inf, np.float32)
    safetensors.numpy.save_file(state, broken / "model.safetensors")
    line = refused(["quantize", broken, *out[2:]], capsys)
    assert f"{broken / 'model.safetensors'}: NaN or infinity in deberta.encoder.layer.1.output.dense.weight" in line
    with pytest.raises(InputError, match="NaN or infinity"):
        from_pretrained(broken, HEAD, quantization="nf4")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    line = refused(["quantize", models["v3"], tmp_path / "other", "--bits", "8"], capsys)
    assert "not empty and not a model directory" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s, w: s.pop(f"{w}.absmax"), "absmax is missing"),
        (lambda s, w: s.update({f"{w}.quant_map": np.ones(16, np.float32)}), "quant_map has other levels"),
        (lambda s, w: s.update({w: s[w][:-1]}), "codes for a matrix"),
        (lambda s, w: s.update({f"{w}.quant_state.bitsandbytes__nf4": np.zeros(3, np.uint8)}), "no JSON object"),
        (
            lambda s, w: s.update({f"{w}.quant_state.bitsandbytes__nf4": np.frombuffer(b'{"shape": [1]}', np.uint8)}),
            "its quant_state is",
        ),
    ],
    ids=["no scales", "other levels", "too few codes", "no state", "odd state"],
)
def test_damaged_quantized_tensors_are_refused(models, change, message, tmp_path):
    directory = tmp_path / "q"
    quantize_model(models["v3"], directory, Quantization(scheme="nf4"))
    (directory / "checksums.json").unlink()
    state = safetensors.numpy.load_file(directory / "model.safetensors")
    change(state, "deberta.encoder.layer.1.output.dense.weight")
    safetensors.numpy.save_file(state, directory / "model.safetensors")
    for load in (from_pretrained, inspect):
        with pytest.raises(InputError, match=message):
            load(directory)


@pytest.mark.parametrize("through", ["the same path", "a symbolic link", "a file"])
def test_the_float_weights_are_never_replaced(models, through, tmp_path, capsys):
    source = shutil.copytree(models["v3"], tmp_path / "model")
    before = {path: path.read_bytes() for path in source.iterdir()}
    (tmp_path / "link").symlink_to(source)
    given = source / "model.safetensors" if through == "a file" else source
    target = tmp_path / "link" if through == "a symbolic link" else source
    line = refused(["quantize", given, target, "--bits", "8"], capsys)
    assert f"{target}: has the float weights, which would be lost; give another directory" in line
    assert {path: path.read_bytes() for path in source.iterdir()} == before


def test_quantizing_again_by_another_scheme_is_said(models, tmp_path, caplog):
    quantize_model(models["v3"], tmp_path / "q", Quantization(scheme="nf4", embeddings=True))
    from_pretrained(tmp_path / "q", HEAD, quantization="nf4")
    assert "quantized again" not in caplog.text
    from_pretrained(tmp_path / "q", HEAD, quantization="int8")
    assert "is quantized already (nf4) and now quantized again (int8)" in caplog.text


def test_entries_of_keep_may_be_given_with_a_comma(models, tmp_path):
    for name, keep in (("one", ["pooler,attention.self"]), ("two", ["pooler", "attention.self"])):
        main(["quantize", str(models["v3"]), str(tmp_path / name), "--bits", "8", "--keep", *keep])
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("option", ["double", "embeddings"])
def test_options_that_are_no_bool(option, unchecked):
    with pytest.raises(InputError, match=f"{option}='yes': give True or False"):
        Quantization(scheme="nf4", **{option: "yes"})


def test_bits_and_schemes():
    assert [scheme_of_bits(8, None), scheme_of_bits(4, None), scheme_of_bits(4, "int4")] == ["int8", "nf4", "int4"]
    with pytest.raises(InputError, match="give a list"):
        Quantization(scheme="int8", keep="pooler")


def test_a_table_that_is_not_of_this_task_writes_nothing(trained, tmp_path, capsys):
    data = write_table(tmp_path / "odd.csv", ("a", "b"), [("x", "y")])
    before = sorted(tmp_path.rglob("*"))
    refused(["quantize", trained.directory, tmp_path / "out", "--bits", "8", "--evaluate", data], capsys)
    assert sorted(tmp_path.rglob("*")) == before
