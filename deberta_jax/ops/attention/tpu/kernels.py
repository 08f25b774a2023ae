"""Disentangled attention as a TPU kernel (Pallas): scores, softmax, dropout and values in one pass, memory linear.

The kernels read [B,T,N*H] as the projections leave it. Nothing score-shaped is in HBM, nothing is gathered or
scattered but rows of the tables, which are parameters. They were verified in Pallas' interpreter, and compiled ahead of
time for v5e, v5p and v6e; no TPU has run them yet, so ``selfcheck`` asks the device before they are used by default.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deberta_jax.ops.attention.pallas import layout
from deberta_jax.ops.attention.pallas.tiling import Plan
from deberta_jax.ops.attention.tpu import backward as tpu_backward
from deberta_jax.ops.attention.tpu import forward as tpu_forward
from deberta_jax.ops.attention.tpu import grid as operands


def forward(
    plan: Plan, arrays: dict[str, jax.Array], rows: Int[Array, " V"], *, interpret: Any = False
) -> tuple[Float[Array, "B T NH"], Float[Array, "B N T"]]:
    """Context in the operands' dtype, and the log of the sum of exponentials of each query, float32."""
    inputs, scalars = _operands(plan, arrays, rows, ("query", "key", "value"), operands.QUERY_MAJOR)
    context, logsum = tpu_forward.forward(plan, inputs, scalars, interpret)
    logsum = logsum.reshape(-1, plan.padded_heads, plan.padded_length)[:, : plan.heads, : plan.length]
    return layout.unpadded(plan, context), logsum


def backward(
    plan: Plan, arrays: dict[str, jax.Array], rows: Int[Array, " V"], *, interpret: Any = False
) -> dict[str, jax.Array]:
    """Gradients of query, key, value and the tables given, each like its array. ``arrays`` hold what forward gave."""
    names = ("query", "key", "value", "context", "cotangent")
    inputs, scalars = _operands(plan, arrays, rows, names, operands.KEY_MAJOR)
    logsum = layout.padded_rows(plan, arrays["logsum"])
    inputs |= {"logsum": logsum.reshape(-1, plan.groups, plan.group, plan.padded_length)}
    found = tpu_backward.backward(plan, inputs, scalars, interpret)
    gradients = {name: layout.unpadded(plan, found[name]) for name in names[:3]}
    for name, index in layout.table_index(plan, rows).items():
        if name in arrays:
            gradients[name] = layout.sum_by_row(plan, found[name.replace("pos", "table")], index, arrays[name])
    return gradients


def _operands(plan: Plan, arrays: dict[str, jax.Array], rows: jax.Array, names: tuple[str, ...], order: operands.Order):
    texts, pairs = layout.masks(plan, arrays)
    inputs = {name: layout.padded(plan, arrays[name]) for name in names}
    inputs |= layout.tables(plan, arrays, rows) | layout.mask_operands(texts, pairs)
    seeds = lax.bitcast_convert_type(arrays["seeds"], jnp.int32)
    return inputs, (operands.schedule(plan, texts, pairs, order), seeds)
