"""Turns a compiled request into a plan: what each chip holds, computes and moves, and what a step takes at least."""

import dataclasses
import math
from typing import Any

from deberta_jax.planning.chips import Chip
from deberta_jax.planning.compiling import Compiled
from deberta_jax.planning.costs import Costs, count
from deberta_jax.planning.hlo import HloProgram, parse_hlo
from deberta_jax.planning.kernels import gpu_kernel_cost, kernel_cost
from deberta_jax.planning.programs import objective_of
from deberta_jax.planning.request import Request
from deberta_jax.training.flops import forward_flops

ESTIMATE = "compiler's estimate, not a measurement"
UNKNOWN_OF_GPUS = (
    "activations and temporaries, memory traffic, collectives and time: they need the GPU's compiler, and that a GPU"
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Holds what one chip needs and does.

    Attributes:
      memory: bytes by cause.
      needed, capacity: bytes of main memory; 0 where not known.
      costs: what the program does; None where there is no compiled program.
      seconds: of a step by term (``compute``, ``memory``, ``interconnect``; with several slices ``network``), and the
        whole ``step``; empty where the chip is not known.
      model_flops: FLOPs of a step on all chips, counted as the training log does.
    """

    request: Request
    compiled: Compiled
    memory: dict[str, int]
    needed: float
    capacity: float
    costs: Costs | None
    seconds: dict[str, float]
    model_flops: float

    @property
    def fits(self) -> bool | None:
        """Returns whether it fits; None where that is not known.

        It is not known without a capacity, and for GPUs unless the arguments alone are too large.
        """
        if "too_large" in self.compiled.facts:
            return False
        if not self.capacity or (self.costs is None and self.needed <= self.capacity):
            return None
        return self.needed <= self.capacity

    @property
    def bound_by(self) -> str:
        """Returns the term of ``seconds`` that limits the step; "" where not known."""
        s = self.seconds
        if not s:
            return ""
        outside = max((name for name in ("interconnect", "network") if name in s), key=lambda name: s[name])
        if s[outside] >= s["compute"] + s["memory"]:
            return outside
        return max(("compute", "memory"), key=lambda name: s[name])

    @property
    def tokens_per_second(self) -> float:
        """Returns the throughput on all chips, at most; 0 where no time is known."""
        return self.request.tokens / self.seconds["step"] if self.seconds else 0.0

    @property
    def mfu(self) -> float:
        """Returns the model FLOPs utilization, at most; 0 where no time is known."""
        chip = self.request.target.chip
        if chip is None or not self.seconds:
            return 0.0
        return self.model_flops / (self.seconds["step"] * chip.flops * self.request.target.chips)


def plan_of(request: Request, compiled: Compiled, *, capacity: float = 0.0) -> Plan:
    """Returns the plan of a compiled request. ``capacity``: bytes of a device, where the target is no known chip."""
    chip = request.target.chip
    capacity = float(chip.hbm) if chip else capacity
    steps = 1.0 if request.job == "predict" else 3.0
    model_flops = steps * sum(forward_flops(c, request.tokens, request.length) for c in objective_of(request).configs)
    facts = compiled.facts
    if not compiled.hlo:
        memory, needed = memory_without_program(facts)
        return Plan(request, compiled, memory, needed, capacity, None, {}, model_flops)
    program = parse_hlo(compiled.hlo)
    kernel = kernel_cost if request.target.platform == "tpu" else gpu_kernel_cost
    several = request.target.slices
    if request.target.card is None:
        costs = count(program, request.slice_mesh, kernel, slices=several)
    else:
        costs = count(program, request.mesh, kernel, hosts=several)
    memory = memory_by_cause(facts, program)
    return Plan(
        request, compiled, memory, float(sum(memory.values())), capacity, costs, roofline(costs, chip), model_flops
    )


def memory_without_program(facts: dict[str, Any]) -> tuple[dict[str, int], float]:
    """Returns the bytes of a chip by cause and in all, for a program that was refused as too large, or only lowered."""
    held = sum(facts["held"].values())
    if "too_large" not in facts:
        return dict(facts["held"]), float(held)
    refused = facts["too_large"]
    used = refused.get("used", held + refused.get("temporaries", math.inf))
    rest = {"activations and temporaries": int(used) - held} if used < math.inf else {}
    return facts["held"] | rest, used


def memory_by_cause(facts: dict[str, Any], program: HloProgram) -> dict[str, int]:
    """Returns the bytes of a chip: arguments, what the forward pass saves for the backward, temporaries, program.

    The results reuse the buffers of the state, except for a few numbers.
    """
    m, held = facts["memory"], facts["held"]
    saved = min(saved_bytes(program), m["temp"])
    rest = m["argument"] - sum(held.values()) + m["output"] - m["alias"]
    return {
        **held,
        "activations": saved,
        "temporaries": m["temp"] - saved + max(rest, 0),
        "program": m["generated_code"],
    }


def saved_bytes(program: HloProgram) -> int:
    """Returns the bytes of the arrays that the forward passes' loops over layers fill, one layer a trip."""
    total = 0
    for computation in program.computations.values():
        for loop in computation.instructions:
            if loop.opcode != "while" or "transpose(" in loop.op_name:
                continue
            body = program.computations[loop.attribute("body")]
            trips = program.trips(computation, loop)
            results = [body.by_name[name] for name in body.root.operands]
            for array, result in zip(loop.arrays, results, strict=False):
                filled = result.opcode not in ("get-tuple-element", "parameter")
                if filled and array.space == 0 and array.dims[:1] == (trips,) and len(array.dims) > 2:
                    total += array.bytes
    return total


def roofline(costs: Costs, chip: Chip | None) -> dict[str, float]:
    """Returns seconds by term.

    An instruction takes as long as the slower of its FLOPs and its memory traffic. Collectives overlap all that, and
    run one after the other, each in a ring along one direction of the torus. So the result is a lower bound; only where
    the interconnect is the limit and collectives along different directions overlap, a step could take less. What
    slices exchange through the data-centre network overlaps all of this.
    """
    if chip is None:
        return {}
    each = [(flops / chip.flops, moved / chip.hbm_bandwidth) for flops, moved in costs.pairs]
    compute = sum((c for c, m in each if c >= m), 0.0)
    memory = sum((m for c, m in each if c < m), 0.0)
    interconnect = costs.collective_sent_bytes / chip.ring_bandwidth
    network = costs.network_sent / chip.network_bandwidth
    terms = {"compute": compute, "memory": memory, "interconnect": interconnect}
    terms |= {"network": network} if costs.network_count else {}
    return {**terms, "step": max(compute + memory, interconnect, network)}


def as_json(plan: Plan, *, tokens: float = 0.0, price: float = 0.0) -> dict[str, Any]:
    """Returns the plan as one flat object.

    Args:
      tokens: with it the object has the time, the chip-hours and, with ``price``, the money for so many tokens.
      price: of a chip for an hour.

    Returns:
      The figures; ``notes`` are what a reader of them has to know.
    """
    r, q = plan.request.experiment.runtime, plan.request
    notes = []
    if r.attention == "pallas":
        notes.append("a run asks the device first whether the pallas kernel computes rightly there; if not, xla")
    if q.target.card is not None and 0.75 * plan.capacity < plan.needed <= plan.capacity:
        notes.append("JAX takes 75 % of a GPU's memory; set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 for this run")
    if plan.seconds:
        notes.append("a step's time is a lower bound, and with it hours and money")
    elif tokens:
        notes.append("--tokens: no time is known, so no hours and no cost")
    out: dict[str, Any] = {
        "fits": plan.fits,
        "hbm_bytes_per_chip": _number(plan.needed),
        "hbm_capacity": plan.capacity,
        "collective_bytes": plan.costs.collective_bytes if plan.costs else None,
        "kind": ESTIMATE,
        "job": q.job,
        "topology": q.target.topology,
        "chips": q.target.chips,
        "hosts" if q.target.card else "slices": q.target.slices,
        "mesh": q.mesh,
        "batch": q.rows,
        "length": q.length,
        "dtype": q.experiment.dtype,
        "remat": r.remat,
        "attention": r.attention,
        "accumulate": r.accumulate,
        "gradient_dtype": r.gradient_dtype,
        "moment_dtype": q.experiment.optimization.moment_dtype,
        "xla_flags": q.xla_flags,
        "notes": notes,
        "memory": plan.memory,
        "seconds": plan.seconds,
        "bound_by": plan.bound_by,
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "model_flops": plan.model_flops,
        "compile_seconds": plan.compiled.facts["seconds"],
        "cached": plan.compiled.cached,
        "versions": plan.compiled.facts["versions"],
    }
    if plan.costs is not None:
        out |= {
            "collective_sent_bytes": plan.costs.collective_sent_bytes,
            "flops": plan.costs.flops,
            "hbm_traffic_bytes": plan.costs.hbm_bytes,
            "kernels": dict(plan.costs.kernels),
            "collectives": [dataclasses.asdict(c) for c in plan.costs.collectives],
            # Of all chips of a slice or a host together.
            "network_sent_bytes": plan.costs.network_sent * q.target.chips / q.target.slices,
        }
    if "products" in plan.compiled.facts:
        out |= {"flops": plan.compiled.facts["products"], "not_known": UNKNOWN_OF_GPUS}
    if "too_large" in plan.compiled.facts:
        out["compiler_says"] = plan.compiled.facts["too_large"]["message"]
    if tokens and plan.seconds:
        hours = tokens / plan.tokens_per_second / 3600
        out |= {"tokens": tokens, "hours": hours, "chip_hours": hours * q.target.chips}
        out |= {"money": out["chip_hours"] * price} if price else {}
    return out


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
