"""Damaged files of every format: a one-line error or a whole result, soon; never a crash or half an output."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.errors import InputError
from deberta_jax.weights import convert
from deberta_jax.weights.conversion import open_source, plan_all
from tests.weights.files import raw_config, state_of, torch_zip

PARTS = ("pooler", "classifier")


def seeds(golden: Path, folder: Path) -> dict[str, bytes]:
    """One valid file of each format, of the same small model."""
    state = state_of("xl", PARTS)
    safetensors.numpy.save_file(state, folder / "seed")
    out = {"safetensors": (folder / "seed").read_bytes(), "zip by hand": torch_zip(state)}
    for form in ("zip", "legacy"):
        out[form] = (golden / f"xl_f16_{form}.bin").read_bytes()
    return out


def mutate(raw: bytes, draw: random.Random) -> bytes:
    """One to four changes of the kinds that damage and malice make."""
    data = bytearray(raw)
    structured = min(len(data), 6000)
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(data)) if draw.random() < 0.4 else draw.randrange(structured)
        if draw.random() < 0.2:
            place = max(0, len(data) - 1 - draw.randrange(4000))  # a zip's table of contents is at its end
        kind = draw.randrange(7)
        if kind == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[place] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 0x28, 0x52, 0x63, 0x8D, 0x71, 0x72))
        elif kind == 2:
            del data[place : place + draw.randrange(1, 64)]
        elif kind == 3:
            data[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 16)))
        elif kind == 4:
            data[place : place + 8] = draw.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
        elif kind == 5:
            other = draw.randrange(len(data))
            data[place : place + 32] = data[other : other + 32]
        else:
            del data[draw.randrange(len(data)) :]
        if not data:
            return b""
        structured = min(len(data), 6000)
    return bytes(data)


def answer(source: Path, out: Path, *, writes: bool) -> str:
    """Converts the source, or reads all of it: the message of the error, or nothing."""
    try:
        if writes:
            convert(source, out, to="hf")
        else:
            for _, _, tensors in plan_all(open_source(source)).fills.values():
                for tensor in tensors:
                    tensor.read().sum(dtype=np.float64)
    except InputError as error:
        return str(error)
    return ""


def attack(golden: Path, folder: Path, count: int, seed: int) -> Counter:
    """Runs ``count`` mutated files through the converter; reads every number of those that open."""
    draw = random.Random(seed)
    files = seeds(golden, folder)
    source, out = folder / "source", folder / "out"
    source.mkdir(exist_ok=True)
    (source / "config.json").write_text(json.dumps(raw_config("xl", num_labels=3)))
    outcomes: Counter = Counter()
    for i in range(count):
        name = draw.choice(list(files))
        (source / "pytorch_model.bin").write_bytes(mutate(files[name], draw))
        start = time.perf_counter()
        message = answer(source, out, writes=i % 10 == 0)
        assert "\n" not in message
        assert len(message) < 20_000
        outcomes["refused" if message else "read"] += 1
        if not message and out.exists():
            assert {path.name for path in out.iterdir()} == {
                "checksums.json",
                "config.json",
                "model.safetensors",
            }
            shutil.rmtree(out)
        assert not out.exists()
        assert {path.name for path in folder.iterdir()} <= {"source", "seed"}
        outcomes["slow"] += time.perf_counter() - start > 20
    return outcomes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value).*:RuntimeWarning")
def test_mutated_files(golden, tmp_path):
    outcomes = attack(golden, tmp_path, 800, seed=1)
    assert outcomes["slow"] == 0
    assert outcomes["refused"] > 300
    assert outcomes["read"] > 30  # damage to numbers alone, in formats without checksums


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*(overflow|invalid value).*:RuntimeWarning")
@pytest.mark.parametrize("seed", range(2, 6))
def test_mutated_files_many(seed, golden, tmp_path):
    outcomes = attack(golden, tmp_path, 5000, seed)
    assert outcomes["slow"] == 0
    assert outcomes["refused"] > 2000


CONVERT = """
import sys
from deberta_jax.weights import convert
print("ready", flush=True)
sys.stdin.readline()
convert(sys.argv[1], sys.argv[2], to=sys.argv[3], max_shard_size=200_000)
print("done", flush=True)
"""


def killed_after(seconds: float, source: Path, out: Path, to: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CONVERT, str(source), str(out), to],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path.cwd(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    process.stdin.write("go\n")
    process.stdin.flush()
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("to", "kills"), [("hf", 3), ("orbax", 2)])
def test_killed_at_any_moment_leaves_nothing_or_a_whole_directory(to, kills, tmp_path, write):
    kill_during_conversion(to, kills, tmp_path, write)


@pytest.mark.long
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_killed_at_many_moments(to, tmp_path, write):
    kill_during_conversion(to, 25, tmp_path, write)


def kill_during_conversion(to, kills, tmp_path, write):
    raw = raw_config("v3", num_hidden_layers=6, hidden_size=64, intermediate_size=256, vocab_size=2000)
    source = write("source", state_of("v3", PARTS, **{k: v for k, v in raw.items() if k != "model_type"}), raw)
    start = time.perf_counter()
    whole = tmp_path / "whole"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert(source, whole, to=to, max_shard_size=200_000)
    seconds = time.perf_counter() - start
    expected = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and to == "hf"}
    seen = set()
    for i in range(kills):
        out = tmp_path / f"out{i}"
        killed_after(seconds * i / kills, source, out, to)  # the first one at once
        seen.add(out.exists())
        if out.exists():
            assert {path.relative_to(out) for path in out.rglob("*") if path.is_file() and to == "hf"} == expected
            plan_all(open_source(out)).slice("deberta/encoder/layers/output/dense/bias", 5)
        convert(source, out, to=to, max_shard_size=200_000)
        assert not list(tmp_path.glob(f".out{i}.partial-*"))  # what the killed process left is swept away
    assert False in seen
