"""Arrays as the kernels of both machines take them: padded to whole blocks, heads side by side.

L is the padded length, U the rows of a table by distance, W = heads times head size, padded: query, key, value and the
like [B,L,W]; tables [U,W]; texts int32 [B,1,L]; pairs int8 [B,L,L].
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.ops.attention.pallas.tiling import Plan
from deberta_jax.ops.products import F32


def product(a: Any, b: Any, axis_a: int, axis_b: int) -> Any:
    """Contracts axis ``axis_a`` of a with ``axis_b`` of b; accumulates in float32, exact for float32 operands."""
    precision = lax.Precision.HIGHEST if a.dtype == F32 else None
    contract = (((axis_a,), (axis_b,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=precision, preferred_element_type=F32)


def _pad_heads(plan: Plan, x: jax.Array) -> jax.Array:
    """[..., N, H] with heads and their sizes as the kernel takes them."""
    widths = [(0, 0)] * (x.ndim - 2) + [(0, plan.padded_heads - plan.heads), (0, plan.lanes_per_head - plan.head_size)]
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def padded(plan: Plan, x: Float[Array, "B T NH"]) -> Float[Array, "B L W"]:
    by_head = x.reshape(*x.shape[:2], plan.heads, plan.head_size)
    x = _pad_heads(plan, by_head).reshape(*x.shape[:2], -1)
    return jnp.pad(x, ((0, 0), (0, plan.padded_length - plan.length), (0, 0)))


def unpadded(plan: Plan, x: Float[Array, "B L W"]) -> Float[Array, "B T NH"]:
    x = x[:, : plan.length].reshape(x.shape[0], plan.length, plan.padded_heads, plan.lanes_per_head)
    return x[:, :, : plan.heads, : plan.head_size].reshape(*x.shape[:2], -1)


def padded_rows(plan: Plan, x: Float[Array, "B N T"]) -> Float[Array, "B M L"]:
    """Numbers of each query, with the padded heads."""
    return jnp.pad(x, ((0, 0), (0, plan.padded_heads - plan.heads), (0, plan.padded_length - plan.length)))


def masks(plan: Plan, arrays: dict[str, jax.Array]) -> tuple[Int[Array, "B L"] | None, Bool[Array, "B L L"] | None]:
    """``texts`` and ``pairs`` of the padded length, in which padding is invisible; None where everything is visible."""
    texts, pairs = arrays.get("texts"), arrays.get("pairs")
    after = plan.padded_length - plan.length
    if texts is None and pairs is None and after:
        texts = jnp.ones(arrays["query"].shape[:2], jnp.int32)
    if pairs is not None:
        pairs = jnp.pad(pairs, ((0, 0), (0, after), (0, after)))
    if texts is not None:
        texts = jnp.pad(texts.astype(jnp.int32), ((0, 0), (0, after)))
    return texts, pairs


def mask_operands(texts: jax.Array | None, pairs: jax.Array | None) -> dict[str, jax.Array]:
    arrays = {} if texts is None else {"texts": texts[:, None]}
    return arrays if pairs is None else arrays | {"pairs": pairs.astype(jnp.int8)}


def visible_blocks(plan: Plan, texts: Int[Array, "B L"] | None, pairs: Bool[Array, "B L L"] | None):
    """True for pairs of blocks (query, key) with a visible pair: bool [B or 1, blocks, blocks].

    Blocks may be called visible that are not where texts do not stand in order of their numbers, never the reverse.
    """
    seen = jnp.ones((1, 1, 1), bool)
    if texts is not None:
        by_block = texts.reshape(texts.shape[0], plan.blocks, plan.block)
        most = jnp.iinfo(jnp.int32).max
        low = jnp.where(by_block == 0, most, by_block).min(axis=-1)
        high = jnp.where(by_block == 0, -most, by_block).max(axis=-1)
        seen = (low[:, :, None] <= high[:, None, :]) & (low[:, None, :] <= high[:, :, None])
    if pairs is not None:
        shape = (pairs.shape[0], plan.blocks, plan.block, plan.blocks, plan.block)
        seen = seen & pairs.reshape(shape).any(axis=(2, 4))
    return seen


def table_index(plan: Plan, rows: Int[Array, " V"]) -> dict[str, Int[Array, " U"]]:
    """Row of the given tables for each row of the tables by distance."""
    distances = {"pos_key": plan.key_distances, "pos_query": plan.query_distances}
    return {name: rows[distance + plan.length - 1] for name, distance in distances.items()}


def tables(plan: Plan, arrays: dict[str, jax.Array], rows: Int[Array, " V"]) -> dict[str, jax.Array]:
    """The tables with a row for each distance of the plan's windows, [U,W]: a gather of parameters."""
    made = {}
    for name, index in table_index(plan, rows).items():
        if name in arrays:
            table = _pad_heads(plan, arrays[name])
            made[name.replace("pos", "table")] = jnp.take(table.reshape(table.shape[0], -1), index, axis=0, mode="clip")
    return made


def sum_by_row(
    plan: Plan, gradient: Float[Array, "U W"], index: Int[Array, " U"], table: Float[Array, "R N H"]
) -> Float[Array, "R N H"]:
    """The gradient of ``tables``, summed in float32."""
    sums = jnp.zeros((table.shape[0], gradient.shape[1]), F32).at[index].add(gradient)
    sums = sums.reshape(table.shape[0], plan.padded_heads, plan.lanes_per_head)
    return sums[:, : plan.heads, : plan.head_size].astype(table.dtype)
