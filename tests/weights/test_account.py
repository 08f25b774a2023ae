"""Every tensor loaded, folded or dropped for a reason; every leaf filled or initialised; the rest refused at once."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.errors import InputError
from deberta_jax.weights import convert, inspect, load
from tests.cases import to_tree
from tests.weights.files import discriminator, positions, raw_config, same, state_of, torch_zip


@pytest.mark.parametrize("base", ["v1", "v2", "v3", "xl"])
def test_loads_what_an_independent_mapping_gives(base, write):
    raw = raw_config(base, num_labels=3)
    state = state_of(base, ("pooler", "classifier"))
    model, params, report = load(write("m", state, raw), "sequence-classification")
    assert same(params, to_tree(model.config, state))
    assert report.count("loaded") == len(state)
    assert report.initialised == ()


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
def test_parameters_are_float32_whatever_the_file_stores(kind, golden, tmp_path):
    """transformers keeps a file's float16, and then computes in it."""
    (tmp_path / "pytorch_model.bin").write_bytes((golden / f"v1_{kind}_zip.bin").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(raw_config("v1", num_labels=3)))
    _, params, _ = load(tmp_path, "sequence-classification")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    stored = {"f16": np.float16, "bf16": jnp.bfloat16, "f32": np.float32}[kind]
    exact = state_of("v1", ("pooler", "classifier"))["classifier.weight"]
    assert np.array_equal(params["classifier"]["kernel"], exact.astype(stored).astype(np.float32).T)


def test_real_names_of_v3_base_convert_with_a_full_account(data_dir, tmp_path):
    """The 210 names and shapes of the released file; zeros stand for its values."""
    shapes = json.loads((data_dir / "fixtures" / "checkpoint_keys_deberta_v3_base.json").read_text())["keys"]
    source = tmp_path / "v3-base"
    source.mkdir()
    zeros = {name: np.zeros(shape, np.float16) for name, shape in shapes.items()}
    safetensors.numpy.save_file(zeros, source / "model.safetensors")
    (source / "config.json").write_text((data_dir / "configs" / "released" / "deberta-v3-base.json").read_text())
    report = convert(source, tmp_path / "out", to="hf")
    assert len(report.tensors) == 210
    assert report.count("loaded") == 210
    assert report.initialised == ()
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as out:
        assert {name: out.get_slice(name).get_shape() for name in out.keys()} == shapes  # noqa: SIM118
    found = inspect(tmp_path / "out")
    # Published: 86M of backbone; 183,831,552 without the position table and the two heads.
    assert found.generation == "v3"
    assert (found.backbone, found.embeddings) == (85_450_752, 98_380_800 + 512 * 768)
    assert found.total == 185_537_893
    assert [head for head, use in found.uses.items() if use == "ready"] == ["encoder", "replaced-token-detection"]


def test_everything_unexplained_is_listed_at_once_with_the_nearest_name(write):
    state = state_of("v3")
    state["deberta.encoder.layer.0.attention.self.querry_proj.weight"] = state.pop(
        "deberta.encoder.layer.0.attention.self.query_proj.weight"
    )
    del state["deberta.encoder.LayerNorm.bias"]
    state["deberta.encoder.layer.1.output.dense.bias"] = np.zeros(9, np.float32)
    state["surprise"] = np.zeros(2, np.float32)
    with pytest.raises(InputError) as error:
        load(write("m", state, raw_config("v3")))
    message = str(error.value)
    assert "\n" not in message
    assert "5 tensors do not add up" in message
    assert "layer.0.attention.self.query_proj.weight (nearest: deberta.encoder.layer.0.attention.self.querry" in message
    for part in ("deberta.encoder.LayerNorm.bias", "surprise", "output.dense.bias is f32 [9], expected [8]"):
        assert part in message


def test_a_file_of_more_layers_than_config_json_says_is_refused(write):
    state = state_of("v2", num_hidden_layers=3)
    with pytest.raises(InputError, match=r"not explained: .*layer\.2\.attention"):
        load(write("m", state, raw_config("v2")))


def test_a_head_that_the_file_lacks_must_be_asked_for(write, caplog):
    directory = write("m", discriminator(), raw_config("v3"))
    with pytest.raises(InputError, match=r"no head classifier, pooler \(it has: lm_predictions, mask_predictions\)"):
        load(directory, "sequence-classification")
    with caplog.at_level(logging.INFO, "deberta_jax"):
        _, params, report = load(directory, "sequence-classification", new_head=jax.random.key(0), num_labels=5)
    paths = {row.path for row in report.initialised}
    assert paths == {"pooler/dense/kernel", "pooler/dense/bias", "classifier/kernel", "classifier/bias"}
    assert params["classifier"]["kernel"].shape == (8, 5)
    assert float(np.std(params["pooler"]["dense"]["kernel"])) > 0
    assert all(any(f"initialised {path}" in line for line in caplog.messages) for path in paths)
    assert {row.fate for row in report.tensors if "predictions" in row.name} == {"dropped"}
    _, again, _ = load(directory, "sequence-classification", new_head=jax.random.key(0), num_labels=5)
    assert same(params, again)


def test_half_a_head_is_an_error_even_when_a_new_one_may_start(write):
    state = state_of("v3", ("pooler", "classifier"))
    del state["pooler.dense.bias"]
    with pytest.raises(InputError, match=r"missing: pooler\.dense\.bias"):
        load(write("m", state, raw_config("v3", num_labels=3)), "sequence-classification", new_head=jax.random.key(0))


def test_a_discriminator_does_not_fill_masks_and_names_the_file_that_does(write):
    directory = write("m", discriminator(), raw_config("v3"))
    with pytest.raises(InputError, match=r"discriminator.*pytorch_model\.generator\.bin"):
        load(directory, "masked-lm")
    model, _, report = load(directory, "masked-lm", new_head=jax.random.key(0))
    assert model.config.mask_decoder
    assert {row.path.split("/")[0] for row in report.initialised} == {"lm_predictions"}


def test_generator_beside_a_discriminator_fills_masks_with_its_own_config(write):
    generator = state_of("v3", ("lm_predictions",), num_hidden_layers=1) | positions()
    directory = write("m", discriminator(), raw_config("v3"))
    write("m", generator, raw_config("v3"), "pytorch_model.generator.bin")
    (directory / "generator_config.json").write_text(json.dumps(raw_config("v3", num_hidden_layers=1)))
    model, params, _ = load(directory / "pytorch_model.generator.bin", "masked-lm")
    assert model.config.num_hidden_layers == 1
    assert model.config.mask_decoder
    assert same(params, to_tree(model.config, generator))


@pytest.mark.parametrize("base", ["v1", "v2", "v3", "xl"])
def test_the_original_head_uses_the_mask_decoder_if_the_file_has_positions(base, write):
    state = state_of(base, ("lm_predictions",))
    model, _, report = load(write("without", state, raw_config(base)), "masked-lm")
    assert not model.config.mask_decoder
    assert any("no absolute positions" in note for note in report.notes)
    model, params, _ = load(write("with", state | positions(), raw_config(base)), "masked-lm")
    assert model.config.mask_decoder
    assert not model.config.legacy
    assert same(params, to_tree(model.config, state | positions()))


def test_the_legacy_head_reads_the_last_layer(write):
    state = state_of("v3", ("cls",))
    tied = {
        "cls.predictions.decoder.weight": state["deberta.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": state["cls.predictions.bias"],
    }
    model, params, report = load(write("m", state | tied | positions(), raw_config("v3")), "masked-lm")
    assert model.config.legacy
    assert not model.config.mask_decoder
    assert same(params, to_tree(model.config, state))
    reasons = {row.name: row.reason for row in report.tensors if row.fate == "dropped"}
    assert reasons["cls.predictions.decoder.weight"] == "tied: equal to deberta.embeddings.word_embeddings.weight"
    other = tied | {"cls.predictions.decoder.weight": tied["cls.predictions.decoder.weight"] + 1}
    with pytest.raises(InputError, match="tie_word_embeddings to false"):
        load(write("untied", state | other, raw_config("v3")), "masked-lm")


def test_labels_are_the_files_or_a_new_classifiers(write):
    parts = ("pooler", "classifier")
    plain = write("plain", state_of("v3", parts), raw_config("v3"))
    model, _, _ = load(plain, "sequence-classification")
    assert model.config.id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
    model, _, _ = load(plain, "sequence-classification", id2label={0: "a", 1: "b", 2: "c"})
    assert model.config.id2label == ("a", "b", "c")
    with pytest.raises(InputError, match=r"has 3 labels, asked for LABEL_0, LABEL_1; train another .* new_head"):
        load(plain, "sequence-classification", num_labels=2)
    named = write("named", state_of("v3", parts), raw_config("v3", id2label={"0": "x", "1": "y", "2": "z"}))
    with pytest.raises(InputError, match="has x, y, z, asked for z, y, x"):
        load(named, "sequence-classification", id2label=["z", "y", "x"])
    model, params, report = load(named, "sequence-classification", num_labels=2, new_head=jax.random.key(1))
    assert params["classifier"]["kernel"].shape == (8, 2)
    assert {row.path for row in report.initialised} == {"classifier/kernel", "classifier/bias"}
    assert any("replaced" in row.reason for row in report.tensors if row.name == "classifier.weight")
    wrong = write("wrong", state_of("v3", parts), raw_config("v3", num_labels=2))
    with pytest.raises(InputError, match=r"classifier\.weight is f32 \[3, 8\], expected \[2, 8\]"):
        load(wrong, "sequence-classification")


def test_a_classifier_of_texts_does_not_pass_for_one_of_tokens(write):
    texts = write("texts", state_of("v3", ("pooler", "classifier")), raw_config("v3", num_labels=3))
    with pytest.raises(InputError, match="reads a pooled text, token-classification needs single tokens"):
        load(texts, "token-classification")
    tokens = write("tokens", state_of("v3", ("proj", "classifier")), raw_config("v3", num_labels=3))
    with pytest.raises(InputError, match="reads single tokens"):
        load(tokens, "sequence-classification")
    model, _, _ = load(tokens, "token-classification")
    assert model.config.classifier_proj


def test_microsofts_task_checkpoint(tmp_path, write):
    """``bert.`` and ``module.`` in front, gamma and beta, the config inside the file, v1 as v2's modules."""
    modern = state_of("xl", ("pooler", "classifier"))
    old = {}
    for name, value in modern.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old["module." + name.replace("deberta.", "bert.")] = value
    directory = tmp_path / "ms"
    directory.mkdir()
    config = {k: v for k, v in raw_config("xl").items() if k != "model_type"}
    (directory / "pytorch.model-000010.bin").write_bytes(torch_zip(old, config=config))
    model, params, report = load(directory, "sequence-classification")
    assert model.config.num_labels == 3
    assert same(params, to_tree(model.config, modern))
    assert report.count("loaded") == len(old)


@pytest.mark.parametrize("trained", [False, True])
def test_v1_under_the_names_of_microsofts_modules(trained, write):
    raw = raw_config("v1")
    state = state_of("v2")  # the same modules
    for name in state:
        if "key_proj.bias" in name and (not trained or "pos_key" in name):
            state[name] = np.zeros_like(state[name])
    model, params, report = load(write("m", state, raw))
    attention = params["encoder"]["layers"]["attention"]["self"]
    if trained:
        assert model.config.model_type == "deberta-v2"
        assert np.array_equal(
            attention["key_proj"]["bias"][1].reshape(-1), state["deberta.encoder.layer.1.attention.self.key_proj.bias"]
        )
    else:
        assert model.config.model_type == "deberta"
        assert "bias" not in attention["key_proj"]
        kernel = state["deberta.encoder.layer.1.attention.self.key_proj.weight"]
        assert np.array_equal(attention["key_proj"]["kernel"][1].reshape(8, 8).T, kernel)
        assert sum(row.fate == "dropped" for row in report.tensors) == 4


def test_two_spellings_of_one_name_are_refused(write):
    state = state_of("v3")
    state["bert.embeddings.LayerNorm.gamma"] = state["deberta.embeddings.LayerNorm.weight"]
    with pytest.raises(InputError, match="two spellings of"):
        load(write("m", state, raw_config("v3")))


def test_an_embedding_difference_is_dropped_beside_its_sum_and_else_added_to_the_generator(write):
    name = "deberta.embeddings.word_embeddings"
    state = discriminator()
    total = state[f"{name}.weight"]
    both = write("both", state | {f"{name}._weight": total / 8}, raw_config("v3"))
    report = load(both)[2]
    assert {row.fate for row in report.tensors if row.name.endswith("._weight")} == {"dropped"}
    del state[f"{name}.weight"]
    alone = write("alone", state | {f"{name}._weight": np.float32(0.25) * np.ones_like(total)}, raw_config("v3"))
    with pytest.raises(InputError, match=r"put pytorch_model\.generator\.bin beside it"):
        load(alone)
    generator = state_of("v3", ("lm_predictions",))
    write("alone", generator, raw_config("v3"), "pytorch_model.generator.bin")
    _, params, report = load(alone)
    assert np.array_equal(params["embeddings"]["word_embeddings"]["embedding"], generator[f"{name}.weight"] + 0.25)
    assert report.count("folded") == 1
    assert any("was added" in note for note in report.notes)


def test_a_whole_table_under_the_name_of_a_difference(write):
    state = state_of("v3")
    table = state.pop("deberta.embeddings.word_embeddings.weight")
    whole = write("whole", state | {"deberta.embeddings.word_embeddings._weight": table}, raw_config("v3"))
    _, params, report = load(whole)
    assert np.array_equal(params["embeddings"]["word_embeddings"]["embedding"], table)
    assert any("whole table" in note for note in report.notes)
    small = write("small", state | {"deberta.embeddings.word_embeddings._weight": table * 1e-3}, raw_config("v3"))
    with pytest.raises(InputError, match="difference from the generator's table"):
        load(small)


def test_values_that_are_no_numbers(write):
    state = state_of("v3")
    state["deberta.encoder.layer.1.output.dense.bias"][3] = np.nan
    directory = write("m", state, raw_config("v3"))
    report = load(directory, allow_non_finite=True)[2]
    assert any("NaN or infinity in deberta/encoder/layers/output/dense/bias" in note for note in report.notes)
    with pytest.raises(InputError, match=r"NaN or infinity in deberta\.encoder\.layer\.1\.output\.dense\.bias;"):
        load(directory)
