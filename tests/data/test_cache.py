"""The cache of tokens: what is damaged, flipped, forged or another user's is made again, never trained on."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.data.cache import cached_features
from deberta_jax.data.feature_checks import Bounds, check_features
from deberta_jax.data.features import choice_features, make_features, span_features, word_features
from deberta_jax.errors import InputError
from deberta_jax.storage import CHECKSUMS, write_checksums
from tests.made import make_tokenizer

IDENTITY = {"a": [1, "b"]}
TEXTS = ["ban tell", "ko mu ri", "tell", "mu"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("cache"))


def kinds_of(tokenizer):
    """Features of every kind of task, and their bounds."""
    bounds = Bounds(vocab_size=tokenizer.vocab_size, labels=3, rows=4, max_length=16)
    texts = lambda labels: make_features(tokenizer, TEXTS, TEXTS, max_length=16, labels=labels)
    words = [text.split() for text in TEXTS]
    return {
        "classes": (texts(np.array([0, 2, 1, 0], np.int32)), bounds),
        "no labels": (texts(None), bounds),
        "several": (texts(np.eye(4, 3, dtype=np.float32)), bounds),
        "numbers": (texts(np.array([0.5, -1, 3, 0], np.float32)), dataclasses.replace(bounds, labels=1)),
        "words": (word_features(tokenizer, words, [[0] * len(w) for w in words], max_length=8), bounds),
        "answers": (
            span_features(
                tokenizer, ["tell"] * 4, [t * 9 for t in TEXTS], [(0, 2), None, (1, 3), None], max_length=16, stride=4
            ),
            dataclasses.replace(bounds, labels=2),
        ),
        "choices": (
            choice_features(
                tokenizer,
                [["ban"] * 2, ["ko"] * 3] * 2,
                [TEXTS[:2], TEXTS[:3]] * 2,
                max_length=16,
                labels=np.array([1, 2, 0, 0], np.int32),
            ),
            dataclasses.replace(bounds, labels=1),
        ),
    }


KINDS = ("classes", "no labels", "several", "numbers", "words", "answers", "choices")


class Cache:
    """A cache of one entry, which counts how often its features were made."""

    def __init__(self, directory, features, bounds):
        self.directory, self.features, self.bounds, self.made = directory, features, bounds, 0

    def __call__(self):
        def make():
            self.made += 1
            return [self.features]

        return cached_features(IDENTITY, make, self.directory, self.bounds)

    @property
    def entry(self):
        (entry,) = (self.directory / "tokens").iterdir()
        return entry

    def assert_right(self, found):
        for field in dataclasses.fields(self.features):
            ours, theirs = getattr(found, field.name), getattr(self.features, field.name)
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)

    def assert_healed(self):
        """The features are made once more, and then come from the disk again."""
        before = self.made
        self.assert_right(self())
        assert self.made == before + 1
        again = self()
        self.assert_right(again)
        assert isinstance(again.ids, np.memmap)
        assert self.made == before + 1


@pytest.fixture
def cache(tokenizer, tmp_path):
    features, bounds = kinds_of(tokenizer)["words"]
    cache = Cache(tmp_path, features, bounds)
    cache()
    return cache


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_every_kind_are_kept_without_a_warning(tokenizer, tmp_path, caplog, kind):
    features, bounds = kinds_of(tokenizer)[kind]
    cache = Cache(tmp_path, features, bounds)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.assert_right(cache())
    assert cache.made == 1
    assert not caplog.records


class Made(Exception):
    """Says that the features would be made again."""


def test_150_flipped_bits_are_all_noticed(cache, tmp_path):
    def make():
        raise Made

    use = lambda: cached_features(IDENTITY, make, cache.directory, cache.bounds)
    entry, whole = cache.entry, tmp_path / "whole"
    shutil.copytree(entry, whole)
    files = sorted(path.name for path in whole.iterdir())
    assert {*files} >= {"ids.npy", "labels.npy", "rest.json", CHECKSUMS}
    rng = np.random.default_rng(0)
    for trial in range(150):
        path = entry / files[trial % len(files)]
        content = bytearray(path.read_bytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(Made):
            use()
        assert not entry.exists()
        shutil.copytree(whole, entry)
    cache.assert_right(use())


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "binary": lambda path: path.write_bytes(b"\x93NUMPY\xff\xfe\0\0" * 9),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a list": lambda path: path.write_text("[1]"),
    "a directory": as_directory,
    "a pipe": as_pipe,
}


@pytest.mark.parametrize("name", ["ids.npy", "rest.json", CHECKSUMS])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_again(cache, caplog, name, damage):
    DAMAGE[damage](cache.entry / name)
    with caplog.at_level(logging.WARNING):
        cache.assert_healed()
    (told,) = (record.getMessage() for record in caplog.records)
    assert str(cache.entry) in told
    assert "it is made anew" in told
    assert "\n" not in told


def test_an_entry_that_is_no_directory_is_made_again(cache, tmp_path):
    entry = cache.entry
    for put in (
        lambda: entry.write_text("x"),
        lambda: os.mkfifo(entry),
        lambda: entry.symlink_to(tmp_path / "nowhere"),
        lambda: entry.symlink_to(entry),
        lambda: entry.mkdir(),
    ):
        shutil.rmtree(entry)
        put()
        cache.assert_healed()


FORGED = {
    "ids": {"ids": lambda a: np.where(np.arange(len(a)) == 3, -7, a).astype(np.int32)},
    "large ids": {"ids": lambda a: (a + 400).astype(np.int32)},
    "labels": {"labels": lambda a: np.where(a >= 0, 3, a).astype(np.int32)},
    "negative labels": {"labels": lambda a: np.where(a >= 0, -1, a).astype(np.int32)},
    "dtype": {"ids": lambda a: a.astype(np.int64)},
    "objects": {"words": lambda a: a.astype("S4")},
    "starts": {"starts": lambda a: a[::-1].copy()},
    "short starts": {"starts": lambda a: a[:-1]},
    "long": {"starts": lambda a: np.array([0, a[-1]])},
    "rows": {"row": lambda a: (a + 1).astype(np.int32)},
    "types": {"types": lambda a: (a + 9).astype(np.int8)},
    "another": {"more": lambda a: a},
}


def forge(entry: Path, changes) -> None:
    """Changes arrays of an entry, with digests that fit, as somebody could who can write to the cache."""
    for name, change in changes.items():
        path = entry / f"{name}.npy"
        array = np.load(path) if path.exists() else np.arange(3)
        np.save(path, change(array))
    write_checksums(entry, [path for path in entry.iterdir() if path.name != CHECKSUMS])


@pytest.mark.parametrize("case", FORGED)
def test_features_that_no_tokenizer_makes_are_made_again_though_the_digests_fit(cache, case):
    forge(cache.entry, FORGED[case])
    cache.assert_healed()


@pytest.mark.parametrize(
    "rest", [{"level": "x"}, {"choices": 0}, {"choices": -1}, {"choices": 2}, {"cut": -1}, {"cut": 99}, {"ids": [1]}]
)
def test_other_fields_that_are_impossible(cache, rest):
    path = cache.entry / "rest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | rest))
    forge(cache.entry, {})
    cache.assert_healed()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_outside_their_range_are_refused_for_every_kind(tokenizer, kind):
    features, bounds = kinds_of(tokenizer)[kind]
    check_features(features, bounds)
    with pytest.raises(InputError, match=r"^ids has the value"):
        check_features(features, dataclasses.replace(bounds, vocab_size=int(features.ids.max())))
    with pytest.raises(InputError):
        check_features(features, dataclasses.replace(bounds, rows=3))
    with pytest.raises(InputError, match="impossible lengths"):
        check_features(features, dataclasses.replace(bounds, max_length=int(features.lengths.max()) - 1))
    if features.labels is not None:
        wrong = np.where(features.labels == features.labels.max(), 1000, features.labels).astype(features.labels.dtype)
        if wrong.dtype == np.float32:
            wrong[0] = np.inf
        with pytest.raises(InputError, match=r"^labels "):
            check_features(dataclasses.replace(features, labels=wrong), bounds)
        with pytest.raises(InputError, match=r"^labels "):
            check_features(dataclasses.replace(features, labels=features.labels[1:]), bounds)


_USERS = """
import json, os, shutil, sys
from pathlib import Path
import numpy as np
from deberta_jax.data.cache import cached_features
from deberta_jax.data.feature_checks import Bounds
from deberta_jax.data.features import Features

ids = np.arange(5, dtype=np.int32)
features = Features(ids=ids, types=np.zeros(5, np.int8), starts=np.array([0, 2, 5]))
bounds = Bounds(vocab_size=5, labels=0, rows=2, max_length=8)
tokens = Path(sys.argv[1]) / "tokens"

def use(user):
    made = []
    def make():
        made.append(1)
        return [features]
    child = os.fork()
    if not child:
        os.setgroups([]), os.setgid(user), os.setuid(user)
        for _ in range(2):
            found = cached_features("x", make, tokens.parent, bounds)
            assert found.ids.tolist() == ids.tolist() and found.starts.tolist() == [0, 2, 5]
        print(json.dumps([len(made), type(found.ids).__name__, len(list(tokens.iterdir()))]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0

use(0)
use(65534)
(entry,) = tokens.iterdir()
(entry / "ids.npy").write_bytes(b"")
use(65534)
tokens.chmod(0o755)
shutil.rmtree(entry.with_name(entry.name + ".65534"))
use(65534)
use(0)
use(65534)
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to act as two users")
def test_two_users_share_a_cache():
    """The second one reads what the first has written; what is damaged it cannot remove, and makes its own."""
    home = Path(tempfile.mkdtemp(prefix="deberta_jax-shared-"))
    try:
        home.chmod(0o755)
        shared = home / "cache"
        (shared / "tokens").mkdir(parents=True)
        (shared / "tokens").chmod(0o1777)
        found = subprocess.run([sys.executable, "-c", _USERS, str(shared)], capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stderr
        # Made, read; damaged, and made beside; kept in memory where nothing can be written; healed by its owner.
        assert [json.loads(line) for line in found.stdout.splitlines()] == [
            [1, "memmap", 1],
            [0, "memmap", 1],
            [1, "memmap", 2],
            [2, "ndarray", 1],
            [1, "memmap", 1],
            [0, "memmap", 1],
        ]
        assert "it is made anew" in found.stderr
        assert "tokens are not kept for the next run" in found.stderr
    finally:
        shutil.rmtree(home)


def test_an_entry_of_an_older_version_is_used_if_it_is_possible_and_listed_from_then_on(cache):
    def make_older():
        (cache.entry / CHECKSUMS).unlink()
        rest = json.loads((cache.entry / "rest.json").read_text())
        del rest["digests_are_listed"]
        (cache.entry / "rest.json").write_text(json.dumps(rest))

    make_older()
    cache.assert_right(cache())
    assert cache.made == 1
    assert (cache.entry / CHECKSUMS).is_file()
    (cache.entry / "ids.npy").write_bytes((cache.entry / "ids.npy").read_bytes()[:-1] + b"\1")
    cache.assert_healed()
    make_older()
    forged = FORGED["ids"]["ids"](np.load(cache.entry / "ids.npy"))
    np.save(cache.entry / "ids.npy", forged)
    cache.assert_healed()
