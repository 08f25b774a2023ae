"""Disentangled attention as a TPU kernel (Pallas): scores, softmax, dropout and values in one pass, memory linear.

The kernels read [B,T,N*H] as the projections leave it. Nothing score-shaped is in HBM, nothing is gathered or
scattered but rows of the tables, which are parameters. They were verified in Pallas' interpreter, and compiled ahead of
time for v5e, v5p and v6e; no TPU has run them yet, so ``selfcheck`` asks the device before they are used by default.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.errors import InputError
from deberta_jax.ops.dropout import LONGEST, dropout_seeds
from deberta_jax.ops.pallas import operands
from deberta_jax.ops.pallas.plan import Plan, make_plan
from deberta_jax.ops.pallas.tpu_backward import backward
from deberta_jax.ops.pallas.tpu_forward import forward
from deberta_jax.ops.products import F32
from deberta_jax.sharding import RULES, MeshAxes

_DTYPES = (jnp.float32, jnp.bfloat16)


def pallas_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    pos_key: Float[Array, "R N H"] | None,
    pos_query: Float[Array, "R N H"] | None,
    rows: Int[np.ndarray, " U"],
    *,
    scale: float,
    texts: Int[Array, "B T"] | None = None,
    pairs: Bool[Array, "B T T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    interpret: Any = False,
) -> Float[Array, "B T N H"]:
    """Context; arguments as in ``ops.attention.disentangled_attention``.

    Args:
      interpret: run the kernels in Pallas' interpreter, on any backend and slowly: for tests.

    Raises:
      InputError: arrays that are neither float32 nor bfloat16, or a text longer than 65536 tokens.
    """
    given = [a for a in (query, key, value, pos_key, pos_query) if a is not None]
    dtypes = sorted({str(a.dtype) for a in given})
    if len(dtypes) > 1 or query.dtype not in _DTYPES:
        raise InputError(
            f"attention='pallas' computes in float32 or bfloat16, all arrays alike, not {', '.join(dtypes)}; "
            "use another dtype, or attention='shift'"
        )
    _, length, heads, _ = query.shape
    if length > LONGEST:
        raise InputError(f"attention='pallas' takes at most {LONGEST} tokens, not {length}")
    rate = 0.0 if dropout_key is None else dropout_rate
    arrays = {"query": query, "key": key, "value": value, "pos_key": pos_key, "pos_query": pos_query}
    arrays |= {"texts": texts, "pairs": pairs}
    arrays |= {"seeds": None if dropout_key is None or not rate else dropout_seeds(dropout_key)}
    arrays = {name: a for name, a in arrays.items() if a is not None}
    return _on_each_device(functools.partial(_attend_here, rows, scale, rate, heads, interpret), arrays)


_AXES = {
    **dict.fromkeys(("query", "key", "value"), ("batch", None, "heads", None)),
    **dict.fromkeys(("pos_key", "pos_query"), (None, "heads", None)),
    "texts": ("batch", None),
    "pairs": ("batch", None, None),
    "seeds": (None,),
}


def _on_each_device(attend: Callable, arrays: dict[str, jax.Array]) -> Float[Array, "B T N H"]:
    """``attend(arrays, first example, first head)`` on each device's examples and heads, where a mesh is set.

    XLA cannot divide a kernel by itself. A mesh axis that does not divide the examples, or heads, is not used for them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attend(arrays, 0, 0)
    sizes = {"batch": arrays["query"].shape[0], "heads": arrays["query"].shape[2]}
    names = {axis: _dividing(mesh.shape, getattr(RULES, axis), size) for axis, size in sizes.items()}
    spec = lambda axes: PartitionSpec(*(None if axis is None else names[axis] for axis in axes))

    def here(arrays):
        counts = arrays["query"].shape[0], arrays["query"].shape[2]
        numbers = (lax.axis_index(names[axis]) if names[axis] else 0 for axis in sizes)
        return attend(arrays, *(number * count for number, count in zip(numbers, counts, strict=True)))

    in_specs = ({name: spec(_AXES[name]) for name in arrays},)
    return jax.shard_map(here, mesh=mesh, in_specs=in_specs, out_specs=spec(_AXES["query"]), check_vma=False)(arrays)


def _dividing(mesh: Mapping[str, int], axes: MeshAxes, size: int) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return axes if size % math.prod(mesh[axis] for axis in axes) == 0 else ()


def _attend_here(rows, scale, rate, all_heads, interpret, arrays, first_example, first_head):
    """One device's part. Dropout numbers examples and heads over all devices: the mask is that of one device."""
    query, texts, pairs = (arrays.get(name) for name in ("query", "texts", "pairs"))
    _, length, heads, head_size = query.shape
    plan = make_plan(length, heads, head_size, rows, scale=scale, rate=rate, all_heads=all_heads)
    seeds = lax.bitcast_convert_type(arrays.get("seeds", jnp.zeros((2,), jnp.uint32)), jnp.int32)
    seeds = jnp.append(seeds, jnp.stack([jnp.int32(first_example), jnp.int32(first_head)]))
    if texts is None and pairs is None and plan.padded_length > length:
        texts = jnp.ones(query.shape[:2], jnp.int32)
    read = tuple(jnp.asarray(rows[d + length - 1]) for d in (plan.key_distances, plan.query_distances))
    tables = arrays.get("pos_key"), arrays.get("pos_query")
    return _attend(plan, interpret, query, arrays["key"], arrays["value"], *tables, texts, pairs, seeds, read)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(plan, interpret, query, key, value, pos_key, pos_query, texts, pairs, seeds, read):
    return _attend_forward(plan, interpret, query, key, value, pos_key, pos_query, texts, pairs, seeds, read)[0]


def _attend_forward(plan, interpret, query, key, value, pos_key, pos_query, texts, pairs, seeds, read):
    arrays = {"query": query, "key": key, "value": value}
    arrays = {name: _flat(plan, a) for name, a in arrays.items()}
    texts, pairs = _masks(plan, texts, pairs)
    steps = operands.schedule(plan, texts, pairs, operands.QUERY_MAJOR)
    inputs = arrays | _tables(plan, pos_key, pos_query, read) | _present(texts, pairs)
    context, logsum = forward(plan, inputs, (steps, seeds), interpret)
    saved = arrays | {"context": context, "logsum": logsum}
    return _unflat(plan, context), (saved, pos_key, pos_query, texts, pairs, seeds, read)


def _attend_backward(plan, interpret, saved, cotangent):
    arrays, pos_key, pos_query, texts, pairs, seeds, read = saved
    steps = operands.schedule(plan, texts, pairs, operands.KEY_MAJOR)
    inputs = arrays | _tables(plan, pos_key, pos_query, read) | _present(texts, pairs)
    inputs |= {"cotangent": _flat(plan, cotangent)}
    found = backward(plan, inputs, (steps, seeds), interpret)
    tables = (
        None if pos is None else _sum_by_row(plan, found[name], index, pos)
        for pos, name, index in zip((pos_key, pos_query), ("table_key", "table_query"), read, strict=True)
    )
    return (*(_unflat(plan, found[name]) for name in ("query", "key", "value")), *tables, None, None, None, None)


_attend.defvjp(_attend_forward, _attend_backward)


def _pad_heads(plan: Plan, x: jax.Array) -> jax.Array:
    """[..., N, H] with heads and their sizes as the kernel takes them."""
    widths = [(0, 0)] * (x.ndim - 2) + [(0, plan.padded_heads - plan.heads), (0, plan.lanes_per_head - plan.head_size)]
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def _flat(plan: Plan, x: Float[Array, "B T N H"]) -> Float[Array, "B L W"]:
    x = _pad_heads(plan, x)
    x = x.reshape(*x.shape[:2], -1)
    return jnp.pad(x, ((0, 0), (0, plan.padded_length - plan.length), (0, 0)))


def _unflat(plan: Plan, x: Float[Array, "B L W"]) -> Float[Array, "B T N H"]:
    x = x[:, : plan.length].reshape(x.shape[0], plan.length, plan.padded_heads, plan.lanes_per_head)
    return x[:, :, : plan.heads, : plan.head_size]


def _tables(plan: Plan, pos_key, pos_query, read) -> dict[str, jax.Array]:
    """The tables with a row for each distance of the plan's windows, [U, N*H]: a gather of parameters."""
    tables = {}
    for name, table, index in zip(("table_key", "table_query"), (pos_key, pos_query), read, strict=True):
        if table is not None:
            table = _pad_heads(plan, table)
            tables[name] = jnp.take(table.reshape(table.shape[0], -1), index, axis=0, mode="clip")
    return tables


def _sum_by_row(plan: Plan, gradient: Float[Array, "U W"], index: Int[Array, " U"], table: Float[Array, "R N H"]):
    """The gradient of ``_tables``, summed in float32."""
    sums = jnp.zeros((table.shape[0], gradient.shape[1]), F32).at[index].add(gradient)
    sums = sums.reshape(table.shape[0], plan.padded_heads, plan.lanes_per_head)
    return sums[:, : plan.heads, : plan.head_size].astype(table.dtype)


def _masks(plan: Plan, texts, pairs) -> tuple[Int[Array, "B L"] | None, Bool[Array, "B L L"] | None]:
    """Masks of the padded length, in which padding is invisible; None where everything is visible."""
    after = plan.padded_length - plan.length
    if pairs is not None:
        pairs = jnp.pad(pairs, ((0, 0), (0, after), (0, after)))
    if texts is not None:
        texts = jnp.pad(texts.astype(jnp.int32), ((0, 0), (0, after)))
    return texts, pairs


def _present(texts, pairs) -> dict[str, jax.Array]:
    arrays = {} if texts is None else {"texts": texts[:, None]}
    return arrays if pairs is None else arrays | {"pairs": pairs.astype(jnp.int8)}
