"""Reads and writes directories of token shards, which ``prepare`` makes and training maps into memory.

manifest.json        tokenizer, inputs, shards, counts; written last, so a directory that has it is complete
unigrams.npy         int64 [vocab_size]: how often each id occurs
shard-00000.tokens   ids of the documents one after the other, little-endian uint16 (vocabularies to 65536) or uint32
shard-00000.lengths  tokens of each document, little-endian uint32
shard-00000.json     counts and hashes of the shard, and the position in the input where the next one begins
inputs.json          what the directory is made from: tokenizer, options, files
"""

import dataclasses
import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.text import Tokenizer

MANIFEST, INPUTS, UNIGRAMS = "manifest.json", "inputs.json", "unigrams.npy"
VERSION = 1

_OWN_HASH = "sha256"
_HASHED_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class Position:
    """Holds a position in the input."""

    file: int = 0
    """Number of the file, from 0."""
    offset: int = 0
    """Offset in its decompressed bytes, or rows in parquet."""
    line: int = 1
    """Line, or row, from 1."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Holds the record of a shard; ``end`` is the position in the input where the next one begins."""

    name: str
    documents: int
    tokens: int
    tokens_sha256: str
    lengths_sha256: str
    end: Position

    @classmethod
    def read(cls, path: Path) -> "Shard":
        """Reads the record of a shard. Raises InputError if it is damaged."""
        record = read_record(path)
        if record["name"] != path.stem:
            raise damaged(path, f"is the record of {record['name']}")
        end = Position(**{name: record["end"][name] for name in _POSITION})
        return cls(**{name: record[name] for name in _SHARD}, end=end)


@dataclasses.dataclass(frozen=True)
class Shards:
    """Holds the opened shards of a directory."""

    ids: tuple[np.ndarray, ...]
    """Ids of each shard, uint16 or uint32, mapped into memory."""
    lengths: np.ndarray
    """uint32 [documents], the tokens of each document."""
    unigrams: np.ndarray
    """int64 [vocab_size], how often each id occurs."""


# The fields that are read of each record, with their types.
_TOKENIZER = {"fingerprint": str, "kind": str, "vocab_size": int}
_POSITION = {"file": int, "offset": int, "line": int}
_SHARD = {
    "name": re.compile("shard-[0-9]{5,9}"),
    "documents": int,
    "tokens": int,
    "tokens_sha256": str,
    "lengths_sha256": str,
}
_MADE_OF = {
    "version": int,
    "tokenizer": _TOKENIZER,
    "cut": str,
    "text": str,
    "shard_tokens": int,
    "inputs": [{"name": str}],
}
_COUNTS = {"documents": int, "tokens": int, "dtype": str, "shards": [_SHARD]}
_FIELDS = {INPUTS: _MADE_OF, MANIFEST: _MADE_OF | _COUNTS}  # all other files are records of shards


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of the ids of a vocabulary in shards."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def manifest_of(directory: Path) -> Path:
    """Returns the path of the manifest, which has the hashes of all other files. Raises InputError if there is none."""
    if not (directory / MANIFEST).is_file():
        raise InputError(f"{directory}: holds no {MANIFEST}; run `deberta-jax prepare` to its end, or give text files")
    return directory / MANIFEST


def open_shards(directory: Path, tokenizer: Tokenizer) -> Shards:
    """Opens the shards of a complete directory. Checks all sizes, and the hashes of 256 MB of shards, chosen at random.

    Running ``prepare`` again checks the hashes of all shards.

    Raises:
      InputError: the directory is incomplete, of another version, was made with another tokenizer, or has a file that
        is missing, has the wrong size or is not what was written.
    """
    manifest = read_record(manifest_of(directory))
    check_tokenizer(directory, manifest["tokenizer"], tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    ids, lengths, left = {}, {}, _HASHED_BYTES
    for entry in random.sample(manifest["shards"], len(manifest["shards"])):
        name = entry["name"]
        ids[name] = _mapped(directory / f"{name}.tokens", dtype, entry["tokens"])
        lengths[name] = _mapped(directory / f"{name}.lengths", np.dtype("<u4"), entry["documents"])
        if int(lengths[name].sum(dtype=np.int64)) != entry["tokens"]:
            raise damaged(directory / f"{name}.lengths", "the documents do not add up")
        for kind, array in (("tokens", ids[name]), ("lengths", lengths[name])):
            if left > 0 and hashlib.sha256(array).hexdigest() != entry[f"{kind}_sha256"]:
                raise damaged(directory / f"{name}.{kind}", "is not what was written (its sha256 differs)")
            left -= array.nbytes
    names = [entry["name"] for entry in manifest["shards"]]
    if len(set(names)) < len(names) or sum(entry["tokens"] for entry in manifest["shards"]) != manifest["tokens"]:
        raise damaged(directory / MANIFEST, "the shards do not add up")
    unigrams = _unigrams(directory / UNIGRAMS, tokenizer.vocab_size, manifest["tokens"])
    return Shards(tuple(ids[name] for name in names), np.concatenate([lengths[name] for name in names]), unigrams)


def _unigrams(path: Path, vocab_size: int, tokens: int) -> np.ndarray:
    """Returns how often each id occurs, int64 [vocab_size]. Raises InputError if the file is damaged."""
    try:
        found = storage.mapped_npy(path)
    except Exception:  # numpy parses the header as Python, which fails in many ways
        raise damaged(path, "missing or cut short") from None
    right = found.dtype == np.int64 and found.shape == (vocab_size,)
    if not right or int(found.min()) < 0 or int(found.sum()) != tokens:
        raise damaged(path, "the counts do not add up")
    return found


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """Maps ``count`` numbers of a file into memory. Raises InputError if the file has another size."""
    size = path.stat().st_size if path.is_file() else -1
    if size != count * dtype.itemsize:
        raise damaged(path, f"{size} bytes, {count * dtype.itemsize} were written" if size >= 0 else "missing")
    return storage.mapped_array(path, dtype)


def damaged(path: Path, why: str) -> InputError:
    """Returns the error for a damaged file, which says what to delete."""
    # Without the record of its inputs, a directory cannot be continued.
    what = {INPUTS: f"the directory {path.parent}", MANIFEST: "it"}.get(path.name, f"{path.stem}.* and {MANIFEST}")
    return InputError(f"{path}: {why}; delete {what} and run the same `deberta-jax prepare` again")


def check_tokenizer(directory: Path, record: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Checks that a directory was made with this tokenizer. Raises InputError otherwise."""
    if record["fingerprint"] != tokenizer.fingerprint():
        raise InputError(
            f"{directory}: was made with another tokenizer ({brief(record['kind'])}, {record['vocab_size']} ids, "
            f"{brief(record['fingerprint'], 12)}; this one is {tokenizer.kind}, {tokenizer.vocab_size} ids, "
            f"{tokenizer.fingerprint()[:12]}); prepare the text with this one, into another directory"
        )


def read_record(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a directory, and checks that it has all fields that are used.

    Raises:
      InputError: the file is unreadable, of another version, is not what was written, or lacks a field.
    """
    try:
        record = storage.read_json_object(path, storage.LARGE)
    except InputError as error:
        raise damaged(path, f"not readable ({str(error).removeprefix(f'{path}: ')})") from None
    version = record.get("version", VERSION)
    if version != VERSION:
        raise InputError(
            f"{path}: is of version {shown(version)}, expected {VERSION}; prepare the text again, into another "
            "directory"
        )
    own = record.pop(_OWN_HASH, None)  # older records have none
    if own is not None and own != _hash_of(record):
        raise damaged(path, "is not what was written (its sha256 differs)")
    if not _fits(record, _FIELDS.get(path.name, _SHARD | {"end": _POSITION})):
        raise damaged(path, "is not what was written (a field is missing, of another type, or impossible)")
    return record


def _fits(value: Any, expected: Any) -> bool:
    """Returns whether a value has the expected form.

    Args:
      value: a JSON value.
      expected: a type, where integers must not be negative; a dict of forms; a list of one form, not empty; or a
        pattern that the whole text must match.
    """
    if isinstance(expected, dict):
        return isinstance(value, dict) and all(_fits(value.get(name), each) for name, each in expected.items())
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) > 0 and all(_fits(each, expected[0]) for each in value)
    if isinstance(expected, re.Pattern):
        return isinstance(value, str) and expected.fullmatch(value) is not None
    return type(value) is expected and (expected is not int or value >= 0)


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON file of a directory atomically, with a hash of its own contents."""
    storage.write_text(path, json.dumps(record | {_OWN_HASH: _hash_of(record)}, indent=1) + "\n")


def _hash_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class Writer:
    """Writes one shard, which exists when ``close`` has written its record."""

    def __init__(self, directory: Path, number: int, dtype: np.dtype):
        self.directory, self.name, self.dtype = directory, f"shard-{number:05d}", dtype
        self.staged = storage.StagedFile(directory / f"{self.name}.tokens")
        self.hash = hashlib.sha256()
        self.tokens = 0
        self.lengths: list[np.ndarray] = []

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Adds tokens, and the lengths of the documents that end in them.

        Raises:
          InputError: a document has 2**32 tokens or more.
        """
        raw = ids.astype(self.dtype).tobytes()
        self.staged.file.write(raw)
        self.hash.update(raw)
        self.tokens += len(ids)
        if len(lengths):
            if int(lengths.max()) >= 1 << 32:
                raise InputError(f"a document of {int(lengths.max())} tokens; the most that fit are {(1 << 32) - 1}")
            self.lengths.append(lengths.astype("<u4"))

    def close(self, end: Position) -> Shard:
        """Finishes the shard and returns its record. ``end`` is where the next one begins in the input."""
        lengths = np.concatenate([np.empty(0, "<u4"), *self.lengths]).tobytes()
        self.staged.keep()
        storage.write_bytes(self.directory / f"{self.name}.lengths", lengths)
        hashes = self.hash.hexdigest(), hashlib.sha256(lengths).hexdigest()
        shard = Shard(self.name, len(lengths) // 4, self.tokens, *hashes, end)
        write_record(self.directory / f"{self.name}.json", dataclasses.asdict(shard))
        return shard

    def drop(self) -> None:
        """Removes what was written of a shard that will not be finished."""
        self.staged.drop()
