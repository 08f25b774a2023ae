"""Chooses the meshes, rematerialization, attention implementations and batches that are worth compiling.

The choice rests on estimates that take no compiler; the most promising candidate comes first.
"""

import dataclasses
from collections.abc import Iterator

import jax

from deberta_jax.errors import InputError
from deberta_jax.planning.programs import objective_of
from deberta_jax.planning.request import Request, check_mesh

# Bytes of a parameter in float32 with Adam's two moments, by the dtype of these.
_STATE = {"float32": 12, "bfloat16": 8}
# Bytes that a token leaves in a layer for the backward pass, as multiples of D and of F: read off the loops of compiled
# steps in bfloat16.
_SAVED = {"none": (24.0, 4.0), "dots": (20.0, 2.0), "full": (2.0, 0.0)}
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Holds a request, and an estimate of a chip's memory for it in bytes, good to a factor of two."""

    request: Request
    bytes: float


def candidates(
    request: Request,
    *,
    free_mesh: bool = True,
    free_remat: bool = True,
    free_attention: bool = True,
    free_rows: bool = False,
    capacity: float = 0.0,
) -> list[Candidate]:
    """Returns requests on every mesh that divides the model and the batch, those that should be quickest first.

    Quick are those that recompute least, divide heads least, and divide parameters among about eight chips. Those that
    do not fit by their estimate are left out; where none fits, all are returned, the smallest first. After the two
    best come variants of the best: another attention implementation, more rematerialization, more rows.

    Args:
      request: gives all that is not free.
      free_mesh, free_remat, free_attention, free_rows: what may differ from the request.
      capacity: bytes of a device's memory, where the target is no known chip.

    Raises:
      InputError: a batch that no mesh divides.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(objective_of(request).parameters.shapes))
    capacity = request.target.chip.hbm if request.target.chip else capacity
    found = []
    for meshed in _meshes(request) if free_mesh else (request,):
        for remat in REMAT if free_remat else (request.experiment.runtime.remat,):
            r = meshed.with_runtime(remat=remat)
            found.append(Candidate(r, _memory(r, parameters)))
    if not found:
        chips, parts = request.target.chips, request.target.chips * request.experiment.runtime.accumulate
        raise InputError(
            f"--batch {request.rows}: no mesh of {chips} chips divides it; "
            f"give a multiple of {parts}, chips x --accumulate"
        )
    fitting = [c for c in found if not capacity or c.bytes < 0.7 * capacity]
    ordered = sorted(fitting, key=_cost) or sorted(found, key=lambda c: c.bytes)
    first, others = ordered[0], []
    if free_attention and first.request.experiment.runtime.attention == "pallas":
        others.append(Candidate(first.request.with_runtime(attention="xla"), first.bytes))
    if free_remat and first.request.experiment.runtime.remat == "none":
        # Less memory traffic may be worth the recomputation; the estimate cannot tell.
        others += [c for c in found if c.request == first.request.with_runtime(remat="dots")]
    if free_rows:
        larger = [first.request.with_rows(times * request.rows) for times in (2, 4)]
        more = [Candidate(r, _memory(r, parameters)) for r in larger]
        others += [c for c in more if not capacity or c.bytes < 0.7 * capacity]
    begin = [*ordered[:2], *others]
    return [*begin, *(c for c in ordered[2:] if c not in begin)]


def _cost(candidate: Candidate) -> tuple[float, ...]:
    m, remat = candidate.request.mesh, candidate.request.experiment.runtime.remat
    extra = {"none": 1.0, "dots": 1.1, "full": 1.33}[remat] * (1 + 0.1 * (m["tensor"] - 1))
    # Gathering parameters costs more where a chip has fewer tokens; up to 16 chips divide them cheaply.
    return extra * (1 + 0.01 * max(0, m["fsdp"] // 16)), float(abs(m["fsdp"] - 8))


def _memory(request: Request, parameters: int) -> float:
    m, r, c = request.mesh, request.experiment.runtime, request.config
    held = _STATE[request.experiment.optimization.moment_dtype]
    state, gradient = (size * parameters / (m["fsdp"] * m["tensor"]) for size in (held, 4))
    if request.job == "predict":
        state, gradient = gradient, 0.0
    tokens = request.tokens / (m["data"] * m["fsdp"] * r.accumulate)
    per_width, per_mlp = _SAVED[r.remat] if request.job != "predict" else (0.0, 0.0)
    layers = c.num_hidden_layers * (1.5 if request.job == "rtd" else 1.0)
    saved = tokens * layers * (per_width * c.hidden_size + per_mlp * c.intermediate_size / m["tensor"])
    return state + gradient + saved + tokens * (80 * c.hidden_size + 20 * c.intermediate_size / m["tensor"])


def _meshes(request: Request) -> Iterator[Request]:
    chips = request.target.chips
    inside = chips // request.target.slices
    for tensor in (n for n in (1, 2, 4, 8) if inside % n == 0):
        for fsdp in (n for n in range(1, inside // tensor + 1) if (inside // tensor) % n == 0):
            meshed = request.with_runtime(mesh_data=chips // tensor // fsdp, mesh_fsdp=fsdp, mesh_tensor=tensor)
            try:
                check_mesh(meshed)
            except InputError:
                continue
            yield meshed
