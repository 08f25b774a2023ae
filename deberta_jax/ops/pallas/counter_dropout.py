"""Dropout decided by a hash of where a weight stands, so that forward and backward need no stored mask.

Weight (b, n, i, j) is kept where the hash of its counter (i, j), under two words made from the seed and (b, n), falls
below the threshold. The mixing is that of MurmurHash3's finaliser (Appleby, public domain), a bijection of 32-bit words
in which every input bit reaches every output bit. The same lines run in numpy, in XLA and in a kernel: only unsigned
multiplication, exclusive or and shifts. (The TPU's own generator exists on no other machine, so nothing could test it.)
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, UInt

LONGEST = 1 << 16  # a counter has 16 bits for the query and 16 for the key


def threshold(rate: float) -> int:
    """Of 2**24 equally likely values, how many keep their weight."""
    return round((1.0 - rate) * (1 << 24))


def _mix(x: Any, added: Any = None) -> Any:
    word = type_of(x)
    x = (x ^ (x >> word(16))) * word(0x85EBCA6B)
    x = x if added is None else x ^ added
    x = (x ^ (x >> word(13))) * word(0xC2B2AE35)
    return x ^ (x >> word(16))


def type_of(x: Any) -> Any:
    """uint32 of the library that ``x`` belongs to."""
    return x.dtype.type


def stream(seeds: tuple[Any, Any], example_and_head: Any) -> tuple[Any, Any]:
    """Two words, uint32, for each ``b * heads + n`` (uint32)."""
    word = type_of(example_and_head)
    first = _mix(example_and_head * word(0x9E3779B1) + seeds[0])
    return first, _mix(first + seeds[1])


def kept(words: tuple[Any, Any], query: Any, key: Any, rate: float) -> Any:
    """True where the weight of this query and key position (uint32, broadcast) is kept."""
    word = type_of(query)
    x = _mix(((query << word(16)) | key) + words[0], words[1])
    return (x >> word(8)).astype(np.int32) < threshold(rate)


def keep_mask(
    seeds: UInt[np.ndarray, "2"], batch: int, heads: int, length: int, rate: float
) -> Bool[np.ndarray, "B N T T"]:
    """The whole mask in numpy, for tests: the very bits that the kernel makes tile by tile."""
    at = np.arange(batch * heads, dtype=np.uint32).reshape(batch, heads, 1, 1)
    index = np.arange(length, dtype=np.uint32)
    with np.errstate(over="ignore"):
        words = stream((seeds[0], seeds[1]), at)
        return kept(words, index[None, None, :, None], index[None, None, None, :], rate)
