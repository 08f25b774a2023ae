"""Which meshes, rematerialization, bodies and batches are worth compiling, the likeliest first, by sums on paper."""

import dataclasses
from collections.abc import Iterator

import jax

from deberta_jax.errors import InputError
from deberta_jax.planning.programs import objective_of
from deberta_jax.planning.request import Request, check_mesh

_STATE = 12  # bytes of a parameter in float32 with Adam's two moments
# What a token leaves behind in a layer for the backward pass, in bytes, as a multiple of the width and of the
# feed-forward's: from the loops of compiled steps in bfloat16.
_SAVED = {"none": (24.0, 4.0), "dots": (20.0, 2.0), "full": (2.0, 0.0)}
REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Guess:
    """A request, and what it may need of a chip's memory, in bytes: good to a factor of two."""

    request: Request
    bytes: float


def candidates(
    request: Request,
    *,
    free_mesh: bool = True,
    free_remat: bool = True,
    free_body: bool = True,
    free_rows: bool = False,
    capacity: float = 0.0,
) -> list[Guess]:
    """Requests on every mesh that divides, or on the request's own, those that may fit best first.

    Quick ones are those that recompute least, split heads least, and share parameters among about eight chips. Where
    none seems to fit, those that need least come first. The first is followed, after the second, by itself with another
    attention body, with more recomputed, and with more rows, where those are free.

    Args:
      capacity: bytes of a device, where the target is no known chip.

    Raises:
      InputError: a batch that no mesh divides.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(objective_of(request).parameters.shapes))
    capacity = request.target.chip.hbm if request.target.chip else capacity
    found = []
    for meshed in _meshes(request) if free_mesh else (request,):
        for remat in REMAT if free_remat else (request.experiment.runtime.remat,):
            r = meshed.with_runtime(remat=remat)
            found.append(Guess(r, _memory(r, parameters)))
    if not found:
        chips, parts = request.target.chips, request.target.chips * request.experiment.runtime.accumulate
        raise InputError(
            f"--batch {request.rows}: no mesh of {chips} chips divides it; "
            f"give a multiple of {parts}, chips x --accumulate"
        )
    fitting = [guess for guess in found if not capacity or guess.bytes < 0.7 * capacity]
    ordered = sorted(fitting, key=_cost) or sorted(found, key=lambda guess: guess.bytes)
    first, others = ordered[0], []
    if free_body and first.request.experiment.runtime.attention == "pallas":
        others.append(Guess(first.request.with_runtime(attention="shift"), first.bytes))
    if free_remat and first.request.experiment.runtime.remat == "none":
        # Less memory traffic may be worth its products: on paper that is not to be seen.
        others += [g for g in found if g.request == first.request.with_runtime(remat="dots")]
    if free_rows:
        larger = [first.request.with_rows(times * request.rows) for times in (2, 4)]
        more = [Guess(r, _memory(r, parameters)) for r in larger]
        others += [guess for guess in more if not capacity or guess.bytes < 0.7 * capacity]
    begin = [*ordered[:2], *others]
    return [*begin, *(guess for guess in ordered[2:] if guess not in begin)]


def _cost(guess: Guess) -> tuple[float, ...]:
    m, remat = guess.request.mesh, guess.request.experiment.runtime.remat
    extra = {"none": 1.0, "dots": 1.1, "full": 1.33}[remat] * (1 + 0.1 * (m["tensor"] - 1))
    # Gathering parameters costs the more the fewer tokens a chip has; up to 16 chips share them cheaply.
    return extra * (1 + 0.01 * max(0, m["fsdp"] // 16)), float(abs(m["fsdp"] - 8))


def _memory(request: Request, parameters: int) -> float:
    m, r, c = request.mesh, request.experiment.runtime, request.config
    state = _STATE * parameters / (m["fsdp"] * m["tensor"])
    gradient = 4 * parameters / (m["fsdp"] * m["tensor"])
    if request.job == "predict":
        state, gradient = state / 3, 0.0
    places = request.tokens / (m["data"] * m["fsdp"] * r.accumulate)
    width, wide = _SAVED[r.remat] if request.job != "predict" else (0.0, 0.0)
    layers = c.num_hidden_layers * (1.5 if request.job == "rtd" else 1.0)
    saved = places * layers * (width * c.hidden_size + wide * c.intermediate_size / m["tensor"])
    return state + gradient + saved + places * (80 * c.hidden_size + 20 * c.intermediate_size / m["tensor"])


def _meshes(request: Request) -> Iterator[Request]:
    chips = request.target.chips
    for tensor in (n for n in (1, 2, 4, 8) if chips % n == 0):
        for fsdp in (n for n in range(1, chips // tensor + 1) if (chips // tensor) % n == 0):
            meshed = request.with_runtime(mesh_data=chips // tensor // fsdp, mesh_fsdp=fsdp, mesh_tensor=tensor)
            try:
                check_mesh(meshed)
            except InputError:
                continue
            yield meshed
