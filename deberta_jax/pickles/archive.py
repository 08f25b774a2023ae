"""Reads the table of a zip archive as ``torch.save`` writes it: entries are stored one after another, uncompressed."""

import itertools
import mmap
import struct
import zipfile
import zlib
from typing import Any, NamedTuple

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")

# Largest size of the table of contents. One of 3000 storages has 300 kB.
_MOST_TABLE = 4 << 20


class ArchiveError(ValueError):
    """Signals an archive that is damaged, or that ``torch.save`` did not write; the message is one line."""


class Entry(NamedTuple):
    """Holds the offset, the size in bytes and the CRC-32 of a file inside an archive."""

    start: int
    size: int
    crc: int


class _Table:
    """Lets ``zipfile`` read a mapped file, except large parts of it."""

    def __init__(self, data: mmap.mmap):
        self._data = data
        self.seek, self.tell = data.seek, data.tell

    def read(self, size: int = -1) -> bytes:
        """Returns the next ``size`` bytes, or all. Raises ArchiveError if they are too many."""
        if min(size if size >= 0 else len(self._data), len(self._data) - self.tell()) > _MOST_TABLE:
            raise ArchiveError("its table of contents is too large for a file of weights")
        return self._data.read(size)


def read_entries(data: mmap.mmap) -> dict[str, Entry]:
    """Returns the entries of an archive by name.

    Raises:
      ArchiveError: an entry is compressed, outside the file, overlaps another, or has a name that leaves the archive.
    """
    try:
        table: Any = _Table(data)
        with zipfile.ZipFile(table) as archive:
            infos = archive.infolist()
    except ArchiveError:
        raise
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OSError,
        OverflowError,
        struct.error,
        EOFError,
    ) as error:
        raise ArchiveError(f"damaged zip archive ({' '.join(str(error).split())[:80]})") from None
    out: dict[str, Entry] = {}
    extents = []
    for info in infos:
        name = info.filename
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or not name.isprintable():
            raise ArchiveError(f"entry {name[:60]!r} escapes the archive; refused")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise ArchiveError(f"entry {name[:60]!r} is compressed, which torch.save never does; refused")
        begin = info.header_offset
        if not 0 <= begin <= len(data) - _LOCAL_HEADER.size:
            raise ArchiveError(f"damaged: entry {name[:60]!r} lies outside the file")
        header = _LOCAL_HEADER.unpack(data[begin : begin + _LOCAL_HEADER.size])
        start = begin + _LOCAL_HEADER.size + header[9] + header[10]
        if header[0] != b"PK\x03\x04" or start + info.file_size > len(data) or name in out:
            raise ArchiveError(f"damaged: entry {name[:60]!r} has no header, exceeds the file, or occurs twice")
        out[name] = Entry(start, info.file_size, info.CRC)
        extents.append((begin, start + info.file_size, name))
    extents.sort()
    for (_, end, name), (begin, _, _) in itertools.pairwise(extents):
        if begin < end:
            raise ArchiveError(f"damaged: entry {name[:60]!r} overlaps the next")
    return out


def read_small(data: mmap.mmap, entry: Entry, name: str, most: int) -> bytes:
    """Returns the bytes of an entry, called ``name`` in messages.

    Raises:
      ArchiveError: there are more than ``most``, or their checksum is wrong.
    """
    if entry.size > most:
        raise ArchiveError(f"its {name} has {entry.size} bytes, too many for a file of weights")
    raw = data[entry.start : entry.start + entry.size]
    check_sum(raw, entry, name)
    return raw


def check_sum(raw: Any, entry: Entry, name: str) -> None:
    """Checks the bytes of an entry. Raises ArchiveError if their checksum is wrong."""
    if zlib.crc32(raw) != entry.crc:
        raise ArchiveError(f"damaged: the checksum of {name} is wrong; download or save the file again")


def find_root(entries: dict[str, Entry]) -> str:
    """Returns the directory of an archive, with a slash at its end, in which ``data.pkl`` and ``data/`` are.

    Raises:
      ArchiveError: there is none or several, or the archive holds a program of TorchScript.
    """
    programs = [name for name in entries if name.endswith("/data.pkl")]
    root = programs[0].removesuffix("data.pkl") if programs else ""
    if len(programs) != 1 or f"{root}constants.pkl" in entries:
        raise ArchiveError("a zip archive, but not one of weights; save model.state_dict() with torch.save")
    return root
