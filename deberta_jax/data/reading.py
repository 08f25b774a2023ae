"""Reads the content of data files in blocks, and stops at the first that no file of text has."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deberta_jax.errors import InputError

BLOCK = 1 << 20
LONGEST_LINE = 1 << 26
"""Largest number of bytes of a line. A file without line ends would otherwise be read until memory is full."""
LARGEST_DOCUMENT = 1 << 29
"""Largest number of bytes of a file that is one JSON value, which needs about ten times as much memory."""
MOST_EXPANSION = 200
FREE_EXPANSION = 1 << 26
"""A compressed file may have this many bytes, or ``MOST_EXPANSION`` times its stored size. Text becomes 3 to 20 times
smaller, a file that is made to fill the memory 1,000 times and more."""


class Counting:
    """Reads from a binary stream, of any class with ``read``, and counts the bytes."""

    def __init__(self, stream: Any):
        self.stream, self.count = stream, 0

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes of the stream."""
        block = self.stream.read(size)
        self.count += len(block)
        return block


def blocks_of(name: str, content: Any, stored: Counting | None) -> Iterator[bytes]:
    """Yields the blocks of a binary stream.

    Args:
      name: the name of the file, for messages.
      content: the stream.
      stored: the stored file that ``content`` decompresses; None if it is not compressed.

    Raises:
      InputError: as ``check_expansion``.
    """
    total = 0
    while block := content.read(BLOCK):
        total += len(block)
        if stored is not None:
            check_expansion(name, total, stored.count)
        yield block


def check_expansion(name: str, content: int, stored: int) -> None:
    """Checks the size of a file's content against that of the compressed file.

    Args:
      name: the name of the file, for messages.
      content: number of bytes after decompression.
      stored: number of bytes before.

    Raises:
      InputError: the content is far larger than that of any text.
    """
    if content > max(FREE_EXPANSION, MOST_EXPANSION * stored):
        raise InputError(
            f"{name}: {stored:,} compressed bytes become {content:,} or more, unlike any text; decompress the file "
            "yourself if it is what you want"
        )


def read_text(name: str, blocks: Iterator[bytes], *, document: bool) -> str:
    """Returns the text of a file, whose parts ``text_parts`` yields."""
    return "".join(text_parts(name, blocks, document=document))


def text_parts(name: str, blocks: Iterator[bytes], *, document: bool) -> Iterator[str]:
    """Yields the text of a file in UTF-8 in parts, without a byte-order mark.

    Args:
      name: the name of the file, for messages.
      blocks: its content.
      document: whether it is one JSON value, which may be a single line.

    Raises:
      InputError: the text is not UTF-8, has a NUL byte, a line above 64 MiB, or as a document more than 512 MiB.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    total, line, length = 0, 1, 0
    mark = "\ufeff"  # only the first characters are a byte-order mark
    for block in blocks:
        text = _decoded(name, decoder, block, total)
        if b"\0" in block:
            raise InputError(
                f"{name}: has a NUL byte, at {total + block.index(0)}, which no text has; it is damaged, or in UTF-16: "
                "convert it to UTF-8"
            )
        total += len(block)
        if document and total > LARGEST_DOCUMENT:
            raise InputError(
                f"{name}: is JSON of more than {LARGEST_DOCUMENT >> 20} MiB; write one object per line, as .jsonl"
            )
        ends = block.count(b"\n") + block.count(b"\r")
        line += block.count(b"\n")
        length = length + len(block) if not ends else len(block) - max(block.rfind(b"\n"), block.rfind(b"\r"))
        if not document and length > LONGEST_LINE:
            raise InputError(f"{name}, line {line}: longer than {LONGEST_LINE >> 20} MiB; divide it")
        yield text.removeprefix(mark)
        mark = "" if text else mark
    yield _decoded(name, decoder, b"", total, final=True)


def _decoded(name: str, decoder: Any, block: bytes, before: int, *, final: bool = False) -> str:
    """Returns the text of a block, which follows ``before`` bytes. Raises InputError if it is not UTF-8."""
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        at = before - pending + error.start
        raise InputError(f"{name}: not UTF-8 at byte {at}; convert the file to UTF-8") from None


@contextmanager
def damage(name: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Converts the exceptions of a damaged compressed file in the block to InputError."""
    try:
        yield
    except errors as error:
        raise InputError(f"{name}: damaged: {error}") from None
