"""PyTorch's files without PyTorch: what it wrote is read exactly; what it would never write is refused."""

import json
import math
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.pickles import stack
from deberta_jax.weights.readers import read_weights
from tests.cases import draw_weights
from tests.weights.files import Call, Name, dump, raw_config, state_of, tensor, torch_zip, zip_bytes

PARTS = ("pooler", "classifier")


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("base", ["v1", "xl"])
def test_reads_what_pytorch_wrote(base, kind, form, golden):
    checkpoint = read_weights(golden / f"{base}_{kind}_{form}.bin")
    expected = state_of(base, PARTS)
    assert checkpoint.tensors.keys() == expected.keys()
    for name, value in draw_weights({name: value.shape for name, value in expected.items()}).items():
        found = checkpoint.tensors[name].read()
        assert found.dtype == {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[kind]
        assert np.array_equal(found, value.astype(found.dtype)), name


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_converts_in_a_process_that_has_no_pytorch(form, golden, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "pytorch_model.bin").write_bytes((golden / f"v1_f16_{form}.bin").read_bytes())
    (source / "config.json").write_text(json.dumps(raw_config("v1", num_labels=3)))
    code = (
        "import sys, importlib.abc\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers'): raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from deberta_jax.weights import convert\n"
        f"report = convert({str(source)!r}, {str(tmp_path / 'out')!r}, to='hf')\n"
        "print(report.count('loaded'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd())
    assert done.stdout.strip() == str(len(state_of("v1", PARTS))), done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


class Hostile:
    """Pickles as a call, as pickle itself writes it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def canary(path: Path) -> Hostile:
    return Hostile(os.system, f"touch {path}")


PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrapped", ["top", "value", "nested", "in a tensor's hooks", "state"])
def test_a_pickle_that_calls_anything_is_refused_before_it_runs(wrapped, protocol, tmp_path):
    ran = tmp_path / "ran"
    value = canary(ran)
    if wrapped == "value":
        value = {"a": value}
    elif wrapped == "nested":
        value = OrderedDict(a=[1, (2, {"b": [value]})])
    elif wrapped == "in a tensor's hooks":
        value = {"a": Hostile(math.prod, [value])}
    elif wrapped == "state":
        holder = Hostile(OrderedDict)
        holder.call = (OrderedDict, (), {"x": value})
        value = holder
    raw = pickle.dumps(value, protocol)
    path = tmp_path / "pytorch_model.bin"
    for content in (zip_bytes(raw, {}), raw):
        path.write_bytes(content)
        with pytest.raises(InputError, match="refused: it names"):
            read_weights(path)
    assert not ran.exists()
    pickle.loads(raw)
    assert ran.exists()  # the attack is real: Python's own pickle runs it


@pytest.mark.parametrize("value", [Hostile(eval, "1"), Hostile(getattr, 1, "real")], ids=["eval", "getattr"])
def test_calls_of_python_itself_are_refused(value, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for protocol in PROTOCOLS:
        path.write_bytes(zip_bytes(pickle.dumps({"a": value}, protocol), {}))
        with pytest.raises(InputError, match="refused: it names"):
            read_weights(path)


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x82\x01.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"}}b.",
        b"\x80\x02]q\xff\xff\xff\xff.",
        b"\x80\x02h\x05.",
        b"\x80\x02\x8d" + b"\xff" * 8 + b"a.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
        b"\x80\x02" + b"(" * 9 + b".",
        b"",
        b".",
        b"\x80\x02}" * 3,
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ccollections\nOrderedDict\n]a.",
        b"2.",
        b"00.",
        b"\x80\x02}]]s.",
        b"\x80\x02](e",
    ],
)
def test_raw_programs_are_refused(program, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(zip_bytes(program, {}))
    with pytest.raises(InputError) as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_a_long_memo_index_allocates_nothing(tmp_path):
    """Python's own unpickler makes a table of that many entries: 32 GB."""
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(zip_bytes(b"\x80\x02}r\xff\xff\xff\x7f.", {}))
    with pytest.raises(InputError, match="an entry of its memo that cannot be"):
        read_weights(path)


def test_endless_programs_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(stack, "MAX_INSTRUCTIONS", 1000)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(zip_bytes(b"\x80\x02" + b"N" * 2000 + b".", {}))
    with pytest.raises(InputError, match="too long"):
        read_weights(path)


X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    ("forged", "says"),
    [
        ({"stride": (-4, 1)}, "cannot be"),
        ({"stride": (0, 1)}, "overlap"),
        ({"stride": (1, 1)}, "overlap"),
        ({"stride": (4, 2), "shape": (3, 3)}, "overlap"),
        ({"offset": 1}, "beyond its storage"),
        ({"offset": -1}, "cannot be"),
        ({"shape": (3, 5)}, "overlap"),
        ({"shape": (4, 4)}, "beyond its storage"),
        ({"shape": (2**40, 4)}, "beyond its storage"),
        ({"shape": (2**62, 2**62)}, "cannot be"),
        ({"shape": (3.0, 4)}, "cannot be"),
        ({"shape": (True, 4)}, "cannot be"),
        ({"shape": (3,)}, "cannot be"),
        ({"numel": 13}, "cannot be"),
        ({"numel": 10**9}, "cannot be"),
        ({"numel": -1}, "no storage|a view"),
        ({"shape": [3, 4]}, "does not write"),
    ],
)
def test_forged_layouts_are_refused(forged, says, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(zip_bytes(dump({"x": tensor("0", X, **forged)}), {"0": X.tobytes()}))
    with pytest.raises(InputError, match=says):
        read_weights(path)


def test_views_and_transposes_are_read_as_torch_means_them(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    whole = tensor("0", X)
    transposed = tensor("0", X, shape=(4, 3), stride=(1, 4))
    row = tensor("0", X, offset=4, shape=(4,), stride=(1,))
    path.write_bytes(zip_bytes(dump({"a": whole, "b": transposed, "c": row}), {"0": X.tobytes()}))
    found = read_weights(path).tensors
    assert np.array_equal(found["a"].read(), X)
    assert np.array_equal(found["b"].read(), X.T)
    assert np.array_equal(found["c"].read(), X[1])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (zip_bytes(dump({"x": tensor("0", X)}), {"0": X.tobytes()}, compression=zipfile.ZIP_DEFLATED), "compressed"),
        (zip_bytes(dump({"x": tensor("0", X)}), {}), "is missing"),
        (zip_bytes(dump({"x": tensor("../../x", X)}), {"0": b""}), "is missing"),
        (zip_bytes(dump({}), {}, extra=[("../../etc/x", b"")]), "escapes"),
        (zip_bytes(dump({}), {}, extra=[("/etc/x", b"")]), "escapes"),
        (zip_bytes(dump({}), {}, extra=[("b/data.pkl", b"")]), "not one of weights"),
        (zip_bytes(dump({}), {}, extra=[("archive/constants.pkl", b"")]), "not one of weights"),
        (zip_bytes(dump({}), {}), "no dictionary of tensors"),
        (zip_bytes(dump([1]), {}), "no dictionary of tensors"),
        (zip_bytes(dump({"x y\n": tensor("0", X)}), {"0": X.tobytes()}), "no name of a tensor"),
        (zip_bytes(dump({"x": Call(Name("torch._utils", "_rebuild_tensor_v2"), 1)}), {}), "does not write"),
    ],
)
def test_forged_archives_are_refused(content, says, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_weights(path)


def test_a_bomb_of_zeros_is_refused_unread(tmp_path):
    """10 GB of zeros in 10 MB: torch never compresses, so nothing compressed is opened."""
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(InputError, match="compressed"):
        read_weights(path)


def test_entries_that_share_bytes_are_refused(tmp_path):
    raw = bytearray(zip_bytes(dump({"x": tensor("0", X)}), {"0": X.tobytes(), "1": X.tobytes()}))
    first = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 1) + 1)
    second = raw.index(b"PK\x01\x02", first + 1)
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"damaged"):
        read_weights(path)


def test_every_flipped_byte_of_the_numbers_is_noticed(tmp_path):
    raw = torch_zip({"x": X})
    start = raw.index(X.tobytes())
    path = tmp_path / "pytorch_model.bin"
    for place in range(start, start + X.nbytes, 5):
        damaged = bytearray(raw)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="checksum"):
            read_weights(path).tensors["x"].read()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_truncation_anywhere_is_refused(form, golden, tmp_path):
    raw = (golden / f"xl_f32_{form}.bin").read_bytes()
    path = tmp_path / "pytorch_model.bin"
    for size in range(0, len(raw), 97):
        path.write_bytes(raw[:size])
        with pytest.raises(InputError):
            read_weights(path)


def test_training_states_are_unwrapped_and_the_rest_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    content = {"model": {"x": tensor("0", X)}, "optimizer": {"step": 3}, "epoch": 2}
    path.write_bytes(zip_bytes(dump(content), {"0": X.tobytes()}))
    checkpoint = read_weights(path)
    assert np.array_equal(checkpoint.tensors["x"].read(), X)
    assert checkpoint.left == ("optimizer", "epoch")
