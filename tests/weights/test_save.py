"""Directories written whole; names, shards and config.json as transformers has them; another vocabulary."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.errors import InputError
from deberta_jax.models import abstract_params
from deberta_jax.weights import load, resize_vocabulary, save_pretrained
from deberta_jax.weights.save import parse_size
from tests.weights.files import positions, raw_config, state_of

PARTS = ("pooler", "classifier")


class Words:
    def save(self, directory):
        (directory / "spm.model").write_bytes(b"words")


@pytest.fixture
def trained(write):
    model, params, _ = load(write("source", state_of("v3", PARTS), raw_config("v3")), "sequence-classification")
    return model, params


def files(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_writes_config_weights_and_tokenizer(trained, tmp_path):
    out = tmp_path / "new" / "deep"
    save_pretrained(out, *trained, Words(), dtype="bfloat16")
    assert files(out) == {"checksums.json", "config.json", "model.safetensors", "spm.model"}
    config = json.loads((out / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert config["architectures"] == ["DebertaV2ForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    with safetensors.safe_open(out / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert safetensors.numpy.load_file(out / "model.safetensors").keys() == state_of("v3", PARTS).keys()


def test_other_directories_are_left_alone(trained, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty and not a model directory"):
        save_pretrained(other, *trained)
    with pytest.raises(InputError, match="a file; give a directory"):
        save_pretrained(other / "thesis.tex", *trained)
    assert files(other) == {"thesis.tex"}
    save_pretrained(other, *trained, overwrite=True)
    assert files(other) == {"thesis.tex", "checksums.json", "config.json", "model.safetensors"}


def test_a_model_directory_is_replaced_without_stale_shards(trained, tmp_path):
    model, params = trained
    out = tmp_path / "out"
    save_pretrained(out, model, params, Words(), max_shard_size="2KB")
    assert sum(name.startswith("model-0") for name in files(out)) > 2
    (out / "state").mkdir()
    double = jax.tree.map(lambda a: a * 2, params)
    save_pretrained(out, model, double)
    assert files(out) == {"checksums.json", "config.json", "model.safetensors", "spm.model", "state"}
    _, found, _ = load(out, "sequence-classification")
    assert jax.tree.all(jax.tree.map(np.array_equal, found, double))


def test_a_failed_save_leaves_nothing(trained, tmp_path):
    class Broken:
        def save(self, directory):
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        save_pretrained(tmp_path / "out", *trained, Broken())
    assert files(tmp_path) == {"source"}


def test_shards_stay_below_the_size_and_the_index_is_whole(trained, tmp_path):
    save_pretrained(tmp_path / "out", *trained, max_shard_size=3000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    total = 0
    for name in set(index["weight_map"].values()):
        tensors = safetensors.numpy.load_file(tmp_path / "out" / name)
        assert set(tensors) == {tensor for tensor, where in index["weight_map"].items() if where == name}
        assert sum(t.nbytes for t in tensors.values()) <= 3000
        total += sum(t.nbytes for t in tensors.values())
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("200MB", 2 * 10**8), ("1GiB", 2**30), (77, 77)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5XB", "-1", "GB", "0", "1e9"])
def test_what_is_no_size(text, trained, tmp_path):
    with pytest.raises(InputError, match="is no size"):
        save_pretrained(tmp_path / "out", *trained, max_shard_size=text)
    assert not (tmp_path / "out").exists()


def test_parameters_of_another_model_are_refused(trained, tmp_path):
    model, params = trained
    params = {**params, "classifier": {"kernel": jnp.zeros((8, 4)), "bias": jnp.zeros(4)}, "extra": jnp.zeros(1)}
    with pytest.raises(InputError, match=r"classifier/bias is \(4,\), expected \(3,\).*extra is \(1,\), expected none"):
        save_pretrained(tmp_path / "out", model, params)


@pytest.mark.parametrize("base", ["v1", "v3"])
def test_microsofts_names_on_request_and_back(base, tmp_path, write):
    state = state_of(base, ("cls",))
    model, params, _ = load(write("source", state, raw_config(base)), "masked-lm")
    save_pretrained(tmp_path / "ms", model, params, layout="microsoft")
    saved = safetensors.numpy.load_file(tmp_path / "ms" / "model.safetensors")
    assert all(name.startswith(("deberta.", "lm_predictions.lm_head.")) for name in saved)
    if base == "v1":
        layer = "deberta.encoder.layer.0.attention.self"
        grouped = state[f"{layer}.in_proj.weight"].reshape(2, 3, 4, 8)
        assert np.array_equal(saved[f"{layer}.key_proj.weight"], grouped[:, 1].reshape(8, 8))
        assert np.array_equal(saved[f"{layer}.query_proj.bias"], state[f"{layer}.q_bias"])
        assert not saved[f"{layer}.key_proj.bias"].any()
    _, again, _ = load(tmp_path / "ms", "masked-lm")
    assert jax.tree.all(jax.tree.map(np.array_equal, again["deberta"], params["deberta"]))


@pytest.mark.parametrize("part", ["cls", "lm_predictions", "untied", None])
def test_vocabulary_grows_and_shrinks_back_exactly(part, write):
    options = {"tie_word_embeddings": False} if part == "untied" else {}
    parts = ("cls",) if part == "untied" else (part,) if part else ()
    state = state_of("v3", parts, **options) | (positions() if part == "lm_predictions" else {})
    head = "masked-lm" if part else "encoder"
    model, params, _ = load(write("source", state, raw_config("v3", **options)), head)
    config, larger = resize_vocabulary(model.config, params, 33, jax.random.key(0))
    assert config.vocab_size == 33
    words = (larger["deberta"] if part else larger)["embeddings"]["word_embeddings"]["embedding"]
    assert words.shape == (33, 8)
    assert 0.01 < float(jnp.std(words[20:])) < 0.03
    if part:
        grown = larger["cls" if part == "untied" else part]["lm_head" if part == "lm_predictions" else "predictions"]
        assert grown["bias"].shape == (33,)
        assert not grown["bias"][20:].any()
    expected = abstract_params(type(model)(config))
    assert jax.tree.map(lambda a: a.shape, larger) == jax.tree.map(lambda a: a.shape, expected)
    back, same = resize_vocabulary(config, larger, 20, jax.random.key(1))
    assert back.vocab_size == 20
    assert jax.tree.structure(same) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, params))
    with pytest.raises(InputError, match="padding token"):
        resize_vocabulary(config, larger, 0, jax.random.key(1))
