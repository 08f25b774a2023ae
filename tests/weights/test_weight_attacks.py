"""Files of weights and configs that take up time or memory, wait for ever, or print control characters."""

import dataclasses
import json
import os
import zipfile

import numpy as np
import pytest
import safetensors.numpy
import tensorstore as ts

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.weights import convert, from_pretrained, inspect, load, verify
from deberta_jax.weights.readers import read_weights
from deberta_jax.weights.source import MOST_TENSORS
from tests.cases import BASE
from tests.weights.files import dump, inspect_strictly, raw_config, state_of, tensor, torch_zip, zip_bytes

# What takes quadratic time takes hours with files of these sizes.
pytestmark = pytest.mark.timeout(120)

PARTS = ("pooler", "classifier")


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def refused(read, *arguments, says: str, **options) -> None:
    """Refused in one printable line."""
    with pytest.raises(InputError, match=says) as error:
        read(*arguments, **options)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 4100


def empty(name: str) -> str:
    return f'"{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{" + b",".join(empty(f"{i}").encode() for i in range(1_700_000)) + b"}", "a header of"),
        (b"{" + b",".join(empty(f"{i}").encode() for i in range(110_000)) + b"}", f"more than {MOST_TENSORS}"),
        (b'{"a":[' + b",".join([b"{}"] * 2_700_000) + b"]}", f"more than {MOST_TENSORS}"),
        (b'{"a":[' + b",".join([b"[]"] * 2_700_000) + b"]}", "lacks dtype"),
        (b"[" * 8_000_000, "not valid JSON"),
        (b'{"a":' + b"1" * 8_000_000 + b"}", "not valid JSON"),
        (empty("x" * 8_000_000).join("{}").encode() + b" " * 0, "header of|no name of a tensor"),
        (b'{"a":{"dtype":"F32","shape":[281474976710655,281474976710655,0],"data_offsets":[0,0]}}', "has shape"),
        (b'{"a":{"dtype":["F32"],"shape":[0],"data_offsets":[0,0]}}', "has dtype"),
        (b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0,' + b"0," * 100_000 + b"0]}}", "data_offsets"),
    ],
)
def test_hostile_headers(text, says, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(header(text))
    refused(read_weights, tmp_path / "model.safetensors", says=says)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "x.bin"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_never_opened(make, name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(raw_config("v3")))
    make(tmp_path / name)
    for source in (tmp_path, tmp_path / name):
        for read in (from_pretrained, inspect):
            refused(read, source, says="no weights|no such|regular file|is a directory|not a|expected")


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": ["x.safetensors"]}},
        {"weight_map": [["a", "x.safetensors"]]},
        {"weight_map": None},
        {"weight_map": {"a": "x\u001b[31m.safetensors"}},
        {"weight_map": {"a": "x" * 5000}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {f"{i}": "x.safetensors" for i in range(MOST_TENSORS + 1)}},
        {"weight_map": {f"{i}": f"{i}.safetensors" for i in range(MOST_TENSORS)}},
        {},
        [],
    ],
)
def test_hostile_indices(index, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    refused(read_weights, path, says="index|shard|object|tensors")


def with_entries(raw: bytes, count: int) -> bytes:
    """An archive whose table of contents says ``count`` times what its first entry is."""
    start = raw.index(b"PK\1\2")
    entries = raw[start : raw.index(b"PK\1\2", start + 1)] * count
    table = len(entries).to_bytes(4, "little") + start.to_bytes(4, "little") + b"\0\0"
    return raw[:start] + entries + b"PK\5\6" + b"\0" * 4 + b"\xfe\xff" * 2 + table


def test_hostile_archives(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(with_entries(zip_bytes(dump({}), {}), 100_000))
    refused(read_weights, path, says="table of contents is too large")
    x = np.ones((1000, 1000), np.float32)
    shared = {f"x{i}": tensor("0", x) for i in range(200)}  # 800 MB of a file of 4 MB
    path.write_bytes(zip_bytes(dump(shared), {"0": x.tobytes()}))
    refused(read_weights, path, says="its tensors have 800000000 bytes, their storages 4000000")


def test_a_sparse_file_without_the_end_of_a_name(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x80\x02c" + b"x" * 10)
    os.truncate(path, 100 << 30)
    refused(read_weights, path, says="refused: the program is damaged")


def test_a_classifier_of_a_billion_empty_rows(tmp_path):
    text = '{"classifier.weight":{"dtype":"F32","shape":[1000000000,0],"data_offsets":[0,0]}}'
    (tmp_path / "model.safetensors").write_bytes(header(text.encode()))
    raw = {key: value for key, value in raw_config("v3").items() if key not in ("id2label", "num_labels")}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for head in ("encoder", "sequence-classification"):
        refused(load, tmp_path, head, says="do not add up")
    refused(inspect_strictly, tmp_path, says="do not add up")


@pytest.mark.parametrize(
    "field", ["num_hidden_layers", "vocab_size", "hidden_size", "intermediate_size", "type_vocab_size"]
)
@pytest.mark.parametrize("value", [10**9, 10**18, 12.0, True, "12", [12], 2**70, -1, 1e400])
def test_sizes_of_a_config_that_are_not_those_of_the_file(field, value, write):
    directory = write("m", state_of("v3", PARTS), {**raw_config("v3"), field: value})
    refused(inspect, directory, says=rf"config\.json: .*({field})")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_labels": 10**9}, "num_labels"),
        ({"num_labels": 2.0}, "num_labels"),
        ({"layer_norm_eps": 0}, "positive"),
        ({"layer_norm_eps": -1e-7}, "positive"),
        ({"layer_norm_eps": 1e-60}, "positive"),
        ({"layer_norm_eps": float("nan")}, "a number"),
        ({"layer_norm_eps": 10**400}, "a number"),
        ({"layer_norm_eps": "1e-7"}, "a number"),
        ({"initializer_range": -0.1}, "standard deviation"),
        ({"initializer_range": 1e300}, "a number"),
        ({"hidden_dropout_prob": True}, "a number"),
        ({"hidden_dropout_prob": 1}, "dropout"),
        ({"cls_dropout": -0.1}, "dropout"),
        ({"type_vocab_size": -1}, "at least 0"),
        ({"max_relative_positions": 10**12}, "too large"),
        ({"hidden_act": "gelu" * 2_000_000}, "hidden_act"),
        ({"id2label": {"0": None, "1": "b"}}, "no text"),
        ({"id2label": {"0": {"a": 1}, "1": "b"}}, "no text"),
        ({"label2id": {"a": 0.5, "b": 1}}, "no integer"),
        ({"id2label": {"1" * 5000: "a"}}, "no integer"),
        ({"pos_att_type": ["c2p"] * 1_000_000}, "twice"),
        ({"pooling": []}, "pooling"),
        ({"pooling": {f"{i}": 1 for i in range(100_000)}}, "pooling"),
        ({3: 1}, "keys are text"),
        ({(1,): 1}, "keys are text"),
        ({"extra": {"a": {1, 2}}}, "no JSON"),
    ],
)
def test_values_that_no_model_has(changes, says):
    refused(DebertaConfig.from_hf, {**BASE["v3"], **changes}, says=says)


def test_a_million_unknown_keys_are_kept(tmp_path):
    raw = {**BASE["v3"], **{f"hidden_siz{i:07d}": i for i in range(1_000_000)}}
    config = DebertaConfig.from_hf(raw)
    assert len(config.extra) == 1_000_000
    assert dataclasses.replace(config, legacy=True).extra is config.extra
    (tmp_path / "config.json").write_text(json.dumps(raw))
    refused(DebertaConfig.from_hf, tmp_path / "config.json", says="bytes; such a file has at most")


def test_control_characters_are_never_printed(tmp_path, write):
    bad = "\x1b]0;x\x07\u202e"
    state = state_of("v3", PARTS)
    raw = raw_config("v3", id2label={"0": f"a{bad}", "1": "b", "2": "c"}, **{f"key{bad}": f"{bad}"})
    raw["architectures"] = [bad]
    directory = write("m", state | {f"other{bad}.weight": np.ones(1, np.float32)}, raw)
    found = inspect(directory)
    report = convert(directory, tmp_path / "out", to="hf", ignore=["other*"])
    for text in (found.text(), report.text(), verify(directory, ignore=["other*"]).text()):
        assert all(line.isprintable() for line in text.split("\n"))
    assert r"a\x1b]0;x\x07\u202e" in found.text()
    assert r"other\x1b]0;x\x07\u202e.weight" in found.text()
    assert json.dumps(found.to_json()).isprintable()
    refused(convert, directory, tmp_path / "out2", to="hf", says=r"not explained: other\\x1b")


@pytest.fixture
def orbax(tmp_path, write):
    directory = tmp_path / "orbax"
    convert(write("source", state_of("v3", PARTS), raw_config("v3", num_labels=3)), directory, to="orbax")
    (directory / "checksums.json").unlink(missing_ok=True)
    return directory


@pytest.mark.parametrize(
    "metadata",
    [
        "",
        "[]",
        "{}",
        '{"tree_metadata": []}',
        '{"tree_metadata": {"a": 1}}',
        '{"tree_metadata": {"a": {"key_metadata": 3}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": ["deberta"]}]}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": "embeddings"}, {"key": "../../../etc/x"}]}}}',
        '{"tree_metadata": {"a": {"key_metadata": [{"key": "embeddings"}, {"key": "a\\u001bb"}]}}}',
        json.dumps({"tree_metadata": {f"{i}": {"key_metadata": [{"key": "deberta"}]} for i in range(60_000)}}),
        "[" * 100_000,
        " " * (9 << 20),
    ],
)
def test_hostile_metadata_of_orbax(metadata, orbax):
    (orbax / "params" / "_METADATA").write_text(metadata)
    refused(inspect, orbax, says="_METADATA|params|Orbax")


@pytest.mark.parametrize(
    ("shape", "chunks", "says"),
    [
        ([10**9, 10**6], [1000, 1000], "embedding.*has|its arrays have|do not"),
        ([2**45, 2**45], [1000, 1000], "has shape"),
        ([20, 8], [2**20, 2**12], "in chunks of"),
        ([20, 8, 1, 1, 1, 1, 1, 1, 1], [1] * 9, "has shape"),
        ([], [], "do not add up|shapes|layers"),
    ],
)
def test_hostile_arrays_of_orbax(shape, chunks, says, orbax):
    """An array as TensorStore writes it, in which no number is stored."""
    spec = {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": f"file://{orbax}/params/",
            "path": "deberta.embeddings.word_embeddings.embedding/",
        },
        "metadata": {"shape": shape, "chunks": chunks, "dtype": "<f4", "compressor": None},
        "delete_existing": True,
        "create": True,
    }
    ts.open(spec).result()
    refused(inspect_strictly, orbax, says=says)
    refused(load, orbax, says=says)


def test_an_orbax_checkpoint_with_other_layers_than_its_config(orbax):
    raw = json.loads((orbax / "config.json").read_text())
    for layers in (1, 5, 900):
        (orbax / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": layers}))
        refused(load, orbax, says="layers of config.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": "8"},
        {"lora_alpha": float("nan")},
        {"lora_alpha": [8]},
        {"lora_alpha": True},
        {"alpha_pattern": [1]},
        {"alpha_pattern": {"query_proj": "x"}},
        {"alpha_pattern": {"(a*)*b": 3}},
        {"alpha_pattern": {f"k{i}": 1 for i in range(100_000)} | {"query_proj": None}},
        {"peft_type": {"a": 1}},
        {"init_lora_weights": [[[[[[1]]]]]]},
        {"base_model_name_or_path": 3},
        {"base_model_name_or_path": "a\u0000b"},
        {"base_model_name_or_path": "x" * 100_000},
    ],
)
def test_hostile_settings_of_an_adapter(changes, tmp_path, write):
    base = write("base", state_of("v3"), raw_config("v3"))
    module = "deberta.encoder.layer.0.attention.self.query_proj"
    directory = tmp_path / "adapter"
    directory.mkdir()
    tensors = {
        f"base_model.model.{module}.lora_{x}.weight": np.ones(s, np.float32) for x, s in (("A", (2, 8)), ("B", (8, 2)))
    }
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": str(base)}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    load(directory)
    (directory / "adapter_config.json").write_text(json.dumps({**settings, **changes}))
    refused(load, directory, says="adapter|lora|alpha|base")


def test_a_recording_is_never_larger_than_its_file(tmp_path, write):
    directory = write("m", state_of("v3"), raw_config("v3"))
    record = tmp_path / "r.npz"
    verify(directory, record=record)
    assert verify(directory, record).passed
    zeros = np.zeros((1 << 20, 64), np.float32)
    np.savez_compressed(record, embeddings=zeros)
    refused(verify, directory, record, says="no recording of verify")
    with zipfile.ZipFile(record, "w") as archive, archive.open("embeddings.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    refused(verify, directory, record, says="no recording of verify")
    record.unlink()
    os.mkfifo(record)
    refused(verify, directory, record, says="a pipe")


def test_hundreds_of_similar_names_are_compared_soon(tmp_path):
    """Names of 200 letters that nearly match, of which none does."""
    state = {
        f"deberta.encoder.layer.0.{'attention.self.query_proj.' * 6}x{i:03d}": np.ones(1, np.float32)
        for i in range(600)
    }
    safetensors.numpy.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(raw_config("v3", num_hidden_layers=1000)))
    refused(load, tmp_path, says="do not add up")
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(load, tmp_path, says="damaged")


def test_a_config_inside_a_file_is_checked_like_any_other(tmp_path):
    state = state_of("v3", PARTS)
    for value in (10**9, "x", [1]):
        (tmp_path / "pytorch_model.bin").write_bytes(torch_zip(state, config=raw_config("v3", num_hidden_layers=value)))
        refused(load, tmp_path, says="num_hidden_layers")
    (tmp_path / "pytorch_model.bin").write_bytes(torch_zip(state, config=raw_config("v3", num_labels=3)))
    load(tmp_path, "sequence-classification")
