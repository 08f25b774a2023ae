"""What the attention kernels cost, by hand: the compiler knows a kernel's operands and results, not what it does.

A program of a kernel meets a block of S queries and one of S keys; products run over all 128 lanes whatever the head's
size. Every pair of blocks is counted, though packed rows skip those without a visible pair.
"""

from deberta_jax.ops.pallas.plan import TILE, block_size
from deberta_jax.planning.hlo import Array, Instruction


def kernel_cost(call: Instruction, operands: tuple[Array, ...]) -> tuple[float, float]:
    """(flops, bytes of main memory) of one run of a kernel's custom call.

    Raises:
      ValueError: a kernel that is not known here.
    """
    backward = call.name.startswith("disentangled_attention_backward")
    if not backward and not call.name.startswith("disentangled_attention_forward"):
        raise ValueError(f"{call.name}: a kernel whose cost is not known; add it to planning.kernels")
    arrays = [a for a in operands if a.dtype in ("bf16", "f32")]
    query, tables = arrays[0], [a for a in arrays if len(a.dims) == 2]
    logsum = arrays[-1] if backward else call.arrays[1]
    batch, length, width = query.dims
    groups, heads = logsum.dims[1:3]
    block, lanes = block_size(length), width // groups
    blocks = length // block
    near = _near_pairs(blocks, tables[0].dims[0] // block - 1) if tables else 0
    content, position = 2.0 * block * block * lanes, 2.0 * block * (block + TILE) * lanes
    # Forward: scores, values; a position product a table. Backward: scores again, and gradients through both sides.
    products = 5 if backward else 2
    per_table = 3 if backward else 1
    programs = batch * groups * heads
    flops = programs * (products * content * blocks**2 + per_table * len(tables) * position * near)
    return flops, float(_moved(call, operands, query, tables, blocks, backward))


def _near_pairs(blocks: int, windows: int) -> int:
    """Pairs of blocks that meet the tables in full: their difference has a window of its own."""
    reach = (windows - 1) // 2
    return sum(min(blocks, i + reach + 1) - max(0, i - reach) for i in range(blocks))


def _moved(
    call: Instruction, operands: tuple[Array, ...], query: Array, tables: list[Array], blocks: int, backward: bool
) -> int:
    """Operands and results once each, and what is fetched again: the inner side's blocks for every outer block, and
    with several blocks a window of the tables for every pair."""
    once = sum(a.bytes for a in (*operands, *call.arrays) if a.space == 0)
    if blocks == 1:
        return once
    logsum = operands[-1].bytes if backward else 0
    inner = 3 * query.bytes + logsum if backward else 2 * query.bytes  # query, context, cotangent; or key, value
    batch, length, width = query.dims
    windows = batch * blocks**2 * 2 * (length // blocks) * width * (query.bytes // (batch * length * width))
    return once + (blocks - 1) * inner + len(tables) * windows - sum(t.bytes for t in tables)
