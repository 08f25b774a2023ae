"""Computes disentangled attention by GPU kernels: scores, softmax, dropout and values in one pass.

They are written for Pallas' Mosaic GPU backend: one text for every NVIDIA GPU from Ampere on, with the operations of a
Hopper (``hopper``) or of any (``warpgroup``). They are compiled ahead of time for such GPUs and verified in Pallas'
interpreter. **No GPU has ever run them**: ``pallas.self_check`` asks the device before ``auto`` uses them.

Cost in products of S by S by H for a pair of near blocks, where plain attention needs 2 forward and 7 backward in two
passes: forward 6, backward 23, namely queries 11, keys and values 12. Far blocks need those of plain attention.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deberta_jax.ops.attention.gpu.backward import clear_table_gradient, gradients
from deberta_jax.ops.attention.gpu.block_pair import KernelProgram
from deberta_jax.ops.attention.gpu.forward import attend
from deberta_jax.ops.attention.gpu.hopper import HopperWarpgroup
from deberta_jax.ops.attention.gpu.warpgroup import Warpgroup
from deberta_jax.ops.attention.pallas import layout
from deberta_jax.ops.attention.pallas.tiling import Tiling
from deberta_jax.ops.products import F32

MAX_TABLE_BYTES = 128 * 2**20  # of all programs' gradients of a table


def forward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: bool = False
) -> dict[str, jax.Array]:
    """Returns ``context`` [B,T,N*H] in the operands' dtype, and the ``logsumexp`` of each query, float32 [B,N,T].

    Of 16 bits, also ``context_rest`` like the context: what rounding has taken from it.
    """
    inputs = _operands(tiling, arrays, relative_index, ("query", "key", "value"), query_outer=True)
    query = inputs["query"]
    logsumexp = jax.ShapeDtypeStruct((query.shape[0], tiling.heads, tiling.padded_length), F32)
    outputs = {"context": _like(query), "logsumexp": logsumexp}
    outputs |= {"context_rest": _like(query)} if query.dtype != F32 else {}
    parts = query.shape[0] * tiling.blocks
    results = _call(
        tiling, "disentangled_attention_forward", attend, inputs, outputs, parts, query_outer=True, interpret=interpret
    )
    logsumexp = results.pop("logsumexp")[..., : tiling.length]
    return {name: layout.unpad_tokens(tiling, x) for name, x in results.items()} | {"logsumexp": logsumexp}


def backward(
    tiling: Tiling, arrays: dict[str, jax.Array], relative_index: Int[Array, " V"], *, interpret: bool = False
) -> dict[str, jax.Array]:
    """Returns the gradients of query, key, value and the tables given, by their names, each like its array.

    Args:
      arrays: those of ``forward``, its results, and the ``cotangent`` of the context.
    """
    found = {}
    softmax = {
        "logsumexp": layout.pad_rows(tiling, arrays["logsumexp"]),
        "delta": layout.pad_rows(tiling, layout.softmax_delta(tiling, arrays)),
    }
    for names, table in ((("query",), "table_key"), (("key", "value"), "table_query")):
        query_outer = names[0] == "query"
        operands = ("query", "key", "value", "cotangent")
        inputs = _operands(tiling, arrays, relative_index, operands, query_outer=query_outer) | softmax
        examples = inputs["query"].shape[0]
        outputs = {f"d_{name}": _like(inputs[name]) for name in names}
        parts, halves = examples * tiling.blocks, tiling.table_rows // tiling.block_size
        if table in inputs:
            parts = min(parts, _table_parts(tiling))
            shape = (parts, tiling.heads, tiling.table_rows, tiling.lanes_per_head)
            outputs["d_table"] = jax.ShapeDtypeStruct(shape, F32)
            if tiling.has_far:
                outputs["far_sums"] = jax.ShapeDtypeStruct((examples, tiling.heads, 2, tiling.padded_length), F32)

        results = _call(
            tiling,
            f"disentangled_attention_backward_{names[0]}",
            gradients,
            inputs,
            outputs,
            parts,
            query_outer=query_outer,
            interpret=interpret,
            start=functools.partial(clear_table_gradient, halves=halves),
        )
        found |= {name: layout.unpad_tokens(tiling, results[f"d_{name}"]) for name in names}
        if table in inputs:
            whole = results["d_table"].sum(axis=0).swapaxes(0, 1).reshape(tiling.table_rows, -1)
            if "far_sums" in results:
                whole = _add_far(tiling, whole, results["far_sums"], inputs[names[0]])
            name = table.replace("table", "pos")
            index = layout.expanded_index(tiling, relative_index)[name]
            found[name] = _sum_by_row(tiling, whole, index, arrays[name])
    return found


def _table_parts(tiling: Tiling) -> int:
    """Returns among how many programs a head's blocks are divided, each of which has its own gradient of the table."""
    table = tiling.heads * tiling.table_rows * tiling.lanes_per_head * 4
    return max(1, min(tiling.max_programs // tiling.heads, MAX_TABLE_BYTES // table))


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _operands(
    tiling: Tiling,
    arrays: dict[str, jax.Array],
    relative_index: jax.Array,
    names: tuple[str, ...],
    *,
    query_outer: bool,
) -> dict[str, Any]:
    """Returns the arrays of a kernel by name.

    ``ranges`` int32 [B,blocks,2], if anything is masked: the first and one past the last inner block of each outer one.
    ``far_table_key`` and ``far_table_query`` float32 [B,N,2,L]: products with the first and last row of a table, which
    far blocks read; ``far_rows`` float32 [2,W]: those rows of the outer block's table.
    """
    segment_ids, attention_mask = layout.pad_masks(tiling, arrays)
    inputs = {name: layout.pad_tokens(tiling, arrays[name]) for name in names}
    inputs |= (tables := layout.tables_by_distance(tiling, arrays, relative_index))
    inputs |= layout.mask_operands(segment_ids, attention_mask) | {"seeds": arrays["seeds"]}
    if segment_ids is not None or attention_mask is not None:
        mask = layout.block_mask(tiling, segment_ids, attention_mask)
        mask = jnp.broadcast_to(mask, (inputs["query"].shape[0], tiling.blocks, tiling.blocks))
        inputs["ranges"] = _ranges(mask if query_outer else mask.swapaxes(1, 2))
    if not tiling.has_far:
        return inputs
    by_head = lambda x: x.reshape(*x.shape[:-1], tiling.heads, tiling.lanes_per_head)
    ends = {name: table[jnp.array([0, tiling.table_rows - 1])] for name, table in tables.items()}
    for name, rows in ends.items():
        tokens = inputs["query" if name == "table_key" else "key"]
        inputs[f"far_{name}"] = jnp.einsum(
            "BLNH,FNH->BNFL", by_head(tokens), by_head(rows), precision="highest", preferred_element_type=F32
        )
    outer = "table_key" if query_outer else "table_query"
    return inputs | ({"far_rows": ends[outer].astype(F32)} if outer in ends else {})


def _ranges(block_mask: Any) -> jax.Array:
    number = jnp.arange(block_mask.shape[2], dtype=jnp.int32)
    end = jnp.where(block_mask, number + 1, 0).max(axis=2)
    first = jnp.where(block_mask, number, block_mask.shape[2]).min(axis=2)
    return jnp.stack([jnp.minimum(first, end), end], axis=2)


def _call(
    tiling: Tiling,
    name: str,
    kernel: Callable[[KernelProgram], None],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    parts: int,
    *,
    query_outer: bool,
    interpret: bool,
    start: Callable[[KernelProgram], None] = lambda program: None,
) -> dict[str, jax.Array]:
    """Returns what ``kernel`` stores for every block of every head and example.

    Args:
      parts: programs of each head, among which its blocks are divided in turn.
      start: what each of them does first.
    """
    group = (HopperWarpgroup if tiling.hopper else Warpgroup)(
        inputs["query"].dtype,
        tiling.block_size,
        tiling.lanes_per_head,
        interpret,
        tables=tuple(name for name in ("table_key", "table_query") if name in inputs),
        arrays=2 if "cotangent" in inputs else 1,
    )
    work = tiling.blocks * inputs["query"].shape[0]

    def program(refs, head, part):
        blocks = jnp.int32(tiling.blocks)

        def at_work(at):
            example, outer = lax.div(at, blocks), lax.rem(at, blocks)
            return KernelProgram(tiling, refs, query_outer, group, part, example, head, outer)

        def visit(n, nothing):
            kernel(at_work(part + n * parts))
            return nothing

        start(at_work(part))
        if parts == work:
            kernel(at_work(part))
        else:
            lax.fori_loop(0, lax.div(work - part + (parts - 1), jnp.int32(parts)), visit, jnp.int32(0))

    return group.call(name, program, (tiling.heads, parts), inputs, outputs)


def _add_far(
    tiling: Tiling, d_table: Float[Array, "U W"], far_sums: Float[Array, "B N 2 L"], x: Float[Array, "B L W"]
) -> Float[Array, "U W"]:
    """Returns ``d_table`` with the gradient of the rows that far blocks read: sums of dS per token times the token."""
    by_head = x.reshape(*x.shape[:2], tiling.heads, tiling.lanes_per_head).astype(F32)
    added = jnp.einsum("BNFL,BLNH->FNH", far_sums, by_head, precision="highest").reshape(2, -1)
    between = jnp.zeros((tiling.table_rows - 2, added.shape[1]), F32)
    return d_table + jnp.concatenate([added[:1], between, added[1:]])


def _sum_by_row(
    tiling: Tiling, gradient: Float[Array, "U W"], index: Int[Array, " U"], table: Float[Array, "R N H"]
) -> Float[Array, "R N H"]:
    """Returns the gradient of a table from that of its table by distance, summed in float32, in the table's dtype.

    By a product and not by a scatter, whose additions have no fixed order on a GPU.
    """
    rows = jnp.arange(table.shape[0], dtype=index.dtype)
    sums = jnp.dot((rows[:, None] == index[None, :]).astype(F32), gradient, precision="highest")
    sums = sums.reshape(table.shape[0], tiling.padded_heads, tiling.lanes_per_head)
    return sums[:, : tiling.heads, : tiling.head_size].astype(table.dtype)
