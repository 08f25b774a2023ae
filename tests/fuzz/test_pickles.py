"""Pickles by a grammar, as weights in both formats of torch and as v1's vocabulary: one clear line, or what they say.

``-m long`` tries 5,000 and writes what became of them to ``benchmarks/results/fuzz_pickles.json``.
"""

import collections
import json
import pickle
import re
import resource
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.pickles.machine import run
from deberta_jax.text import load_tokenizer
from deberta_jax.weights import inspect
from tests.fuzz.mutations import mutated_bytes
from tests.pickles.attacks import NAMESPACE, ORDERED, SIZE, get, long, mapping, number, program, put, tensor, text
from tests.weights.files import raw_config, torch_legacy, zip_bytes

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz_pickles.json"
SECONDS, MEGABYTES = 5, 500
ONE = np.ones(1, np.float32)
NAMES = ("deberta.embeddings.LayerNorm.bias", "classifier.bias", "config", "model", "state_dict", "epoch", "x\x1b[31m")


class Grammar:
    """Draws programs. ``plain`` draws only what Python's own unpickler may be trusted with."""

    def __init__(self, rng: np.random.Generator, *, plain: bool):
        self.rng, self.plain, self.memo = rng, plain, 0

    def below(self, count: int) -> int:
        return int(self.rng.integers(count))

    def put(self, value: bytes) -> bytes:
        self.memo += 1
        return value + put(self.memo - 1)

    def value(self, depth: int = 0) -> bytes:
        if self.memo and self.below(4) == 0:
            return get(self.below(self.memo))
        kind = self.below(8 if depth < 5 else 3)
        if kind < 3 or depth > 5:
            return self.scalar()
        if not self.plain and kind == 7:
            return self.odd(depth)
        if kind > 5:
            return self.put(self.value(depth + 1) + pickle.TUPLE1)
        items = [self.value(depth + 1) for _ in range(self.below(5))]
        if kind == 5:
            return self.put(mapping(*(self.key() + item for item in items)))
        return self.put(b"(" + b"".join(items) + b"t" if kind == 4 else b"](" + b"".join(items) + b"e")

    def key(self) -> bytes:
        return text(NAMES[self.below(len(NAMES))]) if self.below(3) else number(self.below(9) - 4)

    def scalar(self) -> bytes:
        choices = [
            lambda: b"N\x88\x89"[self.below(3) :][:1],
            lambda: number(self.below(1 << 31)),
            lambda: text("a" * self.below(20)),
            lambda: pickle.BINFLOAT + self.rng.bytes(8),
            lambda: pickle.SHORT_BINBYTES + b"\3abc",
            lambda: long(self.below(12)),
        ]
        return choices[self.below(len(choices))]()

    def odd(self, depth: int) -> bytes:
        """Tensors, names, calls, long values, and values that are shared or nested many times."""
        choices = [
            tensor,
            lambda: tensor(shape=self.value(depth + 1)),
            lambda: tensor(key=self.value(depth + 1), numel=self.value(depth + 1)),
            lambda: self.value(depth + 1) + self.value(depth + 1) + b"\x93",
            lambda: (ORDERED, SIZE, NAMESPACE, b"cos\nsystem\n")[self.below(4)] + self.value(depth + 1) + b"\x85R",
            lambda: NAMESPACE + self.value(depth + 1) + (b"\x81", b"R", b"b")[self.below(3)],
            lambda: self.value(depth + 1) + b"Q",
            lambda: self.value(depth + 1) + b"".join(self.put(b"") + get(self.memo - 1) + b"\x86" for _ in range(40)),
            lambda: b"]" * (n := 10 ** self.below(5)) + b"a" * (n - 1),
            lambda: b")" + b"\x85" * 10 ** self.below(6),
            lambda: long(10 ** self.below(7)),
            lambda: pickle.BINBYTES8 + (1 << self.below(64)).to_bytes(8, "little") + b"abc",
            lambda: b"}" + self.value(depth + 1) + self.value(depth + 1) + b"s",
            lambda: b"\x8f(" + self.value(depth + 1) + b"\x90",
            lambda: b"N" + put(1 << self.below(32)),
        ]
        return choices[self.below(len(choices))]()

    def weights(self) -> bytes:
        items = [self.key() + (self.value() if self.below(2) else tensor()) for _ in range(self.below(5))]
        return program(mapping(text("deberta.embeddings.LayerNorm.weight"), tensor(), *items))

    def vocabulary(self) -> bytes:
        pairs = b"](" + b"".join(text("a") + text("b") + b"\x86" for _ in range(self.below(3))) + b"e"
        entries = b"](" + b"".join(text(f"{i}") + b"K\1\x86" for i in range(3)) + b"e"
        parts = {"encoder": mapping(text("a"), b"K\0", text("b"), b"K\1", text("ab"), b"K\2")}
        parts |= {"vocab": pairs, "dict_map": entries, "more": self.value()}
        if self.below(2):
            parts[["encoder", "vocab", "dict_map"][self.below(3)]] = self.value()
        return program(mapping(*(text(name) + part for name, part in parts.items())))


def attempt(rng: np.random.Generator, folder: Path) -> tuple[str, str, float]:
    """Writes one file and reads it: what kind of file it was, the message if it was refused, and the seconds."""
    grammar = Grammar(rng, plain=False)
    vocabulary, form = grammar.below(3) == 0, ("zip", "legacy")[grammar.below(2)]
    content = grammar.vocabulary() if vocabulary else grammar.weights()
    if grammar.below(3) == 0:
        content = mutated_bytes(content, rng)
    raw = zip_bytes(content, {"0": ONE.tobytes()}) if form == "zip" else torch_legacy(content, {"0": ONE})
    if grammar.below(8) == 0:
        raw = mutated_bytes(raw, rng)
    path = folder / ("bpe_encoder.bin" if vocabulary else "pytorch_model.bin")
    path.write_bytes(raw)
    start, message = time.process_time(), ""
    try:
        load_tokenizer(folder) if vocabulary else inspect(folder)
    except InputError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 4100
    finally:
        path.unlink()
    return f"{'vocabulary' if vocabulary else 'weights'}, {form}", message, time.process_time() - start


def attack(folder: Path, seed: int, count: int) -> dict:
    rng = np.random.default_rng(seed)
    (folder / "config.json").write_text(json.dumps(raw_config("v3")))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kinds, lines, slowest = collections.Counter(), collections.Counter(), 0.0
    for i in range(count):
        try:
            kind, message, seconds = attempt(rng, folder)
        except Exception as error:
            raise AssertionError(f"number {i} of seed {seed}: {error!r}") from error
        kinds[f"{kind}: {'refused' if message else 'read'}"] += 1
        lines[re.sub(r"\d+", "N", message.replace(str(folder), "FOLDER"))[:80]] += bool(message)
        slowest = max(slowest, seconds)
        assert seconds < SECONDS, f"number {i} of seed {seed}: {seconds} s: {message}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES
    return {"files": count, "seed": seed, **kinds, "most frequent messages": dict(lines.most_common(25))}


def same(ours, theirs) -> bool:
    """Whether two values are equal, where NaN equals NaN and types count."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)


def plain_values(seed: int, count: int) -> int:
    """Compares plain programs with Python's own unpickler; returns the number of values that are containers."""
    rng, containers = np.random.default_rng(seed), 0
    for _ in range(count):
        raw = program(Grammar(rng, plain=True).value())
        expected = pickle.loads(raw)
        found = run(raw)
        assert found.end == len(raw)
        assert same(found.value, expected)
        containers += isinstance(expected, list | tuple | dict) and len(expected) > 0
    return containers


def test_programs_by_a_grammar(tmp_path):
    found = attack(tmp_path, 1, 150)
    assert sum("refused" in name for name in found) == 4


def test_plain_programs_as_python_reads_them():
    assert plain_values(1, 500) > 100


@pytest.mark.long
def test_five_thousand_programs(tmp_path):
    result = attack(tmp_path, 2, 5000)
    containers = plain_values(2, 5000)
    result |= {"plain programs as Python's own unpickler reads them": 5000, "of these with containers": containers}
    result |= {"tracebacks": 0, "slower than 5 s": 0, "more than 500 MB": 0}
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
