"""Computes disentangled attention by TPU kernels: scores, softmax, dropout and values in one pass, with linear memory.

The kernels read [B,T,N*H] as the projections leave it. Nothing score-shaped is in HBM, and nothing is gathered or
scattered except rows of the tables, which are parameters. The kernels were verified in Pallas' interpreter, and
compiled ahead of time for v5e, v5p and v6e. No TPU has run them yet: ``pallas.self_check`` asks the device before
``auto`` uses them.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deberta_jax.ops.attention.pallas import layout
from deberta_jax.ops.attention.pallas.tiling import Tiling
from deberta_jax.ops.attention.tpu.backward import backward_kernel
from deberta_jax.ops.attention.tpu.forward import forward_kernel
from deberta_jax.ops.attention.tpu.grid import KEY_MAJOR, QUERY_MAJOR, TERMS, GridOrder, schedule
from deberta_jax.ops.products import F32


def forward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: Any = False
) -> dict[str, jax.Array]:
    """Returns ``context`` [B,T,N*H] in the operands' dtype, and the ``logsumexp`` of each query, float32 [B,N,T].

    Of 16 bits, also ``context_rest`` like the context: what rounding has taken from it; of one block zeros, since there
    the backward has no use for it, and XLA removes it.
    """
    inputs, scalars = _operands(tiling, arrays, relative_index, ("query", "key", "value"), QUERY_MAJOR)
    results = forward_kernel(tiling, inputs, scalars, interpret)
    logsumexp = results.pop("logsumexp").reshape(-1, tiling.padded_heads, tiling.padded_length)
    contexts = {name: layout.unpad_tokens(tiling, x) for name, x in results.items()}
    if tiling.blocks == 1 and inputs["query"].dtype != F32:
        contexts["context_rest"] = jnp.zeros_like(contexts["context"])
    return contexts | {"logsumexp": logsumexp[:, : tiling.heads, : tiling.length]}


def backward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: Any = False
) -> dict[str, jax.Array]:
    """Returns the gradients of query, key, value and the tables given, by their names, each like its array.

    Args:
      arrays: those of ``forward``, its results, and the ``cotangent`` of the context.
    """
    names = ("query", "key", "value")
    inputs, scalars = _operands(tiling, arrays, relative_index, (*names, "cotangent"), KEY_MAJOR)
    of_queries = {"logsumexp": arrays["logsumexp"]}
    if tiling.blocks > 1:  # a program that has all keys computes it
        of_queries["delta"] = layout.softmax_delta(tiling, arrays)
    by_group = (-1, tiling.groups, tiling.group, tiling.padded_length)
    inputs |= {name: layout.pad_rows(tiling, x).reshape(by_group) for name, x in of_queries.items()}
    results = backward_kernel(tiling, inputs, scalars, interpret)
    gradients = {name: layout.unpad_tokens(tiling, results[name]) for name in names}
    for name, index in layout.expanded_index(tiling, relative_index).items():
        if name in arrays:
            gradients[name] = layout.sum_by_row(tiling, results[name.replace("pos", "table")], index, arrays[name])
    return gradients


def _operands(
    tiling: Tiling,
    arrays: dict[str, jax.Array],
    relative_index: jax.Array,
    names: tuple[str, ...],
    order: GridOrder,
) -> tuple[dict[str, jax.Array], tuple[jax.Array, ...]]:
    """Returns a kernel's arrays by name, and its scalars: the schedule, the seeds, and the norms of the tables."""
    segment_ids, attention_mask = layout.pad_masks(tiling, arrays)
    inputs = {name: layout.pad_tokens(tiling, arrays[name]) for name in names}
    inputs |= layout.tables_by_distance(tiling, arrays, relative_index)
    inputs |= layout.mask_operands(segment_ids, attention_mask)
    seeds = lax.bitcast_convert_type(arrays["seeds"], jnp.int32)
    return inputs, (schedule(tiling, segment_ids, attention_mask, order), seeds, _table_norms(tiling, arrays))


def _table_norms(tiling: Tiling, arrays: dict[str, jax.Array]) -> Float[Array, " M"]:
    """Returns the largest norm of a row of each term's table, head by head, float32; 0 if the table is not given."""
    norms = []
    for _, name in TERMS:
        table = arrays.get(name.replace("table", "pos"))
        found = 0.0 if table is None else jnp.sqrt(jnp.square(table.astype(F32)).sum(axis=2).max(axis=0))
        norms.append(jnp.zeros((tiling.padded_heads,), F32).at[: tiling.heads].set(found))
    return jnp.concatenate(norms)
