"""Directories of token shards that are damaged, or that somebody else has written."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from deberta_jax.data.corpus import open_corpus
from deberta_jax.data.prepare import Prepare, prepare
from deberta_jax.data.shards import read_record, write_record
from deberta_jax.errors import InputError
from tests.made import make_tokenizer, rows


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A tokenizer, a text, and its shards in ``whole``."""
    home = tmp_path_factory.mktemp("shards")
    tokenizer = make_tokenizer(home / "tokenizer")
    (home / "a.txt").write_text("\n".join(text for text, _ in rows(40)))
    prepare(options(home, home / "whole"), tokenizer)
    return home, tokenizer


def options(home, output):
    return Prepare(inputs=(str(home / "a.txt"),), output=str(output), shard_tokens=150)


@pytest.fixture
def shards(home, tmp_path):
    shutil.copytree(home[0] / "whole", tmp_path / "out")
    return tmp_path / "out"


def refused(directory, tokenizer):
    """The line of opening the directory for training."""
    with pytest.raises(InputError) as raised:
        open_corpus([directory], tokenizer)
    assert str(directory) in str(raised.value)
    assert len(str(raised.value)) < 1000
    return str(raised.value)


def changed(record, path, value):
    """The record with another value at a path of keys."""
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return record


SHARD = ("shards", 0)
FORGED = [
    ((*SHARD, "name"), "../whole/shard-00000"),
    ((*SHARD, "name"), "/etc/passwd"),
    ((*SHARD, "name"), "shard-00000/../shard-00000"),
    ((*SHARD, "name"), "shard-٠٠٠٠٠"),
    ((*SHARD, "name"), "shard-00001"),
    ((*SHARD, "name"), 5),
    ((*SHARD, "tokens"), -1),
    ((*SHARD, "tokens"), 10**18),
    ((*SHARD, "tokens"), True),
    ((*SHARD, "documents"), -1),
    ((*SHARD, "documents"), 0.5),
    ((*SHARD, "tokens_sha256"), "0" * 64),
    ((*SHARD, "lengths_sha256"), None),
    (("shards",), []),
    (("shards",), {}),
    (("shards", 0), [[[]]]),
    (("tokens",), 1),
    (("documents",), -5),
    (("dtype",), 5),
    (("version",), ["x" * 10**6]),
    (("tokenizer",), {"fingerprint": "x", "kind": "\x1b[31m" * 10**5, "vocab_size": 3}),
    (("tokenizer", "fingerprint"), "x" * 10**6),
    (("tokenizer", "vocab_size"), "391"),
]


@pytest.mark.parametrize("own_hash", ["right", "none"])
def test_a_manifest_that_somebody_else_has_written(home, shards, own_hash):
    manifest = read_record(shards / "manifest.json")
    for path, value in FORGED:
        record = changed(json.loads(json.dumps(manifest)), path, value)
        if own_hash == "right":
            write_record(shards / "manifest.json", record)
        else:
            (shards / "manifest.json").write_text(json.dumps(record))
        line = refused(shards, home[1])
        assert "delete" in line or "prepare the text" in line, path
        assert "\x1b" not in line
    shutil.copy(home[0] / "whole" / "manifest.json", shards)
    open_corpus([shards], home[1])


def test_records_without_a_hash_are_those_of_older_versions(home, shards):
    for path in shards.glob("*.json"):
        record = json.loads(path.read_text())
        assert record.pop("sha256") == hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps(record))
    open_corpus([shards], home[1])
    prepare(options(home[0], shards), home[1])


def test_every_flipped_bit_is_noticed_or_has_no_effect(home, shards):
    _, tokenizer = home
    right = open_corpus([shards], tokenizer)
    ids, lengths = np.concatenate(right.parts), np.array(right.lengths)
    files = sorted(path for path in shards.iterdir() if path.name[:6] in ("manife", "unigra") or path.suffix != ".json")
    rng, noticed = np.random.default_rng(0), 0
    for trial in range(120):
        path = files[trial % len(files)]
        whole = path.read_bytes()
        content = bytearray(whole)
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        try:
            found = open_corpus([shards], tokenizer)
        except InputError:
            noticed += 1
        else:
            np.testing.assert_array_equal(np.concatenate(found.parts), ids)
            np.testing.assert_array_equal(found.lengths, lengths)
        path.write_bytes(whole)
    assert noticed > 100


@pytest.mark.parametrize("name", ["shard-00000.json", "inputs.json", "manifest.json"])
def test_a_flipped_digit_in_a_record_is_noticed_by_prepare(home, shards, name):
    text = (shards / name).read_text()
    at = next(i for i in range(len(text) // 2, len(text)) if text[i] in "12345")
    (shards / name).write_text(text[:at] + str(int(text[at]) + 1) + text[at + 1 :])
    with pytest.raises(InputError, match=rf"{name}: is not what was written .its sha256 differs.; delete"):
        prepare(options(home[0], shards), home[1])
