"""Checks the table by which SentencePiece and the `tokenizers` library replace characters.

The table ("precompiled charsmap") has the size of a trie in bytes (uint32), the trie, and the replacements, each of
which ends with NUL. The trie is a double array of Darts-clone: each unit has an offset, a label, and a bit that says
whether the unit at its offset holds a value, which is the position of a replacement.
"""

from __future__ import annotations

import numpy as np

from deberta_jax.errors import InputError

# A longer replacement could make a short text as large as the memory. Unicode's own have at most 33 bytes.
LONGEST_REPLACEMENT = 256


def check_charsmap(where: str, table: bytes) -> None:
    """Checks that no text leads a library outside the table, or makes the text far longer.

    Args:
        where: the name of the file, for messages.
        table: the table; b"" stands for none.

    Raises:
        InputError: the table is damaged, or a replacement is longer than `LONGEST_REPLACEMENT` bytes.
    """
    if not table:
        return
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 4 or not 4 <= size <= len(table) - 4:
        raise InputError(f"{where}: its table of characters is damaged; fetch the file again")
    replacements = table[4 + size :]
    units = np.frombuffer(table, "<u4", size // 4, 4).astype(np.int64)
    inner = np.flatnonzero(units >> 31 == 0)
    units_inner = units[inner]
    targets = inner ^ units_inner >> 10 << ((units_inner & 1 << 9) >> 6)
    values = targets[(units_inner & 1 << 8) != 0]
    # A step goes to any of the 256 units that differ from the target in the lowest byte.
    inside = bool((targets | 255 < len(units)).all())
    if not inside or (len(values) and int((units[values] & (1 << 31) - 1).max()) >= len(replacements)):
        raise InputError(f"{where}: its table of characters leads outside itself; fetch the file again")
    ends = np.flatnonzero(np.frombuffer(replacements, np.uint8) == 0)
    if replacements and (not len(ends) or ends[-1] != len(replacements) - 1):
        raise InputError(f"{where}: its table of characters is cut off; fetch the file again")
    if len(ends) and int(np.diff(ends, prepend=-1).max()) > LONGEST_REPLACEMENT + 1:
        raise InputError(f"{where}: replaces a character by more than {LONGEST_REPLACEMENT} bytes; fetch it again")
    try:
        replacements.decode()
    except UnicodeDecodeError:
        raise InputError(f"{where}: its table of characters is not UTF-8; fetch the file again") from None
