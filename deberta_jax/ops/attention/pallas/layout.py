"""Brings arrays into the layout that both sets of kernels receive: padded to whole blocks, heads side by side.

L is the padded length, U the rows of a table by distance, W heads times head size, both padded. Query, key, value and
the like are [B,L,W], tables by distance [U,W], segment_ids int32 [B,1,L], attention_mask int8 [B,L,L].
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.ops.attention.pallas.tiling import Tiling
from deberta_jax.ops.products import F32


def contract(a: Any, b: Any, axis_a: int, axis_b: int) -> Any:
    """Returns the product that sums over axis ``axis_a`` of a and ``axis_b`` of b, float32; for use within kernels.

    Accumulates in float32, and is exact for float32 operands.
    """
    precision = lax.Precision.HIGHEST if a.dtype == F32 else None
    dimensions = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=F32)


def pad_tokens(tiling: Tiling, x: Float[Array, "B T NH"]) -> Float[Array, "B L W"]:
    """Returns query, key, value or the like in the kernels' layout."""
    by_head = x.reshape(*x.shape[:2], tiling.heads, tiling.head_size)
    x = _pad_heads(tiling, by_head).reshape(*x.shape[:2], -1)
    return jnp.pad(x, ((0, 0), (0, tiling.padded_length - tiling.length), (0, 0)))


def unpad_tokens(tiling: Tiling, x: Float[Array, "B L W"]) -> Float[Array, "B T NH"]:
    """Returns the inverse of ``pad_tokens``."""
    x = x[:, : tiling.length].reshape(x.shape[0], tiling.length, tiling.padded_heads, tiling.lanes_per_head)
    return x[:, :, : tiling.heads, : tiling.head_size].reshape(*x.shape[:2], -1)


def pad_rows(tiling: Tiling, x: Float[Array, "B N T"]) -> Float[Array, "B M L"]:
    """Returns one number per query and head, padded to the kernels' heads and length."""
    return jnp.pad(x, ((0, 0), (0, tiling.padded_heads - tiling.heads), (0, tiling.padded_length - tiling.length)))


def softmax_delta(tiling: Tiling, arrays: dict[str, jax.Array]) -> Float[Array, "B N T"]:
    """Returns the sum of context times ``cotangent`` over each head's numbers, float32: what softmax's gradient needs.

    ``context_rest`` adds what the context has lost by rounding: where one weight is near 1, the gradient of a query's
    scores is a small difference, in which that would show.
    """
    by_head = lambda name: arrays[name].astype(F32).reshape(*arrays[name].shape[:2], tiling.heads, tiling.head_size)
    context = by_head("context") + (by_head("context_rest") if "context_rest" in arrays else 0.0)
    return (context * by_head("cotangent")).sum(-1).swapaxes(1, 2)


def _pad_heads(tiling: Tiling, x: jax.Array) -> jax.Array:
    """Returns [..., N, H] with the kernels' numbers of heads and of lanes per head."""
    widths = [(0, 0)] * (x.ndim - 2)
    widths += [(0, tiling.padded_heads - tiling.heads), (0, tiling.lanes_per_head - tiling.head_size)]
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def pad_masks(
    tiling: Tiling, arrays: dict[str, jax.Array]
) -> tuple[Int[Array, "B L"] | None, Bool[Array, "B L L"] | None]:
    """Returns segment_ids and attention_mask of the padded length, padding masked; None where nothing is masked."""
    segment_ids, attention_mask = arrays.get("segment_ids"), arrays.get("attention_mask")
    padding = tiling.padded_length - tiling.length
    if segment_ids is None and attention_mask is None and padding:
        segment_ids = jnp.ones(arrays["query"].shape[:2], jnp.int32)
    if attention_mask is not None:
        attention_mask = jnp.pad(attention_mask, ((0, 0), (0, padding), (0, padding)))
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids.astype(jnp.int32), ((0, 0), (0, padding)))
    return segment_ids, attention_mask


def mask_operands(segment_ids: jax.Array | None, attention_mask: jax.Array | None) -> dict[str, jax.Array]:
    """Returns the masks by name in the kernels' layout, those that there are."""
    arrays = {} if segment_ids is None else {"segment_ids": segment_ids[:, None]}
    return arrays if attention_mask is None else arrays | {"attention_mask": attention_mask.astype(jnp.int8)}


def block_mask(
    tiling: Tiling, segment_ids: Int[Array, "B L"] | None, attention_mask: Bool[Array, "B L L"] | None
) -> Bool[Array, "#B J J"]:
    """Returns True for pairs (query block, key block) in which some query may attend to some key.

    True may also stand where there is no such pair: if both masks are given, or if segments are not in ascending order.
    False is always right.
    """
    mask = jnp.ones((1, 1, 1), bool)
    if segment_ids is not None:
        by_block = segment_ids.reshape(segment_ids.shape[0], tiling.blocks, tiling.block_size)
        largest = jnp.iinfo(jnp.int32).max
        low = jnp.where(by_block == 0, largest, by_block).min(axis=-1)
        high = jnp.where(by_block == 0, -largest, by_block).max(axis=-1)
        mask = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    if attention_mask is not None:
        shape = (attention_mask.shape[0], tiling.blocks, tiling.block_size, tiling.blocks, tiling.block_size)
        mask = mask & attention_mask.reshape(shape).any(axis=(2, 4))
    return mask


def expanded_index(tiling: Tiling, relative_index: Int[Array, " V"]) -> dict[str, Int[Array, " U"]]:
    """Returns the row of each table, ``pos_key`` and ``pos_query``, for each row of its table by distance."""
    distances = {"pos_key": tiling.key_distances, "pos_query": tiling.query_distances}
    return {name: relative_index[distance + tiling.length - 1] for name, distance in distances.items()}


def tables_by_distance(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"]
) -> dict[str, jax.Array]:
    """Returns ``table_key`` and ``table_query`` [U,W]: a gather of the given tables, one row per distance."""
    tables = {}
    for name, index in expanded_index(tiling, relative_index).items():
        if name in arrays:
            table = _pad_heads(tiling, arrays[name])
            rows = jnp.take(table.reshape(table.shape[0], -1), index, axis=0, mode="clip")
            tables[name.replace("pos", "table")] = rows
    return tables


def sum_by_row(
    tiling: Tiling, gradient: Float[Array, "U W"], index: Int[Array, " U"], table: Float[Array, "R N H"]
) -> Float[Array, "R N H"]:
    """Returns the gradient of a table from that of its table by distance, summed in float32, in the table's dtype."""
    sums = jnp.zeros((table.shape[0], gradient.shape[1]), F32).at[index].add(gradient)
    sums = sums.reshape(table.shape[0], tiling.padded_heads, tiling.lanes_per_head)
    return sums[:, : tiling.heads, : tiling.head_size].astype(table.dtype)
