"""Our reader and writer against the library of that name, and against files it would not have written."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.errors import InputError
from deberta_jax.weights.readers import read_weights
from deberta_jax.weights.safetensors_file import MAX_HEADER, Pending, read_safetensors, write_safetensors

STATE = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(5, dtype=np.float16),
    "c": np.arange(4).astype(ml_dtypes.bfloat16),
    "i": np.arange(3),
    "z": np.zeros((0, 4), np.float32),
    "s": np.array(3, np.float32),
}


def test_reads_what_the_library_writes(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(STATE, path, metadata={"format": "pt"})
    found = read_safetensors(path).tensors
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        assert found[name].dtype == value.dtype
        assert np.array_equal(found[name].read(), value)


def test_the_library_reads_what_we_write(tmp_path):
    path = tmp_path / "x.safetensors"
    pending = [Pending(name, v.shape, v.dtype, lambda v=v: v) for name, v in STATE.items()]
    write_safetensors(path, pending, {"format": "pt"})
    found = safetensors.numpy.load_file(path)
    assert {name: (v.dtype, v.tobytes()) for name, v in found.items()} == {
        name: (v.dtype, v.tobytes()) for name, v in STATE.items()
    }
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def header(entries, data: bytes = b"", length: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


EIGHT = b"\0" * 8


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "damaged"),
        (b"\x01", "damaged"),
        (header({"a": entry()}, EIGHT, length=2 << 30), "header of 2147483648 bytes"),
        (header({"a": entry()}, EIGHT, length=2**63), "does not fit"),
        (header(b"{", EIGHT), "not valid JSON"),
        (header(b'{"a": ' * 100_000, EIGHT), "not valid JSON"),
        (header(b'{"a": ' + b"9" * 5000 + b"}", EIGHT), "not valid JSON"),
        (header(b'{"a": 1, "a": 2}'), "twice"),
        (header(b"[1]"), "no JSON object"),
        (header(b"\xff\xfe{}"), "not valid JSON"),
        (header({"a": 3}, EIGHT), "lacks dtype"),
        (header({"a": entry(extra=1)}, EIGHT), "lacks dtype"),
        (header({"a": entry("F8_E4M3", (8,))}, EIGHT), "dtype 'F8_E4M3'"),
        (header({"a": entry(["F32"])}, EIGHT), "dtype"),
        (header({"a": entry(shape=(-2,))}, EIGHT), "has shape"),
        (header({"a": entry(shape=(2.0,))}, EIGHT), "has shape"),
        (header({"a": entry(shape=(True, 2))}, EIGHT), "has shape"),
        (header({"a": entry(shape=(2**62, 2**62))}, EIGHT), "has shape"),
        (header({"a": entry(shape=[1] * 40 + [2])}, EIGHT), "has shape"),
        (header({"a": entry(offsets=(8, 0))}, EIGHT), "bytes"),
        (header({"a": entry(offsets=(0, 12))}, EIGHT + b"1234"), "has 12 bytes"),
        (header({"a": entry(), "b": entry()}, EIGHT), "start at 0"),
        (header({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "start at 12"),
        (header({"a": entry()}, EIGHT + b"more"), "describes"),
        (header({"a": entry()}, b"1234"), "describes"),
    ],
)
def test_malformed_files_are_refused(content, says, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as error:
        read_weights(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_headers_have_a_limit_below_what_a_file_can_claim(tmp_path):
    """A sparse file of 3 GB whose header claims 2 GB is refused without being read."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((2 << 30).to_bytes(8, "little") + b"{")
        file.truncate(3 << 30)
    assert MAX_HEADER < 2 << 30
    with pytest.raises(InputError, match="header of 2147483648 bytes"):
        read_weights(path)


def test_a_header_length_that_spells_another_format_is_still_safetensors(tmp_path):
    """0x80 is the first byte of every pickle."""
    path = tmp_path / "weights"
    raw = json.dumps({"a": entry()}).encode()
    raw += b" " * (0x80 - len(raw))
    path.write_bytes(header(raw, EIGHT))
    assert np.array_equal(read_weights(path).tensors["a"].read(), [0, 0])


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "", "..", "x\0"])
def test_shards_outside_the_directory_are_refused(name, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputError, match="plain file name"):
        read_weights(index)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object"),
        ('{"weight_map": 3}', "damaged"),
        ("[" * 100_000, "nested too deeply"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "is missing"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "is missing"),
        ('{"weight_map": {"q": "x.safetensors"}}', "disagree about a, b, c, i, q"),
    ],
)
def test_bad_indices_are_refused(index, says, tmp_path):
    safetensors.numpy.save_file(STATE, tmp_path / "x.safetensors")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(InputError, match=says):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\x89HDF\r\n\x1a\n", "HDF5"), (b"version https://git-lfs", "git lfs pull"), (b"<html>", "neither safetensors")],
)
def test_other_formats_are_named(content, says, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_weights(path)
