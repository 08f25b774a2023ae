"""Reads documents for pre-training from files (text, jsonl, parquet; compressed; local or remote), in blocks of 1 MiB.

A block depends only on the file and the offset at which it begins, so reading can stop after any block and continue
there. A document that is longer than a block is read as several blocks. Only a line of jsonl and a row group of parquet
are held in memory as a whole.
"""

import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deberta_jax import storage
from deberta_jax.data.files import COMPRESSED, decompressed, matching_files, stored
from deberta_jax.data.json_files import parse_json
from deberta_jax.data.parquet_file import check_counts, parquet_errors, rows_at_once
from deberta_jax.errors import InputError, listed, shown

BLOCK = 1 << 20
# Longer texts are tokenised in parts of this many characters, because a tokenizer's memory grows with the text.
PIECE = 1 << 17
LONGEST_LINE = 1 << 26
# A stray NUL is a character of a text. So many are a hole in a file that was not copied to its end, or a sparse one.
_HOLE = b"\0" * 4096
_PARQUET_ROWS = 256
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_MARK = re.compile(r"^\ufeff", re.MULTILINE)
_SUFFIXES = {".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Converts texts to the ids of all texts one after the other, and the number of ids of each: see ``encode_flat``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """Says how files are divided into documents."""

    documents: Literal["line", "paragraph", "file"] = "line"
    """Unit of a text file that is one document: a line (as in ``datasets``), a paragraph between blank lines (as in the
    files of BERT and fairseq), or the whole file. In jsonl and parquet each row is a document."""
    text: str = "text"
    """Column of jsonl and parquet that holds the text."""


@dataclasses.dataclass(frozen=True)
class Block:
    """Holds consecutive text of one file.

    Attributes:
      file: the name of the file.
      kind: "text", "jsonl" or "parquet".
      content: bytes, or the values of parquet rows.
      start, end: first and end offset, in decompressed bytes, or in rows of parquet.
      line: the line, or row, at which it begins, counted from 1.
      opens: whether its first document begins in this block.
      closes: whether its last document ends in this block.
      read: bytes of the stored (compressed) file that have been read so far.
    """

    file: str
    kind: str
    content: bytes | list[Any]
    start: int
    end: int
    line: int
    opens: bool
    closes: bool
    read: int

    @property
    def next_line(self) -> int:
        """Returns the line, or row, at which the next block begins."""
        return self.line + (self.content.count(b"\n") if isinstance(self.content, bytes) else len(self.content))


def text_files(paths: Sequence[str]) -> list[str]:
    """Returns the files that match paths and patterns, in the given order.

    Raises:
      InputError: a pattern matches no file, a file is given twice, is a directory, or has an unknown suffix.
    """
    files = [file for path in paths for file in matching_files(str(path))]
    for file in files:
        file_kind(file)
        if "://" not in file and Path(file).is_dir():
            raise InputError(f"{file}: is a directory; give its files, as in {Path(file) / '*.txt'}")
        if storage.is_stream(file):
            raise InputError(f"{file}: can be read only once, and is needed twice; write it to a file first")
    twice = next((file for i, file in enumerate(files) if file in files[:i]), None)
    if twice is not None:
        raise InputError(f"{twice}: is given twice")
    return files


def file_kind(file: str) -> str:
    """Returns "text", "jsonl" or "parquet", by the suffix of a file. Raises InputError for another suffix."""
    name = Path(file)
    if name.suffix in COMPRESSED:
        name = name.with_suffix("")
    if name.suffix not in _SUFFIXES or (name.suffix == ".parquet" and str(name) != str(Path(file))):
        known = ", ".join(_SUFFIXES)
        raise InputError(
            f"{file}: ending {Path(file).suffix!r} is not known; expected {known}; all but the last also .gz or .zst"
        )
    return _SUFFIXES[name.suffix]


def blocks(file: str, source: CorpusOptions, start: int = 0, line: int = 1) -> Iterator[Block]:
    """Yields the blocks of a file, from the beginning or from where a block ended that closed a document.

    Args:
      file: the name of the file.
      source: how it is divided into documents.
      start: ``end`` of that block.
      line: ``next_line`` of that block.

    Raises:
      InputError: the file is no text or parquet, is not compressed as its suffix says, or has a line of jsonl above
        64 MiB, or a long sequence of NUL bytes.
    """
    kind = file_kind(file)
    with stored(file) as stream:
        if kind == "parquet":
            yield from _parquet_blocks(file, stream, source.text, start)
            return
        content, damage = decompressed(file, stream)
        try:
            content.seek(start)
            yield from _byte_blocks(file, content, stream, kind, source, start, line)
        except damage as error:
            raise InputError(f"{file}: damaged: {error}") from None


def _byte_blocks(
    file: str, content: Any, stream: Any, kind: str, source: CorpusOptions, start: int, line: int
) -> Iterator[Block]:
    """Yields the blocks of text or jsonl. ``stream`` is the stored file that ``content`` decompresses."""
    how = "line" if kind == "jsonl" else source.documents
    rest, opens, over = b"", True, False
    while True:
        window = BLOCK
        cut, closes = -1, True
        while cut < 0:
            while len(rest) <= window and not over:
                more = content.read(window + 1 - len(rest))
                if (hole := more.find(_HOLE)) >= 0:
                    at = start + len(rest) + hole
                    raise InputError(f"{file}: has only NUL bytes from byte {at} on; it is damaged, copy it again")
                rest, over = rest + more, not more
            if over and len(rest) <= window:
                cut = len(rest)
            else:
                cut = _last_border(rest[:window], how)
            if cut < 0 and kind == "text":
                cut, closes = lone_space(rest[:window]), False
            elif cut < 0:
                window *= 2
                if window > LONGEST_LINE:
                    raise InputError(f"{file}, line {line}: longer than {LONGEST_LINE >> 20} MiB; divide it")
        if not cut:
            return
        yield Block(file, kind, rest[:cut], start, start + cut, line, opens, closes, stream.tell())
        line += rest.count(b"\n", 0, cut)
        start, rest, opens = start + cut, rest[cut:], closes


def _last_border(data: bytes, how: str) -> int:
    """Returns the offset at which the last complete document in ``data`` ends, or -1."""
    if how == "file":
        return -1
    if how == "line":
        return data.rfind(b"\n") + 1 or -1
    at = data.rfind(b"\n\n")
    if at >= 0:
        return at + 2
    return max((match.end() for match in _BLANK_LINE.finditer(data)), default=-1)


def lone_space(data: Any) -> int:
    """Returns the offset at which to split a long text (bytes or str): before its last lone space.

    A lone space has no other white space beside it.
    Both kinds of tokenizers give the two parts the same tokens as the whole. A text without such a space is split at
    its end, between two characters.
    """
    space: Any = b" " if isinstance(data, bytes) else " "
    end = len(data) - 1
    while (at := data.rfind(space, 1, end)) > 0:
        if not data[at - 1 : at].isspace() and not data[at + 1 : at + 2].isspace():
            return at
        end = at
    end = len(data)
    if isinstance(data, bytes):
        while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
            end -= 1
        if data[end - 1] < 0x80:
            return end
        # The character that begins here may be complete.
        size = 2 + (data[end - 1] >= 0xE0) + (data[end - 1] >= 0xF0)
        return len(data) if len(data) - (end - 1) >= size else end - 1
    return end


def _parquet_blocks(file: str, stream: Any, column: str, start: int) -> Iterator[Block]:
    """Yields the blocks of a parquet file from row ``start``."""
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(f"{file}: parquet needs pyarrow; pip install 'deberta_jax[parquet]'") from None
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    with parquet_errors(file):
        table = pq.ParquetFile(stream)
        check_counts(file, table.metadata, size)
        names = table.schema_arrow.names
        if column not in names:
            raise InputError(f"{file}: no column {column!r}; its columns are {listed(map(repr, names))}")
        first, most = 0, rows_at_once(table.metadata, _PARQUET_ROWS)
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            if first + rows <= start:
                first += rows
                continue
            for batch in table.iter_batches(most, row_groups=[group], columns=[column], use_threads=False):
                end = first + len(batch)
                if first >= start:
                    values = batch.column(0).to_pylist()
                    yield Block(file, "parquet", values, first, end, first + 1, True, True, stream.tell())
                first = end


def texts_of(block: Block, source: CorpusOptions) -> list[str]:
    """Returns the texts of the documents of a block, including blank ones.

    Raises:
      InputError: the text is not UTF-8, or a row is no JSON object or has no text in the column; with file and line.
    """
    if block.kind == "parquet":
        for i, value in enumerate(block.content):
            _check_text(value, f"{block.file}, row {block.line + i}", source.text)
        return list(block.content)  # pyright: ignore[reportReturnType]
    data = block.content
    assert isinstance(data, bytes)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        at = block.start + error.start
        raise InputError(f"{block.file}: not UTF-8 at byte {at}; convert the file to UTF-8") from None
    # Concatenated files keep the byte-order mark of each.
    if "\ufeff" in text:
        text = _MARK.sub("", text)
    if block.kind == "jsonl":
        return _json_texts(block, text, source.text)
    if source.documents == "line":
        if "\r" in text:
            return [line.rstrip("\r") for line in text.split("\n")]
        return text.split("\n")
    if source.documents == "paragraph":
        # A block may begin with the blank lines after the last paragraph of the block before.
        parts = re.split(r"\n(?:[ \t\r]*\n)+", f"\n{text}" if block.opens else text)
        return [part.strip("\r\n") for part in parts]
    return [text]


def _json_texts(block: Block, text: str, column: str) -> list[str]:
    out = []
    # Not splitlines, because JSON strings may contain U+2028 and similar characters unescaped.
    for number, line in enumerate(text.split("\n"), block.line):
        if not line.strip():
            continue
        where = f"{block.file}, line {number}"
        row = parse_json(where, line)
        if not isinstance(row, dict):
            raise InputError(f"{where}: expected a JSON object, found {type(row).__name__}")
        if column not in row:
            raise InputError(f"{where}: no column {column!r}; its columns are {listed(map(repr, row))}")
        _check_text(row[column], where, column)
        out.append(row[column])
    return out


def _check_text(value: Any, where: str, column: str) -> None:
    if not isinstance(value, str):
        raise InputError(f"{where}: {column!r} is {shown(value)}; a text is needed")


def encode_block(encode: Encode, block: Block, source: CorpusOptions) -> tuple[np.ndarray, np.ndarray]:
    """Tokenises a block without special tokens.

    Returns:
      The ids of all documents one after the other, int32 [sum of lengths], and the number of ids of each document,
      int64 [documents]. Of a document that continues in another block only this part counts; a blank one has 0.

    Raises:
      InputError: as ``texts_of``.
    """
    texts = texts_of(block, source)
    parts: list[str] = []
    owner: list[int] = []
    for i, text in enumerate(texts):
        at = 0
        while len(text) - at > PIECE:
            cut = at + lone_space(text[at : at + PIECE])
            parts.append(text[at:cut])
            owner.append(i)
            at = cut
        if at or (text and not text.isspace()):
            parts.append(text[at:] if at else text)
            owner.append(i)
    ids, lengths = encode(parts)
    return ids, np.bincount(np.array(owner, np.int64), lengths, len(texts)).astype(np.int64)


def join_parts(lengths: np.ndarray, block: Block, carried: int) -> tuple[np.ndarray, int]:
    """Joins the parts of documents that continue over several blocks.

    Args:
      lengths: int64, the lengths that ``encode_block`` returned for the block.
      block: the block.
      carried: the second result for the block before; 0 for the first block.

    Returns:
      The lengths of the documents that end in the block, without blank ones, and the number of tokens so far of the
      document that continues in the next block.
    """
    lengths = lengths.copy()
    if not block.opens and len(lengths):
        lengths[0] += carried
        carried = 0
    if not block.closes:
        lengths, carried = lengths[:-1], int(lengths[-1])
    return lengths[lengths > 0], carried
