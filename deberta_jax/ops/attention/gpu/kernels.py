"""Computes disentangled attention by GPU kernels (Triton): scores, softmax, dropout and values in one pass.

Triton and not Mosaic GPU: Triton runs on everything from Ampere on. Pallas' Mosaic GPU has matrix products for Hopper
and Blackwell only, and calls its own interface highly unstable. Triton has no relative shift within registers: Pallas
lowers neither a gather, a slice, nor arrays whose sides are no powers of two. Products by distance therefore pass
through memory of the program (``block_pair``). That memory is bounded, as at most ``max_programs`` programs loop over
the work.

The kernels were verified in Pallas' interpreter and lowered for CUDA without a GPU. **No GPU has ever run them**:
``pallas.self_check`` asks the device before ``auto`` uses them.

Cost, counted (not measured) in products of S by S by H for a pair of near blocks, where plain attention needs 2 forward
and 7 backward in two passes: forward 5, backward 27, namely queries 8, keys and values 9, tables 10. Far blocks cost
little more than plain ones. 20 S^2 bytes pass through the scratch of a pair forward, 86 S^2 backward in half precision.
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

from deberta_jax.ops.attention.gpu.backward import key_value_gradients, query_gradients, table_gradients
from deberta_jax.ops.attention.gpu.block_pair import KernelProgram
from deberta_jax.ops.attention.gpu.forward import attend
from deberta_jax.ops.attention.pallas import layout
from deberta_jax.ops.attention.pallas.tiling import Tiling
from deberta_jax.ops.products import F32


def forward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: bool = False
) -> dict[str, jax.Array]:
    """Returns ``context`` [B,T,N*H] in the operands' dtype, and the ``logsumexp`` of each query, float32 [B,N,T].

    Of 16 bits, also ``context_rest`` like the context: what rounding has taken from it.
    """
    inputs = _operands(tiling, arrays, relative_index, ("query", "key", "value"))
    query = inputs["query"]
    logsumexp = jax.ShapeDtypeStruct((query.shape[0], tiling.heads, tiling.padded_length), F32)
    outputs = {"context": _like(query), "logsumexp": logsumexp}
    outputs |= {"context_rest": _like(query)} if query.dtype != F32 else {}
    results = _call_for_blocks(tiling, attend, inputs, outputs, query_outer=True, interpret=interpret)
    logsumexp = results.pop("logsumexp")[..., : tiling.length]
    return {name: layout.unpad_tokens(tiling, x) for name, x in results.items()} | {"logsumexp": logsumexp}


def backward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: bool = False
) -> dict[str, jax.Array]:
    """Returns the gradients of query, key, value and the tables given, by their names, each like its array.

    Args:
      arrays: those of ``forward``, its results, and the ``cotangent`` of the context.
    """
    inputs = _operands(tiling, arrays, relative_index, ("query", "key", "value", "cotangent"))
    inputs |= {
        "logsumexp": layout.pad_rows(tiling, arrays["logsumexp"]),
        "delta": layout.pad_rows(tiling, layout.softmax_delta(tiling, arrays)),
    }
    gradients, far_sums = {}, {}
    for kernel, names, table in (
        (query_gradients, ("query",), "table_key"),
        (key_value_gradients, ("key", "value"), "table_query"),
    ):
        outputs = {f"d_{name}": _like(inputs[name]) for name in names}
        if table in inputs and tiling.has_far:
            shape = (inputs["query"].shape[0], tiling.heads, 2, tiling.padded_length)
            outputs["far_sums"] = jax.ShapeDtypeStruct(shape, F32)
        results = _call_for_blocks(
            tiling, kernel, inputs, outputs, query_outer=names[0] == "query", interpret=interpret
        )
        gradients |= {name: layout.unpad_tokens(tiling, results[f"d_{name}"]) for name in names}
        if "far_sums" in results:
            far_sums[table] = results["far_sums"], inputs[names[0]]
    for table, d_table in _near_table_gradients(tiling, inputs, interpret=interpret).items():
        whole = _add_far(tiling, d_table, *far_sums[table]) if table in far_sums else d_table
        name = table.replace("table", "pos")
        index = layout.expanded_index(tiling, relative_index)[name]
        gradients[name] = layout.sum_by_row(tiling, whole, index, arrays[name])
    return gradients


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _operands(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: jax.Array, names: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the arrays of a kernel by name, and ``block_mask`` [B,blocks,blocks] if anything is masked."""
    segment_ids, attention_mask = layout.pad_masks(tiling, arrays)
    inputs = {name: layout.pad_tokens(tiling, arrays[name]) for name in names}
    inputs |= layout.tables_by_distance(tiling, arrays, relative_index)
    inputs |= layout.mask_operands(segment_ids, attention_mask) | {"seeds": arrays["seeds"]}
    if segment_ids is not None or attention_mask is not None:
        mask = layout.block_mask(tiling, segment_ids, attention_mask)
        inputs["block_mask"] = jnp.broadcast_to(mask, (inputs["query"].shape[0], tiling.blocks, tiling.blocks))
    return inputs


def _ranges(block_mask: Any, *, query_outer: bool) -> jax.Array:
    """Returns the first and one past the last inner block of each outer one: int32 [B,blocks,2]; equal if none."""
    block_mask = block_mask if query_outer else block_mask.swapaxes(1, 2)
    number = jnp.arange(block_mask.shape[2], dtype=jnp.int32)
    end = jnp.where(block_mask, number + 1, 0).max(axis=2)
    first = jnp.where(block_mask, number, block_mask.shape[2]).min(axis=2)
    return jnp.stack([jnp.minimum(first, end), end], axis=2)


def _call_for_blocks(
    tiling: Tiling,
    kernel: Callable[[KernelProgram], None],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    *,
    query_outer: bool,
    interpret: bool,
) -> dict[str, jax.Array]:
    """Returns what ``kernel`` stores for every block of every head and example; neighbouring programs share a head."""

    def visit(refs, slot, at):
        outer, head = at % tiling.blocks, at // tiling.blocks % tiling.heads
        example = at // (tiling.blocks * tiling.heads)
        kernel(KernelProgram(tiling, refs, query_outer, interpret, slot, example, head, outer))

    work = tiling.blocks * tiling.heads * inputs["query"].shape[0]
    return _call(tiling, visit, work, inputs, outputs, query_outer=query_outer, interpret=interpret)


def _call(
    tiling: Tiling,
    visit: Callable,
    work: int,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    *,
    query_outer: bool,
    interpret: bool,
) -> dict[str, jax.Array]:
    """Returns what ``visit(refs by name, program number, number below work)`` stores, divided among programs."""
    inputs = dict(inputs)
    if "block_mask" in inputs:
        inputs["ranges"] = _ranges(inputs.pop("block_mask"), query_outer=query_outer)
    programs = min(work, tiling.max_programs)
    square = programs * tiling.block_size * tiling.block_size
    scratch = {
        "outer_products": jax.ShapeDtypeStruct((2 * square,), F32),
        "inner_products": jax.ShapeDtypeStruct((2 * square,), F32),
    }
    if "cotangent" in inputs:
        scratch["d_scores"] = jax.ShapeDtypeStruct((square,), inputs["query"].dtype)
    results = outputs | scratch
    names = (*inputs, *results)

    def kernel(*given):
        refs, slot = dict(zip(names, given, strict=True)), pl.program_id(0)
        times = (work - slot + programs - 1) // programs
        lax.fori_loop(0, times, lambda n, nothing: visit(refs, slot, slot + n * programs), None)

    is_small = tiling.block_size * tiling.lanes_per_head <= 32 * 64
    stored = pl.pallas_call(
        kernel,
        grid=(programs,),
        out_shape=tuple(results.values()),
        compiler_params=plgpu.CompilerParams(num_warps=4 if is_small else 8, num_stages=1),
        interpret=interpret,
        name="disentangled_attention",
    )(*inputs.values())
    return dict(zip(outputs, stored, strict=False))


def _near_table_gradients(tiling: Tiling, inputs: dict[str, Any], *, interpret: bool) -> dict[str, Float[Array, "U W"]]:
    """Returns the gradients of the tables by distance from pairs of near blocks."""
    examples, width = inputs["query"].shape[0], tiling.heads * tiling.lanes_per_head
    first, count = tiling.far[0] + 1, tiling.far[1] - tiling.far[0] - 1
    parts = max(1, min(tiling.max_programs // (tiling.heads * count), examples * tiling.blocks // 4))
    like = jax.ShapeDtypeStruct((parts, count, 2 * tiling.block_size, width), F32)
    outputs = {f"d_{name}": like for name in ("table_key", "table_query") if name in inputs}
    if not outputs:
        return {}

    def visit(refs, slot, at):
        window, head, part = at % count, at // count % tiling.heads, at // (count * tiling.heads)
        make_program = lambda example, outer: KernelProgram(tiling, refs, True, interpret, slot, example, head, outer)
        lanes = pl.ds(head * tiling.lanes_per_head, tiling.lanes_per_head)
        for name, total in table_gradients(make_program, examples, first + window, part, parts).items():
            refs[f"d_{name}"][part, window, :, lanes] = total

    work = count * tiling.heads * parts
    results = _call(tiling, visit, work, inputs, outputs, query_outer=True, interpret=interpret)
    windows = {name.removeprefix("d_"): d_windows.sum(axis=0) for name, d_windows in results.items()}
    return {name: _add_windows(tiling, d, ascending=name == "table_key") for name, d in windows.items()}


def _add_windows(tiling: Tiling, windows: Float[Array, "D V W"], *, ascending: bool) -> Float[Array, "U W"]:
    """Returns the sum of windows of neighbouring offsets, which overlap by half.

    Args:
      ascending: windows are in the order of the offsets (``table_key``), or in the reverse (``table_query``).
    """
    before, after = tiling.far[0] + 1 - tiling.near[0], tiling.near[1] - tiling.far[1] + 1
    if not ascending:
        windows, (before, after) = windows[::-1], (after, before)
    halves = windows.reshape(windows.shape[0], 2, tiling.block_size, -1)
    pad = lambda half: jnp.pad(halves[:, half], ((before + half, after + 1 - half), (0, 0), (0, 0)))
    return (pad(0) + pad(1)).reshape(tiling.table_rows, -1)


def _add_far(
    tiling: Tiling, d_table: Float[Array, "U W"], far_sums: Float[Array, "B N 2 L"], x: Float[Array, "B L W"]
) -> Float[Array, "U W"]:
    """Returns ``d_table`` with the gradient of the rows that far blocks read: sums of dS per token times the token."""
    by_head = x.reshape(*x.shape[:2], tiling.heads, tiling.lanes_per_head).astype(F32)
    added = jnp.einsum("BNFL,BLNH->FNH", far_sums, by_head, precision="highest").reshape(2, -1)
    return d_table.at[jnp.array([0, tiling.table_rows - 1])].add(added)
