"""What chips that share parameters may send each other in a step of fine-tuning, by its shape.

Parameters are gathered a layer at a time, gradients and statistics added up; a TPU does so beside the products, where
it pays, by passing shares of both round the ring. Of the texts only ids are gathered, and looked-up rows exchanged,
where the table of words is divided (``ops.embedding_lookup``); and after the encoder the head may exchange its one
vector a text.
"""

import itertools
import math

import jax

from deberta_jax.planning.costs import COLLECTIVES
from deberta_jax.planning.groups import axes_of, device_groups
from deberta_jax.planning.hlo import Array, HloProgram, Instruction
from deberta_jax.planning.programs import objective_of
from deberta_jax.planning.request import Request

_LOOKUP = "embeddings/shard_map/"


def unexpected(program: HloProgram, request: Request) -> list[str]:
    """The collectives that are none of these."""
    pieces, found = _pieces(request), []
    for computation, i, _ in program.executed():
        for _, part in ((computation, i), *program.inside(i)):
            kind = part.opcode.removesuffix("-start")
            if kind in COLLECTIVES and not _expected(kind, part, request, pieces):
                found.append(f"{kind} {[(a.dtype, a.dims) for a in part.arrays]} {part.op_name}")
    return found


def _expected(kind: str, i: Instruction, request: Request, pieces: set[tuple[int, ...]]) -> bool:
    if kind in ("all-reduce", "reduce-scatter"):
        return not any(_of_tokens(a, request) for a in i.arrays)
    largest = max(i.arrays, key=lambda a: a.bytes)
    if kind == "all-gather" and i.op_name.endswith(f"{_LOOKUP}all_gather"):
        return largest.dtype == "s32" and math.prod(largest.dims) <= request.tokens
    if kind == "all-to-all" and i.op_name.endswith(f"{_LOOKUP}all_to_all"):
        return True
    # By shape and not by the operation's name, which differs between JAX versions for one and the same program.
    if pieces & _parameters(kind, largest, request.mesh["fsdp"]):
        return not _of_tokens(largest, request)
    texts = request.rows * request.config.hidden_size
    return "/deberta/" not in i.op_name and not _of_tokens(largest, request) and math.prod(largest.dims) <= texts


def _pieces(request: Request) -> set[tuple[int, ...]]:
    """Shapes that may be gathered: a parameter, or a layer of one that is stacked; but no table of words."""
    p, found = objective_of(request).parameters, set()
    axes = jax.tree.leaves(p.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    for leaf, names in zip(jax.tree.leaves(p.shapes), axes, strict=True):
        if "vocab" not in names:
            dims = leaf.shape[1:] if names[0] == "layers" else leaf.shape
            found.add(_without_ones(dims))
    return found


def _parameters(kind: str, array: Array, chips: int) -> set[tuple[int, ...]]:
    """Shapes of parameters that this may be: gathered whole, or as a row of shares; or one share, passed on."""
    dims = array.dims
    if kind == "collective-permute":
        return _joined(dims, chips)
    if kind == "all-gather":
        return {_without_ones(dims)} | (_joined(dims[1:], chips) if dims[:1] == (chips,) else set())
    return set()


def _joined(share: tuple[int, ...], chips: int) -> set[tuple[int, ...]]:
    """The shapes of which this is one chip's share."""
    return {_without_ones((*share[:k], chips * share[k], *share[k + 1 :])) for k in range(len(share))}


def _of_tokens(array: Array, request: Request) -> bool:
    """It has a place for each token of some rows; to be told where no size of the model is a multiple of the length."""
    dims, parts = _without_ones(array.dims), request.mesh["data"] * request.mesh["fsdp"]
    rows = {request.rows // n for n in (1, request.mesh["data"], request.mesh["fsdp"], parts)}
    return any(n * request.length in dims for n in rows) or any(
        pair in ((n, request.length), (request.length, n)) for pair in itertools.pairwise(dims) for n in rows
    )


def _without_ones(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in dims if n != 1)


def added_up(program: HloProgram, request: Request) -> list[Array]:
    """What chips with other texts add up: the floating-point results of sums over data or fsdp, scalars left out."""
    found, devices = [], math.prod(request.slice_mesh.values())
    for computation, i, _ in program.executed():
        for _, part in ((computation, i), *program.inside(i)):
            if part.opcode.removesuffix("-start") in ("all-reduce", "reduce-scatter"):
                axes = axes_of(device_groups(part.rest, devices), request.slice_mesh)
                arrays = [a for a in part.arrays if math.prod(a.dims) > 1 and "f" in a.dtype]
                found += arrays if {"data", "fsdp"} & set(axes) else []
    return found
