"""Mutated entries of the cache of tokens, of the cache of plans, and directories of prepared text.

Whatever is in them: an entry of a cache is made again with the right features, or is as it was; of prepared text one
line says what to delete, or the tokens are right. Where the digests were made to fit as well ("forged"), other features
are possible, but none that no tokenizer and no task can make. ``-m long`` tries 2,000 and writes what became of them to
``benchmarks/results/fuzz_caches.json``.
"""

import collections
import dataclasses
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.data.cache import cached_features
from deberta_jax.data.corpus import open_corpus
from deberta_jax.data.feature_checks import Bounds
from deberta_jax.data.features import word_features
from deberta_jax.data.prepare import Prepare, prepare
from deberta_jax.data.shards import write_record
from deberta_jax.errors import InputError
from deberta_jax.storage import CHECKSUMS, write_checksums
from tests.fuzz.mutations import mutated_bytes, mutated_json
from tests.made import make_tokenizer, rows

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz_caches.json"
KINDS = ("tokens", "forged tokens", "shards", "forged shards")


class Made(Exception):
    """Says that the features would be made again."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tokenizer; a cache of one entry in ``cache``; prepared text in ``shards``."""
    home = tmp_path_factory.mktemp("fuzz")
    tokenizer = make_tokenizer(home / "tokenizer")
    words = [text.split() for text, _ in rows(12)]
    features = word_features(tokenizer, words, [[i % 3 for i in range(len(w))] for w in words], max_length=12)
    bounds = Bounds(vocab_size=tokenizer.vocab_size, labels=3, rows=12, max_length=12)
    cached_features("x", lambda: [features], home / "cache", bounds)
    (home / "a.txt").write_text("\n".join(text for text, _ in rows(40)))
    prepare(Prepare(inputs=(str(home / "a.txt"),), output=str(home / "shards")), tokenizer)
    corpus = open_corpus([home / "shards"], tokenizer)
    right = np.concatenate(corpus.parts), np.array(corpus.lengths)
    return home, tokenizer, features, bounds, right


def mutate(directory, rng, forged):
    """Changes one to three files of a directory; ``forged``: with digests that fit the changed files."""
    files = sorted(path for path in directory.iterdir() if not (forged and path.name == CHECKSUMS))
    for path in rng.choice(files, int(rng.integers(1, 4))):
        kind = int(rng.integers(12))
        if kind == 0:
            path.unlink(missing_ok=True)
        elif path.is_file() and path.suffix == ".json" and kind < 7:
            try:
                content = mutated_json(json.loads(path.read_bytes()), rng)
            except ValueError:  # changed already
                continue
            path.write_bytes(content)
        elif path.is_file():
            path.write_bytes(mutated_bytes(path.read_bytes(), rng))
    if not forged:
        return
    if (directory / CHECKSUMS).is_file():
        write_checksums(directory, [path for path in directory.iterdir() if path.name != CHECKSUMS])
    for path in directory.glob("*.json"):
        if "manifest" in path.name:
            try:
                record = json.loads(path.read_bytes())
                record.pop("sha256", None)
                write_record(path, record)
            except (ValueError, AttributeError, RecursionError):
                pass


def use_cache(home, directory):
    """What becomes of a mutated entry of the cache of tokens."""
    _, _, features, bounds, _ = home

    def make():
        raise Made

    try:
        found = cached_features("x", make, directory, bounds)
    except Made:
        assert not list((directory / "tokens").iterdir()), "what is damaged is removed"
        return "made again", ""
    same = all(
        np.array_equal(getattr(found, field.name), getattr(features, field.name))
        for field in dataclasses.fields(features)
    )
    return ("as it was" if same else "other features"), ""


def use_shards(home, directory):
    """What becomes of mutated prepared text."""
    _, tokenizer, _, _, (ids, lengths) = home
    try:
        found = open_corpus([directory], tokenizer)
    except InputError as error:
        return "refused", str(error)
    same = np.array_equal(np.concatenate(found.parts), ids) and np.array_equal(found.lengths, lengths)
    return ("as it was" if same else "other features"), ""


def outcomes(home, directory, kind, seed, count):
    """Yields outcome, line and seconds of mutants. Any exception but InputError ends the test."""
    source = home[0] / ("cache" if "tokens" in kind else "shards")
    for number in range(count):
        rng = np.random.default_rng([seed, KINDS.index(kind), number])
        target = directory / "mutant"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        inner = next((target / "tokens").iterdir()) if "tokens" in kind else target
        mutate(inner, rng, kind.startswith("forged"))
        began = time.monotonic()
        try:
            outcome, line = (use_cache if "tokens" in kind else use_shards)(home, target)
        except Exception as error:
            raise AssertionError(f"{kind}, mutant {number}: {error!r}") from error
        yield outcome, line, time.monotonic() - began


def check(found, kind):
    """Checks the outcomes, and returns their numbers."""
    for outcome, line, seconds in found:
        assert outcome != "other features" or kind.startswith("forged"), kind
        assert seconds < 5
        assert "\n" not in line
        assert line.isprintable()
        assert len(line) < 4100
        assert not line or ": " in line
    return dict(collections.Counter(outcome for outcome, _, _ in found))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_entries_and_directories(home, tmp_path, kind):
    counted = check(list(outcomes(home, tmp_path, kind, 1, 40)), kind)
    assert counted["made again" if "tokens" in kind else "refused"] > 10


@pytest.mark.long
def test_two_thousand(home, tmp_path):
    result: dict = {"seed": 2}
    for kind in KINDS:
        found = list(outcomes(home, tmp_path, kind, 2, 500))
        lines = collections.Counter(
            re.sub(r"\d+", "N", line.replace(str(tmp_path / "mutant"), "FOLDER"))[:70] for _, line, _ in found if line
        )
        result[kind] = {
            "mutants": len(found),
            **check(found, kind),
            "other exceptions, crashes, hangs": 0,
            "slowest took less than two seconds": max(seconds for *_, seconds in found) < 2,
            "most frequent messages": dict(lines.most_common(8)),
        }
    RESULTS.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
