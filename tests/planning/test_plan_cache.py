"""The cache of compiled programs: what is damaged is compiled again."""

import gzip
import json
import logging

import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.planning import compiling
from deberta_jax.planning.compiling import MEMORY, check_facts, compile_here
from deberta_jax.planning.request import Request
from deberta_jax.planning.targets import target_of
from deberta_jax.storage import CHECKSUMS, write_checksums
from deberta_jax.training.experiment import PretrainMLM
from tests.made import TINY

REQUEST = Request(
    job="mlm", experiment=PretrainMLM(), config=TINY, task=None, target=target_of("cpu:1"), batch={}, steps=3
)
FACTS = {"versions": {"jax": "1"}, "held": {"parameters": 5}, "memory": dict.fromkeys(MEMORY, 7), "seconds": 1}
TEXT = "HloModule jit_step\n" * 99


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """The number of compilations so far; the compiler itself is a stand-in, which writes what the real one does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = []

    def compile_there(request, stage, tick):
        done.append(request)
        (stage / "facts.json").write_text(json.dumps(FACTS))
        (stage / "program.hlo.gz").write_bytes(gzip.compress(TEXT.encode()))
        (stage / "errors").write_bytes(b"")

    monkeypatch.setattr(compiling, "_compile", compile_there)
    return done


def entry_of(tmp_path):
    (entry,) = (tmp_path / "deberta_jax" / "plans").iterdir()
    return entry


def assert_right(found, cached):
    assert (found.facts, found.hlo, found.cached) == (FACTS, TEXT, cached)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "binary": lambda path: path.write_bytes(b"\x1f\x8b\xff\xfe\0" * 9),
    "deep": lambda path: path.write_text('{"held":' * 100_000),
    "directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("forged", [False, True])
def test_damaged_files_are_compiled_again(compiled, tmp_path, caplog, forged):
    assert_right(compile_here(REQUEST), False)
    assert_right(compile_here(REQUEST), True)
    for count, (name, damage) in enumerate(DAMAGE.items(), 2):
        entry = entry_of(tmp_path)
        damage(entry / ("facts.json" if count % 2 else "program.hlo.gz"))
        if forged:  # with digests that fit
            write_checksums(entry, [path for path in entry.iterdir() if path.is_file() and path.name != CHECKSUMS])
        with caplog.at_level(logging.WARNING):
            assert_right(compile_here(REQUEST), False)
        assert len(compiled) == count, name
        assert "it is made anew" in caplog.records[-1].getMessage()
        assert_right(compile_here(REQUEST), True)


def test_flipped_bits_are_noticed(compiled, tmp_path):
    compile_here(REQUEST)
    rng = np.random.default_rng(0)
    for trial in range(30):
        path = sorted(path for path in entry_of(tmp_path).iterdir() if path.stat().st_size)[trial % 3]
        content = bytearray(path.read_bytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        assert_right(compile_here(REQUEST), False)


@pytest.mark.parametrize(
    "change",
    [
        {"held": {"parameters": "5"}},
        {"held": {"parameters": -1}},
        {"memory": {}},
        {"memory": None},
        {"memory": dict.fromkeys(MEMORY, 0.5)},
        {"too_large": {"message": "x"}},
        {"seconds": float("nan")},
        {"products": [1]},
    ],
)
def test_facts_of_another_form(change):
    check_facts(FACTS)
    with pytest.raises(InputError, match=r"facts\.json: is not what was written"):
        check_facts(FACTS | change)


def test_the_facts_of_programs_without_a_compiler_or_too_large():
    rest = {name: value for name, value in FACTS.items() if name != "memory"}
    check_facts(rest | {"products": 2.5e9})
    check_facts(rest | {"too_large": {"message": "Ran out of memory", "used": 1.5e9}})
    with pytest.raises(InputError):
        check_facts(rest)
