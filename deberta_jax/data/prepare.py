"""Tokenises text files to a directory of token shards (``data.shards``), in parallel and resumable.

The files are read in order, in blocks of 1 MiB that depend only on the files. Worker processes tokenise the blocks, and
this process writes the results in the order of the blocks. So the result depends neither on the number of processes nor
on interruptions: finished shards are kept, and the next one begins where the last one ended. The memory does not grow
with the input.
"""

import dataclasses
import hashlib
import io
import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax import storage
from deberta_jax.data.documents import Block, CorpusOptions, blocks, encode_block, join_parts, text_files
from deberta_jax.data.files import stored
from deberta_jax.data.shards import (
    INPUTS,
    MANIFEST,
    UNIGRAMS,
    VERSION,
    Position,
    Shard,
    Writer,
    check_tokenizer,
    damaged,
    read_record,
    token_dtype,
    write_record,
)
from deberta_jax.errors import InputError
from deberta_jax.text import Tokenizer
from deberta_jax.text.bulk import BulkEncoder

_log = logging.getLogger(__name__)

SHARD_TOKENS = 1 << 25
# With less text, tokenising in this process takes less time than starting others.
_ALONE_BELOW = 1 << 23
_SAMPLE = 1 << 20
_OPTIONS = {"cut": "--documents", "text": "--text", "shard_tokens": "--shard-tokens"}

PrepareProgress = Callable[[int, int, int, int], None]
"""Called with the bytes read, the bytes of all files as they are stored, and the documents and tokens written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepare:
    """Says what to prepare, and how to divide it."""

    inputs: tuple[str, ...]
    """Files and patterns."""
    output: str
    """Directory of the shards."""
    source: CorpusOptions = dataclasses.field(default_factory=CorpusOptions)
    """How files are divided into documents."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens of a shard; it ends with the document that reaches this number."""
    workers: int = 0
    """Processes that tokenise; 0: one per core. The result does not depend on it."""

    def check(self) -> None:
        """Checks the values. Raises InputError for the first one that cannot be used."""
        if not self.inputs:
            raise InputError("--input: give a file or a pattern")
        if self.workers < 0:
            raise InputError(f"--workers {self.workers}: must be at least 0")
        if self.shard_tokens < 1:
            raise InputError(f"--shard-tokens {self.shard_tokens}: must be at least 1")


def prepare(options: Prepare, tokenizer: Tokenizer, progress: PrepareProgress | None = None) -> dict[str, Any]:
    """Writes a directory of shards, or continues one that was interrupted.

    A document longer than 1 MiB is tokenised in parts, split at spaces, which gives the same tokens. A line of jsonl,
    up to 64 MiB, and a row group of parquet are held in memory as a whole. A document has fewer than 2**32 tokens.

    A script must call this under ``if __name__ == "__main__"``, because worker processes import the script.

    Args:
      options: what to prepare.
      tokenizer: the tokenizer.
      progress: called after each block.

    Returns:
      The manifest.

    Raises:
      InputError: an input cannot be read or has no text; or the directory has other contents, is damaged, or was made
        from other inputs, with other options or with another tokenizer.
    """
    files = text_files(options.inputs)
    samples = [sample(file) for file in files]
    record = {
        "version": VERSION,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint(),
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
        },
        "cut": options.source.documents,
        "text": options.source.text,
        "shard_tokens": options.shard_tokens,
        "inputs": samples,
    }
    directory = storage.local_directory("--output", options.output)
    with _locked(directory, record, tokenizer):
        run = _Run(directory, files, [entry["bytes"] for entry in samples], options, tokenizer, progress)
        run.keep_finished()
        if (directory / MANIFEST).is_file():
            _log.info("%s: is finished, and all its shards are whole; nothing to do", directory)
            return read_record(directory / MANIFEST)
        try:
            run.write()
        except InputError:
            if not run.shards:
                for name in (INPUTS, UNIGRAMS):
                    storage.remove(directory / name)
            raise
        return run.finish(record)


def sample(file: str) -> dict[str, Any]:
    """Returns what identifies an input: its name, its size, and a hash of its first, middle and last 1 MiB."""
    digest = hashlib.sha256()
    with stored(file) as stream:
        size = stream.seek(0, io.SEEK_END)
        for start in sorted({0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)}):
            stream.seek(start)
            digest.update(stream.read(_SAMPLE))
    return {"name": file, "bytes": size, "samples_sha256": digest.hexdigest()}


@contextmanager
def _locked(directory: Path, record: dict[str, Any], tokenizer: Tokenizer) -> Iterator[None]:
    """Checks that the directory fits this run, and locks it against other processes."""
    storage.check_output_directory("--output", directory)
    there = [path for path in directory.iterdir() if not path.name.startswith(".")] if directory.is_dir() else []
    if there and not (directory / INPUTS).is_file():
        raise InputError(f"--output {directory}: is not empty and holds no prepared text; give another directory")
    if there:
        theirs = read_record(directory / INPUTS)
        check_tokenizer(directory, theirs["tokenizer"], tokenizer)
        for name, said in _OPTIONS.items():
            if theirs[name] != record[name]:
                raise InputError(
                    f"--output {directory}: was made with {said} {theirs[name]}, not {record[name]}; "
                    "give another directory or delete it"
                )
        if theirs["inputs"] != record["inputs"]:
            raise InputError(f"--output {directory}: {_other_input(theirs['inputs'], record['inputs'])}")
    with storage.locked_directory("--output", directory):
        if not (directory / INPUTS).is_file():
            write_record(directory / INPUTS, record)
        yield


def _other_input(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """Returns a message that names the first difference between two lists of inputs."""
    names, mine = [[entry["name"] for entry in entries] for entries in (theirs, ours)]
    if names != mine:
        different = next(
            (b for a, b in zip(names, mine, strict=False) if a != b), f"{len(mine)} files, not {len(names)}"
        )
        return f"was made of other input ({different}); give another directory or delete it"
    changed = next(b["name"] for a, b in zip(theirs, ours, strict=True) if a != b)
    return f"{changed} has changed since; give another directory or delete it"


class _Run:
    """Keeps finished shards and writes the others in one call of ``prepare``, and counts documents and tokens."""

    def __init__(
        self,
        directory: Path,
        files: list[str],
        sizes: list[int],
        options: Prepare,
        tokenizer: Tokenizer,
        progress: PrepareProgress | None,
    ):
        self.directory, self.files, self.sizes = directory, files, sizes
        self.options, self.tokenizer, self.progress = options, tokenizer, progress
        self.dtype = token_dtype(tokenizer.vocab_size)
        self.unigrams = np.zeros(tokenizer.vocab_size, np.int64)
        self.shards: list[Shard] = []
        self.documents = self.tokens = 0

    def keep_finished(self) -> None:
        """Keeps finished shards, after comparing them with their hashes, and removes unfinished ones."""
        finished = (self.directory / MANIFEST).is_file()
        names = [f"shard-{i:05d}" for i in range(len(list(self.directory.glob("shard-*.json"))) + 1)]
        if finished:
            names = [entry["name"] for entry in read_record(self.directory / MANIFEST)["shards"]]
        for name in names:
            files = [self.directory / f"{name}.{kind}" for kind in ("json", "tokens", "lengths")]
            missing = next((path for path in files if not path.is_file()), None)
            if missing is not None and finished:
                raise damaged(missing, "missing")
            if missing is not None:
                break
            self._keep(Shard.read(files[0]))
        if finished:
            unigrams = self.directory / UNIGRAMS
            if not unigrams.is_file() or storage.read_bytes(unigrams, storage.LARGE) != _npy(self.unigrams):
                raise damaged(unigrams, "missing or changed")
            return
        kept = {f"{shard.name}.{kind}" for shard in self.shards for kind in ("json", "tokens", "lengths")}
        for path in [*self.directory.glob("shard-*"), *self.directory.glob(".*.partial-*")]:
            if path.name not in kept:
                storage.remove(path)
        if self.shards:
            _log.info("%s: goes on after %d finished shards", self.directory, len(self.shards))

    def _keep(self, shard: Shard) -> None:
        """Counts a finished shard. Raises InputError if it differs from its hashes."""
        for kind, expected in (("tokens", shard.tokens_sha256), ("lengths", shard.lengths_sha256)):
            path = self.directory / f"{shard.name}.{kind}"
            digest = hashlib.sha256()
            with storage.opened(path) as file:
                while chunk := file.read(1 << 24):
                    digest.update(chunk)
                    if kind == "tokens" and not len(chunk) % self.dtype.itemsize:
                        ids = np.frombuffer(chunk, self.dtype)
                        if int(ids.max(initial=0)) >= len(self.unigrams):
                            raise damaged(path, "holds ids that are none")
                        self.unigrams += np.bincount(ids, minlength=len(self.unigrams))
            if digest.hexdigest() != expected:
                raise damaged(path, "is not what was written (its sha256 differs)")
        self.shards.append(shard)
        self.documents += shard.documents
        self.tokens += shard.tokens

    def write(self) -> None:
        """Writes the shards that are missing."""
        writer: Writer | None = None
        position, carried = self.shards[-1].end if self.shards else Position(), 0
        encoded = self._encoded(self._blocks(position))
        try:
            for number, block, line, ids, lengths in encoded:
                writer = writer or Writer(self.directory, len(self.shards), self.dtype)
                ended, carried = join_parts(lengths, block, carried)
                writer.add(ids, ended)
                self.unigrams += np.bincount(ids, minlength=len(self.unigrams))
                self.documents += len(ended)
                self.tokens += len(ids)
                position = Position(number, block.end, line)
                if block.closes and writer.tokens >= self.options.shard_tokens:
                    self.shards.append(writer.close(position))
                    writer = None
                if self.progress is not None:
                    self.progress(sum(self.sizes[:number]) + block.read, sum(self.sizes), self.documents, self.tokens)
            if not self.tokens:
                raise InputError(f"{', '.join(self.files[:3])}: no text; nothing but blank lines")
            if writer is not None and writer.tokens:
                self.shards.append(writer.close(position))
                writer = None
        finally:
            encoded.close()
            if writer is not None:
                writer.drop()

    def _blocks(self, position: Position) -> Iterator[tuple[int, Block]]:
        """Yields (number of the file, block) from a position on."""
        for number in range(position.file, len(self.files)):
            start = (position.offset, position.line) if number == position.file else (0, 1)
            for block in blocks(self.files[number], self.options.source, *start):
                yield number, block

    def _encoded(
        self, numbered: Iterable[tuple[int, Block]]
    ) -> Generator[tuple[int, Block, int, np.ndarray, np.ndarray]]:
        """Tokenises blocks, in worker processes if there is much text.

        Yields:
          For each block in order: the number of its file, the block without its text, the line of the next block, the
          ids, and the lengths of the documents.
        """
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = self.options.workers or cores
        encoder = BlockEncoder(self.tokenizer, self.options.source, self.dtype)
        if workers == 1 or sum(self.sizes) < _ALONE_BELOW:
            for number, block in numbered:
                yield number, block, block.next_line, *encoder(block)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        pool = ProcessPoolExecutor(workers, context, _begin, (encoder,))
        waiting: deque[tuple[tuple[int, Block, int], Future]] = deque()
        try:
            for number, block in numbered:
                bare = dataclasses.replace(block, content=b"")
                waiting.append(((number, bare, block.next_line), pool.submit(_encode, block)))
                if len(waiting) > 2 * workers + 2:
                    known, future = waiting.popleft()
                    yield *known, *future.result()
            for known, future in waiting:
                yield *known, *future.result()
        except BrokenProcessPool:
            raise InputError(
                "a process that tokenises has died, perhaps for want of memory; run the same command again to go on, "
                "with fewer --workers"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Writes the unigrams and then the manifest, which it returns."""
        storage.write_bytes(self.directory / UNIGRAMS, _npy(self.unigrams))
        shards = [{k: v for k, v in dataclasses.asdict(shard).items() if k != "end"} for shard in self.shards]
        counts = {"documents": self.documents, "tokens": self.tokens, "dtype": self.dtype.name}
        manifest = {**record, **counts, "unigrams": UNIGRAMS, "shards": shards}
        write_record(self.directory / MANIFEST, manifest)
        return manifest


def _npy(array: np.ndarray) -> bytes:
    """Returns the bytes of a ``.npy`` file."""
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


class BlockEncoder:
    """Tokenises blocks to ids in the dtype of the shards and the lengths of documents; keeps the ids of words."""

    def __init__(self, tokenizer: Tokenizer, source: CorpusOptions, dtype: np.dtype):
        self.tokenizer, self.source, self.dtype = tokenizer, source, dtype
        self.bulk: BulkEncoder | None = None

    def __call__(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        self.bulk = self.bulk or BulkEncoder(self.tokenizer)
        ids, lengths = encode_block(self.bulk, block, self.source)
        return ids.astype(self.dtype), lengths


_encoder: BlockEncoder | None = None  # set in worker processes


def _begin(encoder: BlockEncoder) -> None:
    """Initializes a worker process. It ignores Ctrl-C, and ends when the process that started it ends."""
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _encode(block: Block) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises a block in a worker process."""
    assert _encoder is not None
    return _encoder(block)
