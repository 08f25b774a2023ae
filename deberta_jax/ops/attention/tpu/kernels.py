"""Computes disentangled attention by TPU kernels: scores, softmax, dropout and values in one pass, with linear memory.

The kernels read [B,T,N*H] as the projections leave it. Nothing score-shaped is in HBM, and nothing is gathered or
scattered except rows of the tables, which are parameters. Texts of up to 512 tokens are one block and have kernels of
their own. The kernels were verified in Pallas' interpreter, and
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
from deberta_jax.ops.attention.tpu import one_block_backward, one_block_forward
from deberta_jax.ops.attention.tpu.backward import backward_kernel
from deberta_jax.ops.attention.tpu.forward import forward_kernel
from deberta_jax.ops.attention.tpu.grid import KEY_MAJOR, QUERY_MAJOR, GridOrder, schedule


def forward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: Any = False
) -> tuple[Float[Array, "B T NH"], Float[Array, "B N T"]]:
    """Returns the context in the operands' dtype, and the logsumexp of each query, float32."""
    inputs, scalars = _operands(tiling, arrays, relative_index, ("query", "key", "value"), QUERY_MAJOR)
    if tiling.blocks == 1:
        context, logsumexp = one_block_forward.forward_kernel(tiling, inputs, scalars[1], interpret)
    else:
        context, logsumexp = forward_kernel(tiling, inputs, scalars, interpret)
    logsumexp = logsumexp.reshape(-1, tiling.padded_heads, tiling.padded_length)[:, : tiling.heads, : tiling.length]
    return layout.unpad_tokens(tiling, context), logsumexp


def backward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: Any = False
) -> dict[str, jax.Array]:
    """Returns the gradients of query, key, value and the tables given, by their names, each like its array.

    Args:
      arrays: those of ``forward``, its results ``context`` and ``logsumexp``, and the ``cotangent`` of the context.
    """
    names = ("query", "key", "value", "cotangent", *(() if tiling.blocks == 1 else ("context",)))
    inputs, scalars = _operands(tiling, arrays, relative_index, names, KEY_MAJOR)
    logsumexp = layout.pad_rows(tiling, arrays["logsumexp"])
    inputs |= {"logsumexp": logsumexp.reshape(-1, tiling.groups, tiling.group, tiling.padded_length)}
    if tiling.blocks == 1:
        results = one_block_backward.backward_kernel(tiling, inputs, scalars[1], interpret)
    else:
        results = backward_kernel(tiling, inputs, scalars, interpret)
    gradients = {name: layout.unpad_tokens(tiling, results[name]) for name in names[:3]}
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
) -> tuple[dict[str, jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns a kernel's arrays by name, and its scalars: the schedule and the seeds."""
    segment_ids, attention_mask = layout.pad_masks(tiling, arrays)
    inputs = {name: layout.pad_tokens(tiling, arrays[name]) for name in names}
    inputs |= layout.tables_by_distance(tiling, arrays, relative_index)
    inputs |= layout.mask_operands(segment_ids, attention_mask)
    seeds = lax.bitcast_convert_type(arrays["seeds"], jnp.int32)
    return inputs, (schedule(tiling, segment_ids, attention_mask, order), seeds)
