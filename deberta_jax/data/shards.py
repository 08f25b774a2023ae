"""A directory of token shards: what ``prepare`` writes and training maps into memory.

manifest.json        tokenizer, inputs, shards, counts; written last, so that its presence means a whole directory
unigrams.npy         int64 [vocab_size]: how often each id occurs
shard-00000.tokens   ids of the documents one after the other, little-endian uint16 (vocabularies to 65536) or uint32
shard-00000.lengths  tokens of each document, little-endian uint32
shard-00000.json     the shard's counts and hashes, and the place in the input where the next one begins
inputs.json          what the directory is made of: tokenizer, options, files
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.text import Tokenizer

MANIFEST, INPUTS, UNIGRAMS = "manifest.json", "inputs.json", "unigrams.npy"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Position:
    """Where in the input to go on: the file's number, the offset in its decompressed bytes (in parquet its rows), and
    the line, from 1."""

    file: int = 0
    offset: int = 0
    line: int = 1


@dataclasses.dataclass(frozen=True)
class Shard:
    """One shard's record; ``end`` is where the next begins."""

    name: str
    documents: int
    tokens: int
    tokens_sha256: str
    lengths_sha256: str
    end: Position

    @classmethod
    def read(cls, path: Path) -> "Shard":
        record = read_record(path)
        if record["name"] != path.stem:
            raise damaged(path, f"is the record of {record['name']}")
        end = Position(**{name: record["end"][name] for name in _POSITION})
        return cls(**{name: record[name] for name in _SHARD}, end=end)


@dataclasses.dataclass(frozen=True)
class Shards:
    """A prepared directory: ``ids`` memory maps, one a shard; ``lengths`` uint32, tokens of each document."""

    ids: tuple[np.ndarray, ...]
    lengths: np.ndarray
    unigrams: np.ndarray


# What is read of each record.
_TOKENIZER = {"fingerprint": str, "kind": str, "vocab_size": int}
_POSITION = {"file": int, "offset": int, "line": int}
_SHARD = {"name": str, "documents": int, "tokens": int, "tokens_sha256": str, "lengths_sha256": str}
_MADE_OF = {
    "version": int,
    "tokenizer": _TOKENIZER,
    "cut": str,
    "text": str,
    "shard_tokens": int,
    "inputs": [{"name": str}],
}
_COUNTS = {"documents": int, "tokens": int, "dtype": str, "shards": [_SHARD]}
_FIELDS = {INPUTS: _MADE_OF, MANIFEST: _MADE_OF | _COUNTS}  # of all other files: a shard's


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def manifest_of(directory: Path) -> Path:
    """The manifest of a finished directory, with the digests of all else. Raises InputError where there is none."""
    if not (directory / MANIFEST).is_file():
        raise InputError(f"{directory}: holds no {MANIFEST}; run `deberta-jax prepare` to its end, or give text files")
    return directory / MANIFEST


def open_shards(directory: Path, tokenizer: Tokenizer) -> Shards:
    """The shards of a finished directory.

    Raises:
      InputError: unfinished, made with another tokenizer, or with a file that is missing or of another size than it
        was written in (``prepare`` run again compares the hashes too), or of another version.
    """
    manifest = read_record(manifest_of(directory))
    check_tokenizer(directory, manifest["tokenizer"], tokenizer)
    dtype = token_dtype(tokenizer.vocab_size)
    ids, lengths = [], []
    for entry in manifest["shards"]:
        name = entry["name"]
        ids.append(_mapped(directory / f"{name}.tokens", dtype, entry["tokens"]))
        lengths.append(_mapped(directory / f"{name}.lengths", np.dtype("<u4"), entry["documents"]))
        if int(lengths[-1].sum(dtype=np.int64)) != entry["tokens"]:
            raise damaged(directory / f"{name}.lengths", "the documents do not add up")
    try:
        unigrams = storage.mapped_npy(directory / UNIGRAMS)
    except (OSError, ValueError, EOFError):
        raise damaged(directory / UNIGRAMS, "missing or cut short") from None
    if unigrams.shape != (tokenizer.vocab_size,) or int(unigrams.sum()) != manifest["tokens"]:
        raise damaged(directory / UNIGRAMS, "the counts do not add up")
    return Shards(tuple(ids), np.concatenate(lengths), unigrams)


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    size = path.stat().st_size if path.is_file() else -1
    if size != count * dtype.itemsize:
        raise damaged(path, f"{size} bytes, {count * dtype.itemsize} were written" if size >= 0 else "missing")
    return storage.mapped_array(path, dtype)


def damaged(path: Path, why: str) -> InputError:
    # Without a record of what it was made of, nothing in a directory can be gone on with.
    what = {INPUTS: f"the directory {path.parent}", MANIFEST: "it"}.get(path.name, f"{path.stem}.* and {MANIFEST}")
    return InputError(f"{path}: {why}; delete {what} and run the same `deberta-jax prepare` again")


def check_tokenizer(directory: Path, record: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raises InputError where a directory was made with another tokenizer."""
    if record["fingerprint"] != tokenizer.fingerprint():
        raise InputError(
            f"{directory}: was made with another tokenizer ({record['kind']}, {record['vocab_size']} ids, "
            f"{record['fingerprint'][:12]}; this one is {tokenizer.kind}, {tokenizer.vocab_size} ids, "
            f"{tokenizer.fingerprint()[:12]}); prepare the text with this one, into another directory"
        )


def read_record(path: Path) -> dict[str, Any]:
    """One of a directory's JSON files, with all the fields that are ever read of it.

    Raises:
      InputError: unreadable, of another version of this package, or without such a field.
    """
    try:
        record = storage.read_json(path)
    except (OSError, ValueError) as error:
        raise damaged(path, f"not readable ({error})") from None
    version = record.get("version", VERSION) if isinstance(record, dict) else VERSION
    if version != VERSION:
        raise InputError(
            f"{path}: is of version {version}, expected {VERSION}; prepare the text again, into another directory"
        )
    if not _fits(record, _FIELDS.get(path.name, _SHARD | {"end": _POSITION})):
        raise damaged(path, "is not what was written (a field is missing or of another type)")
    return record


def _fits(value: Any, expected: Any) -> bool:
    """Whether it is as ``expected``: a type, a mapping of fields, or a list of one sort, which is not empty."""
    if isinstance(expected, dict):
        return isinstance(value, dict) and all(_fits(value.get(name), each) for name, each in expected.items())
    if isinstance(expected, list):
        return isinstance(value, list) and len(value) > 0 and all(_fits(each, expected[0]) for each in value)
    return type(value) is expected


def write_record(path: Path, record: Any) -> None:
    """JSON in one rename, on the disk before it has its name."""
    storage.write_text(path, json.dumps(record, indent=1) + "\n")


class Writer:
    """Writes one shard; it is there once ``close`` has written its record."""

    def __init__(self, directory: Path, number: int, dtype: np.dtype):
        self.directory, self.name, self.dtype = directory, f"shard-{number:05d}", dtype
        self.staged = storage.StagedFile(directory / f"{self.name}.tokens")
        self.hash = hashlib.sha256()
        self.tokens = 0
        self.lengths: list[np.ndarray] = []

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Tokens, and the lengths of the documents that end in them."""
        raw = ids.astype(self.dtype).tobytes()
        self.staged.file.write(raw)
        self.hash.update(raw)
        self.tokens += len(ids)
        if len(lengths):
            if int(lengths.max()) >= 1 << 32:
                raise InputError(f"a document of {int(lengths.max())} tokens; the most that fit are {(1 << 32) - 1}")
            self.lengths.append(lengths.astype("<u4"))

    def close(self, end: Position) -> Shard:
        lengths = np.concatenate([np.empty(0, "<u4"), *self.lengths]).tobytes()
        self.staged.keep()
        storage.write_bytes(self.directory / f"{self.name}.lengths", lengths)
        hashes = self.hash.hexdigest(), hashlib.sha256(lengths).hexdigest()
        shard = Shard(self.name, len(lengths) // 4, self.tokens, *hashes, end)
        write_record(self.directory / f"{self.name}.json", dataclasses.asdict(shard))
        return shard

    def drop(self) -> None:
        """What has been written of a shard that will not be finished goes."""
        self.staged.drop()
