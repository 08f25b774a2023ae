"""Disentangled attention as a GPU kernel (Pallas, Triton): scores, softmax, dropout and values in one pass.

Triton and not Mosaic GPU: it runs on everything from Ampere on, and needs nothing that plain Triton code lacks, while
Pallas' Mosaic GPU has matrix products for Hopper and Blackwell only, and calls its own interface highly unstable. What
Triton lacks is a shift within registers: Pallas lowers neither a gather, a slice, nor arrays whose sides are no powers
of two. So products by distance pass through memory of the program, written as they are and read back moved
(``gpu_tiles``). That memory is bounded, as at most ``_PROGRAMS`` programs loop over the work.

Verified in Pallas' interpreter and lowered for CUDA without a GPU. **No GPU has ever run these kernels**, so
``selfcheck`` asks the device before they are used by default.

Cost, counted (not measured) in products of S by S by H for a pair of near blocks, where plain attention needs 2 forward
and 7 backward in two passes: forward 5, backward 27, namely queries 8, keys and values 9, tables 10; far blocks cost
little more than plain ones. Through the scratch of a pair go 20 S^2 bytes forward, 86 S^2 backward in half precision.
The blocks are the largest that Triton's own compiler fits into an A100's registers with little spilling.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from deberta_jax.ops.attention.gpu import backward as gpu_backward
from deberta_jax.ops.attention.gpu import forward as gpu_forward
from deberta_jax.ops.attention.gpu.block_pair import Program
from deberta_jax.ops.attention.pallas import layout
from deberta_jax.ops.attention.pallas.tiling import Plan
from deberta_jax.ops.products import F32

_PROGRAMS = 1024  # several for each of the 132 multiprocessors of an H100; their scratch is at most 64 MiB


def forward(
    plan: Plan, arrays: dict[str, jax.Array], rows: Int[Array, " V"], *, interpret: bool = False
) -> tuple[Float[Array, "B T NH"], Float[Array, "B N T"]]:
    """Context in the operands' dtype, and the log of the sum of exponentials of each query, float32."""
    inputs = _operands(plan, arrays, rows, ("query", "key", "value"))
    query = inputs["query"]
    logsum = jax.ShapeDtypeStruct((query.shape[0], plan.heads, plan.padded_length), F32)
    made = {"context": _like(query), "logsum": logsum}
    found = _each_block(plan, gpu_forward.attend, inputs, made, query_outer=True, interpret=interpret)
    return layout.unpadded(plan, found["context"]), found["logsum"][..., : plan.length]


def backward(
    plan: Plan, arrays: dict[str, jax.Array], rows: Int[Array, " V"], *, interpret: bool = False
) -> dict[str, jax.Array]:
    """Gradients of query, key, value and the tables given, each like its array. ``arrays`` hold what forward gave."""
    inputs = _operands(plan, arrays, rows, ("query", "key", "value", "cotangent"))
    by_head = lambda name: arrays[name].astype(F32).reshape(*arrays[name].shape[:2], plan.heads, plan.head_size)
    delta = (by_head("context") * by_head("cotangent")).sum(-1).swapaxes(1, 2)
    inputs |= {"logsum": layout.padded_rows(plan, arrays["logsum"]), "delta": layout.padded_rows(plan, delta)}
    gradients, totals = {}, {}
    for body, names, table in (
        (gpu_backward.query_slopes, ("query",), "table_key"),
        (gpu_backward.key_slopes, ("key", "value"), "table_query"),
    ):
        made = {f"d_{name}": _like(inputs[name]) for name in names}
        if table in inputs and (plan.far[0] > -plan.blocks or plan.far[1] < plan.blocks):
            shape = (inputs["query"].shape[0], plan.heads, 2, plan.padded_length)
            made["totals"] = jax.ShapeDtypeStruct(shape, F32)
        found = _each_block(plan, body, inputs, made, query_outer=names[0] == "query", interpret=interpret)
        gradients |= {name: layout.unpadded(plan, found[f"d_{name}"]) for name in names}
        if "totals" in found:
            totals[table] = found["totals"], inputs[names[0]]
    for name, slope in _table_slopes(plan, inputs, interpret=interpret).items():
        whole = _add_far(plan, slope, *totals[name]) if name in totals else slope
        given = name.replace("table", "pos")
        gradients[given] = layout.sum_by_row(plan, whole, layout.table_index(plan, rows)[given], arrays[given])
    return gradients


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _operands(plan: Plan, arrays: dict[str, jax.Array], rows: jax.Array, names: tuple[str, ...]) -> dict[str, Any]:
    texts, pairs = layout.masks(plan, arrays)
    inputs = {name: layout.padded(plan, arrays[name]) for name in names}
    inputs |= layout.tables(plan, arrays, rows) | layout.mask_operands(texts, pairs) | {"seeds": arrays["seeds"]}
    if texts is not None or pairs is not None:
        seen = layout.visible_blocks(plan, texts, pairs)
        inputs["seen"] = jnp.broadcast_to(seen, (inputs["query"].shape[0], plan.blocks, plan.blocks))
    return inputs


def _ranges(seen: Any, *, query_outer: bool) -> jax.Array:
    """First and one past the last block that each block sees: int32 [B, blocks, 2]; equal where it sees none."""
    seen = seen if query_outer else seen.swapaxes(1, 2)
    number = jnp.arange(seen.shape[2], dtype=jnp.int32)
    end = jnp.where(seen, number + 1, 0).max(axis=2)
    first = jnp.where(seen, number, seen.shape[2]).min(axis=2)
    return jnp.stack([jnp.minimum(first, end), end], axis=2)


def _each_block(
    plan: Plan, body: Callable, inputs: dict[str, Any], made: dict[str, Any], *, query_outer: bool, interpret: bool
) -> dict[str, jax.Array]:
    """Outputs of ``body(program)``, called for every block of every head and example; neighbours share a head."""

    def visit(refs, slot, at):
        outer, head = at % plan.blocks, at // plan.blocks % plan.heads
        example = at // (plan.blocks * plan.heads)
        body(Program(plan, refs, query_outer, interpret, slot, example, head, outer))

    work = plan.blocks * plan.heads * inputs["query"].shape[0]
    return _call(plan, visit, work, inputs, made, query_outer=query_outer, interpret=interpret)


def _call(
    plan: Plan,
    visit: Callable,
    work: int,
    inputs: dict[str, Any],
    made: dict[str, Any],
    *,
    query_outer: bool,
    interpret: bool,
) -> dict[str, jax.Array]:
    """Outputs ``made`` of ``visit(refs by name, program number, number below work)``, shared out among programs."""
    inputs = dict(inputs)
    if "seen" in inputs:
        inputs["ranges"] = _ranges(inputs.pop("seen"), query_outer=query_outer)
    programs = min(work, _PROGRAMS)
    square = programs * plan.block * plan.block
    scratch = {
        "outer_scores": jax.ShapeDtypeStruct((2 * square,), F32),
        "inner_scores": jax.ShapeDtypeStruct((2 * square,), F32),
    }
    if "cotangent" in inputs:
        scratch["d_scores"] = jax.ShapeDtypeStruct((square,), inputs["query"].dtype)
    outputs = made | scratch
    names = (*inputs, *outputs)

    def kernel(*given):
        refs, slot = dict(zip(names, given, strict=True)), pl.program_id(0)
        times = (work - slot + programs - 1) // programs
        lax.fori_loop(0, times, lambda n, nothing: visit(refs, slot, slot + n * programs), None)

    few = plan.block * plan.lanes_per_head <= 32 * 64
    found = pl.pallas_call(
        kernel,
        grid=(programs,),
        out_shape=tuple(outputs.values()),
        compiler_params=plgpu.CompilerParams(num_warps=4 if few else 8, num_stages=1),
        interpret=interpret,
        name="disentangled_attention",
    )(*inputs.values())
    return dict(zip(made, found, strict=False))


def _table_slopes(plan: Plan, inputs: dict[str, Any], *, interpret: bool) -> dict[str, Float[Array, "U W"]]:
    """Gradients of the tables by distance that near blocks read."""
    examples, width = inputs["query"].shape[0], plan.heads * plan.lanes_per_head
    first, count = plan.far[0] + 1, plan.far[1] - plan.far[0] - 1
    parts = max(1, min(_PROGRAMS // (plan.heads * count), examples * plan.blocks // 4))
    like = jax.ShapeDtypeStruct((parts, count, 2 * plan.block, width), F32)
    made = {f"d_{name}": like for name in ("table_key", "table_query") if name in inputs}
    if not made:
        return {}

    def visit(refs, slot, at):
        window, head, part = at % count, at // count % plan.heads, at // (count * plan.heads)
        view = lambda example, outer: Program(plan, refs, True, interpret, slot, example, head, outer)
        lanes = pl.ds(head * plan.lanes_per_head, plan.lanes_per_head)
        for name, total in gpu_backward.table_slopes(view, examples, first + window, part, parts).items():
            refs[f"d_{name}"][part, window, :, lanes] = total

    work = count * plan.heads * parts
    found = _call(plan, visit, work, inputs, made, query_outer=True, interpret=interpret)
    slopes = {name.removeprefix("d_"): windows.sum(axis=0) for name, windows in found.items()}
    return {name: _add_windows(plan, slope, ascending=name == "table_key") for name, slope in slopes.items()}


def _add_windows(plan: Plan, windows: Float[Array, "D V W"], *, ascending: bool) -> Float[Array, "U W"]:
    """Windows of neighbouring distances overlap by half. EK's stand in the order of D, EQ's in the reverse."""
    before, after = plan.far[0] + 1 - plan.nearest[0], plan.nearest[1] - plan.far[1] + 1
    if not ascending:
        windows, (before, after) = windows[::-1], (after, before)
    halves = windows.reshape(windows.shape[0], 2, plan.block, -1)
    put = lambda half: jnp.pad(halves[:, half], ((before + half, after + 1 - half), (0, 0), (0, 0)))
    return (put(0) + put(1)).reshape(plan.table_rows, -1)


def _add_far(
    plan: Plan, slope: Float[Array, "U W"], totals: Float[Array, "B N 2 L"], x: Float[Array, "B L W"]
) -> Float[Array, "U W"]:
    """Adds the gradient of the row that all far distances read: sums of dS of each token times the token."""
    by_head = x.reshape(*x.shape[:2], plan.heads, plan.lanes_per_head).astype(F32)
    added = jnp.einsum("BNFL,BLNH->FNH", totals, by_head, precision="highest").reshape(2, -1)
    return slope.at[jnp.array([0, plan.table_rows - 1])].add(added)
