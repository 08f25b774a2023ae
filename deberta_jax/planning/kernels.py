"""Counts what the Pallas attention kernels cost; the compiler knows only a kernel's operands and results.

A program of a kernel computes one block of queries against one block of keys. Matmuls run over all 128 lanes for any
head size. Every pair of blocks is counted, although packed rows skip pairs that the mask hides.
"""

import re

from deberta_jax.ops.attention.pallas.tiling import GPU_BLOCK, TILE, tpu_block_size
from deberta_jax.planning.hlo import Array, Instruction


def kernel_cost(call: Instruction, operands: tuple[Array, ...]) -> tuple[float, float]:
    """Returns (FLOPs, bytes of main memory) of one run of a kernel's custom call.

    Raises:
      ValueError: an unknown kernel.
    """
    backward = call.name.startswith("disentangled_attention_backward")
    if not backward and not call.name.startswith("disentangled_attention_forward"):
        raise ValueError(f"{call.name}: a kernel whose cost is not known; add it to planning.kernels")
    arrays = [a for a in operands if a.dtype in ("bf16", "f32") and len(a.dims) > 1]
    query, logsumexp = arrays[0], arrays[-1] if backward else call.arrays[1]
    # The backward has the tables by tiles of 128 rows, between query, key and value, and the cotangent.
    tables = [a for a in arrays if len(a.dims) == 3][3:-1] if backward else [a for a in arrays if len(a.dims) == 2]
    table_rows = tables[0].dims[0] * (TILE if backward else 1) if tables else 0
    batch, length, width = query.dims
    groups, heads = logsumexp.dims[1:3]
    block, lanes = tpu_block_size(length), width // groups
    blocks = length // block
    near = _near_pairs(blocks, table_rows // block - 1) if tables else 0
    content, position = 2.0 * block * block * lanes, 2.0 * block * (block + TILE) * lanes
    # Forward: scores and context, and one matmul a table. Backward: scores again, and gradients of both operands, which
    # are computed transposed, for the rows of one head.
    products = 2.0 + 3.0 / heads if backward else 2.0
    per_table = 1.0 + 2.0 / heads if backward else 1.0
    programs = batch * groups * heads
    flops = programs * (products * content * blocks**2 + per_table * len(tables) * position * near)
    return flops, float(_moved(call, operands, query, tables, blocks, backward))


def gpu_kernel_cost(call: Instruction, operands: tuple[Array, ...]) -> tuple[float, float]:
    """Returns (FLOPs, bytes of operands and results) of one run of a GPU kernel's custom call.

    Raises:
      ValueError: an unknown kernel.
    """
    part = re.search(r"disentangled_attention_(forward|backward_query|backward_key)\b", call.op_name)
    if part is None:
        raise ValueError(f"{call.name}: a kernel whose cost is not known; add it to planning.kernels")
    is_forward = part[1] == "forward"
    batch, length, width = operands[0].dims
    heads = call.arrays[1].dims[1] if is_forward else operands[-1].dims[1]  # logsumexp, delta
    tables = [a for a in operands if a.dtype != "f32" and len(a.dims) == 2]
    blocks = length // GPU_BLOCK
    windows = tables[0].dims[0] // GPU_BLOCK - 1 if tables else 0
    near = _near_pairs(blocks, windows - 2 if windows < 2 * blocks - 1 else windows) if tables else 0
    # Forward: scores and context. Backward: scores, gradients of weights, of the outer block, and of values. A table
    # takes two products; its gradient two, and what it adds to that of the outer block two.
    every = {"forward": 2, "backward_query": 3, "backward_key": 4}[part[1]]
    of_tables = 2 * len(tables) + (4 if any(len(a.dims) == 4 and a.dtype == "f32" for a in call.arrays) else 0)
    product = 2.0 * GPU_BLOCK**2 * (width // heads)
    flops = batch * heads * product * (every * blocks**2 + (of_tables if tables else 0) * near)
    return flops, float(sum(a.bytes for a in (*operands, *call.arrays)))


def _near_pairs(blocks: int, windows: int) -> int:
    """Returns the number of pairs of blocks whose distance has its own window of the tables."""
    reach = (windows - 1) // 2
    return sum(min(blocks, i + reach + 1) - max(0, i - reach) for i in range(blocks))


def _moved(
    call: Instruction, operands: tuple[Array, ...], query: Array, tables: list[Array], blocks: int, backward: bool
) -> int:
    """Returns bytes moved: operands and results once each, and what is fetched again.

    That is, with several blocks, the inner side's blocks for every outer block, and a window of the tables for every
    pair of blocks.
    """
    once = sum(a.bytes for a in (*operands, *call.arrays) if a.space == 0)
    if blocks == 1:
        return once
    # Query, cotangent, logsumexp and delta; or key and value.
    inner = 2 * query.bytes + (2 * operands[-1].bytes if backward else 0)
    batch, length, width = query.dims
    windows = batch * blocks**2 * 2 * (length // blocks) * width * (query.bytes // (batch * length * width))
    return once + (blocks - 1) * inner + len(tables) * windows - sum(t.bytes for t in tables)
