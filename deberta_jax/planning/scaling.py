"""Estimates what the same work on each chip needs on more chips: compiled for two slices, extrapolated beyond."""

import dataclasses
from collections.abc import Callable

from deberta_jax.planning.planner import make_plan
from deberta_jax.planning.report import Plan
from deberta_jax.planning.targets import target_of

_MOST_CHIPS = 1024


@dataclasses.dataclass(frozen=True)
class Point:
    """Holds what one chip of ``chips`` needs.

    Attributes:
      memory: bytes. collective: bytes sent in a step. step: seconds of a step, at least.
      compiled: False where the point is extrapolated.
    """

    chips: int
    memory: float
    collective: float
    step: float
    compiled: bool


def scaling_points(plan: Plan, tick: Callable[[], object] = lambda: None) -> list[Point]:
    """Returns points for a small slice, a large one and 1024 chips; parameters are divided among as many chips in each.

    Empty unless the plan is for one TPU slice and was compiled. ``tick`` is called every second meanwhile.
    """
    if plan.request.target.platform != "tpu" or plan.request.target.slices > 1 or plan.costs is None:
        return []
    name = plan.request.target.topology.partition(":")[0]
    m, plans = plan.request.mesh, []
    rows, shared = plan.request.rows // (m["data"] * m["fsdp"]), m["fsdp"] * m["tensor"]
    for chips in ("8", "256") if name in ("v5e", "v6e") else ("16", "512"):
        target = target_of(f"{name}-{chips}")
        if target.chips % shared:
            continue
        data = target.chips // shared
        wider = plan.request.with_runtime(mesh_data=data).with_rows(rows * data * m["fsdp"])
        plans.append(make_plan(dataclasses.replace(wider, target=target), tick=tick))
    plans = [wider for wider in plans if wider.costs is not None]
    return [*map(compiled_point, plans), extrapolated_point(plans[-1], _MOST_CHIPS)] if plans else []


def compiled_point(plan: Plan) -> Point:
    """Returns the point of a plan whose program was compiled."""
    assert plan.costs is not None, "of a program that was compiled"
    return Point(plan.request.target.chips, plan.needed, plan.costs.collective_sent_bytes, plan.seconds["step"], True)


def extrapolated_point(plan: Plan, chips: int) -> Point:
    """Returns the point for more chips than can be compiled for, where the mesh axis ``data`` grows.

    Memory stays the same. A ring of n chips sends (n-1)/n of an array, so collectives over ``data`` grow by that.
    """
    n = plan.request.mesh["data"]
    more = n * chips // plan.request.target.chips
    factor = ((more - 1) / more) / ((n - 1) / n) if n > 1 else 1.0
    chip = plan.request.target.chip
    assert plan.costs is not None, "of a program that was compiled"
    assert chip is not None, "for a TPU"
    collective = sum(c.sent * (factor if "data" in c.axes else 1.0) for c in plan.costs.collectives)
    device = plan.seconds["compute"] + plan.seconds["memory"]
    return Point(chips, plan.needed, collective, max(device, collective / chip.ring_bandwidth), False)
