"""Holds numbers of two heads in one 32-bit word, so that one roll, transpose or gather moves both.

Shifts and transposes of position scores limit the TPU kernels: they pass through the unit that moves numbers between
lanes, which handles a 32-bit word at a time. With bfloat16 operands two heads therefore share words:

* Position scores are 16-bit integers. Their unit is a power of two, chosen for each head and row of the batch from the
  largest norms of its tokens and of the tables, so that no score of a real token exceeds the largest integer (by the
  Cauchy-Schwarz inequality). Tokens are divided by the unit before their products, which is exact. Bfloat16 scores
  would have 8 bits, whose rounding shows in the gradients.
* Gradients of scores are bfloat16 numbers, which their products round them to in any case. Texts of several blocks
  have no such words: what the gradients of the tables sum there would show the rounding.

A word of float32 operands, or of a program that has one head, is one float32 number.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax

from deberta_jax.ops.attention.pallas.layout import contract
from deberta_jax.ops.attention.pallas.tiling import TILE, Tiling
from deberta_jax.ops.attention.tpu import strips
from deberta_jax.ops.products import F32

SUBLANES = 8  # rows of a vector register
# Scores are in units of which a word holds multiples of 2^16. The largest one is below 2^31 by one such multiple, to
# which it is rounded, and by what squares of norms lose to bfloat16.
LARGEST = 32000.0 * 2.0**16
# In a float32 number of this size the last bit stands for 2^16: adding it rounds a number to a multiple of 2^16, which
# its low bits then hold.
_ROUNDING = 1.5 * 2.0**39
_ROUNDING_BITS = 0x53400000
_HIGH = -0x10000


@dataclasses.dataclass(frozen=True)
class Words:
    """Tells which heads of a program share words.

    Attributes:
      heads: heads of a program.
      shared: heads of a word, 1 or 2.
    """

    heads: int
    shared: int

    @property
    def count(self) -> int:
        """Returns the words that hold one number of every head of a program."""
        return self.heads // self.shared

    @property
    def dtype(self) -> Any:
        """Returns the dtype of a word."""
        return F32 if self.shared == 1 else jnp.int32

    def of(self, word: int) -> range:
        """Returns the heads of a word."""
        return range(word * self.shared, (word + 1) * self.shared)


def make_words(tiling: Tiling, dtype: Any) -> Words:
    """Returns which heads share words, given the operands' dtype."""
    return Words(tiling.group, 2 if dtype == jnp.bfloat16 and tiling.group % 2 == 0 else 1)


def make_gradient_words(tiling: Tiling, dtype: Any) -> Words:
    """Returns which heads share words of gradients, given the operands' dtype."""
    return make_words(tiling, dtype) if tiling.blocks == 1 else Words(tiling.group, 1)


def largest_norms(tiling: Tiling, tokens: Any, real: Any) -> Any:
    """Returns the largest norm of a token, float32 [8*heads,128]; rows 8h to 8h+7 hold that of head h.

    Args:
      tokens: queries or keys [T,W], bfloat16.
      real: [1,T] False for padding; None if there is none.
    """
    one_row = (SUBLANES, tiling.lanes)
    own_lanes = [strips.is_lane_of(tiling, head, one_row).astype(F32) for head in range(tiling.group)]
    squares = tokens.astype(F32) * tokens.astype(F32)
    sums = contract(jnp.concatenate(own_lanes, axis=0).astype(tokens.dtype), squares.astype(tokens.dtype), 1, 1)
    sums = sums if real is None else jnp.where(real, sums, 0.0)
    return jnp.broadcast_to(jnp.sqrt(sums.max(axis=1, keepdims=True)), (sums.shape[0], TILE))


def power_of_two(bound: Any) -> Any:
    """Returns the smallest power of two that is not below ``bound``, float32, at least 2^-99; elementwise."""
    bits = lax.bitcast_convert_type(jnp.maximum(bound, 2.0**-99), jnp.int32)
    return lax.bitcast_convert_type((bits + 0x7FFFFF) & 0x7F800000, F32)


def inverse(powers: Any) -> Any:
    """Returns 1 over powers of two, float32, exactly; elementwise."""
    return lax.bitcast_convert_type((254 << 23) - lax.bitcast_convert_type(powers, jnp.int32), F32)


def tile_of(units: Any, head: int) -> Any:
    """Returns what ``units`` [8*heads,128] holds of a head as a tile [128,128]."""
    return jnp.concatenate([units[SUBLANES * head : SUBLANES * (head + 1)]] * (TILE // SUBLANES), axis=0)


def pack_scores(scores: list[Any]) -> Any:
    """Returns the words of one or two heads' tiles of scores, float32; of two heads in their units."""
    if len(scores) == 1:
        return scores[0]
    low, high = (lax.bitcast_convert_type(x + _ROUNDING, jnp.int32) for x in scores)
    return (high << 16) + low


def unpack_scores(held: Words, head: int, packed: Any) -> Any:
    """Returns one head's scores of a tile of words, float32; of two heads in their units."""
    if held.shared == 1:
        return packed
    if head == held.of(head // 2)[0]:
        return (packed << 16).astype(F32)
    # Without the other head's number, which is rounded away.
    return ((packed + (0x8000 - _ROUNDING_BITS)) & _HIGH).astype(F32)


def pack_gradients(gradients: list[Any]) -> Any:
    """Returns the words of one or two heads' tiles of gradients, float32."""
    if len(gradients) == 1:
        return gradients[0]
    low, high = (lax.bitcast_convert_type(x, jnp.uint32) + jnp.uint32(0x8000) for x in gradients)
    return lax.bitcast_convert_type((low >> 16) | (high & jnp.uint32(0xFFFF0000)), jnp.int32)


def unpack_gradients(word: Any) -> list[Any]:
    """Returns the gradients of each head of a tile of words, float32."""
    if word.dtype == F32:
        return [word]
    bits = lax.bitcast_convert_type(word, jnp.uint32)
    parts = (bits << 16, bits & jnp.uint32(0xFFFF0000))
    return [lax.bitcast_convert_type(part, F32) for part in parts]


def parts_of(x: Any, dtype: Any, count: int) -> list[Any]:
    """Returns up to ``count`` arrays of ``dtype`` whose sum is ``x``, float32, as exactly as they can hold it."""
    parts = [x.astype(dtype)]
    while dtype != F32 and len(parts) < count:
        x = x - parts[-1].astype(F32)
        parts.append(x.astype(dtype))
    return parts
