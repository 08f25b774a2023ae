"""Formats a plan, or several, as text for a terminal."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from deberta_jax.planning.report import ESTIMATE, Plan
from deberta_jax.planning.request import Request


def size(value: int | float) -> str:
    """Returns bytes with a unit, such as ``1.5 GB``."""
    if value == math.inf:
        return "more"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _time(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def format_plan(plan: Plan, found: dict[str, Any]) -> str:
    """Returns one plan as text. ``found`` is what ``as_json`` returns, and the name of the ``model``."""
    r, target = plan.request.experiment.runtime, plan.request.target
    rows: list[tuple[str, str]] = [
        ("model", found["model"]),
        ("program", f"{found['job']}, {found['batch']} x {found['length']} tokens, {found['dtype']}, remat {r.remat}"),
        ("devices" if target.card else "slice", f"{target.name}, {found['chips']} chips as {_mesh(plan.request)}"),
        ("attention", r.attention),
    ]
    rows += [(f"  {name}", size(value)) for name, value in plan.memory.items()]
    rows.append(("memory a chip", _memory(plan)))
    if plan.costs is not None:
        rows += [
            ("products a chip", f"{plan.costs.flops:.3g} FLOP"),
            ("HBM traffic a chip", size(plan.costs.hbm_bytes)),
            (
                "collectives a chip",
                f"{size(plan.costs.collective_bytes)}; sent, in rings: {size(plan.costs.collective_sent_bytes)}",
            ),
        ]
        rows += [
            (f"  {c.kind}", f"{size(c.bytes)} over {' x '.join(c.axes)}, {c.count:.0f} times")
            for c in sorted(plan.costs.collectives, key=lambda c: -c.bytes)
            if c.bytes >= 1e4
        ]
        if plan.costs.network_count:
            part = "host" if target.card else "slice"
            sent = f"{size(plan.costs.network_sent)} a chip, {size(found['network_sent_bytes'])} a {part}"
            rows.append((f"between {part}s", f"{sent}, {plan.costs.network_count:.0f} times"))
    if "not_known" in found:
        rows += [("products a device", f"{found['flops']:.3g} FLOP"), ("not known", found["not_known"])]
    if plan.seconds:
        s = plan.seconds
        network = f", network {_time(s['network'])}" if "network" in s else ""
        rows += [
            (
                "step, at least",
                f"{_time(s['step'])}: products {_time(s['compute'])}, memory {_time(s['memory'])}, "
                f"interconnect {_time(s['interconnect'])}{network}; {plan.bound_by} binds",
            ),
            ("tokens a second", f"{plan.tokens_per_second:,.0f} at most, {100 * plan.mfu:.0f} % of the peak"),
        ]
    if "chip_hours" in found:
        money = f", {number(found['money'])} at the price given" if "money" in found else ""
        cost = f"{number(found['hours'])} h, {number(found['chip_hours'])} chip-hours{money}"
        rows.append((f"{found['tokens']:.3g} tokens, at least", cost))
    rows += [("", note) for note in (*found["notes"], ESTIMATE)]
    return columns(rows)


def number(value: float) -> str:
    """Returns a number with three significant digits or more, without an exponent."""
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f}"


def causes(plan: Plan) -> str:
    """Returns what takes the memory, in one line."""
    return ", ".join(f"{name} {size(value)}" for name, value in plan.memory.items())


def _memory(plan: Plan) -> str:
    of = f" of {size(plan.capacity)}" if plan.capacity else ""
    return f"{size(plan.needed)}{of}{': DOES NOT FIT' if plan.fits is False else ''}"


def _mesh(request: Request) -> str:
    return ", ".join(f"{name}={size}" for name, size in request.mesh.items())


def format_ranking(plans: Sequence[Plan], failed: Iterable[tuple[Request, str]]) -> str:
    """Returns the plans of a sweep as a table, best first, and why other requests failed."""
    rows = [("mesh", "batch", "remat", "attention", "memory", "step, at least", "tokens/s", "binds")]
    for plan in plans:
        r = plan.request.experiment.runtime
        time = _time(plan.seconds["step"]) if plan.seconds else "-"
        rows.append(
            (
                _mesh(plan.request),
                str(plan.request.rows),
                r.remat,
                r.attention,
                _memory(plan),
                time,
                f"{plan.tokens_per_second:,.0f}" if plan.seconds else "-",
                plan.bound_by or "-",
            )
        )
    lines = [columns(rows)]
    lines += [f"{_mesh(request)}: {why}" for request, why in failed]
    return "\n".join([*lines, ESTIMATE])


def format_flags(plans: Sequence[Plan], failed: Iterable[tuple[Request, str]]) -> str:
    """Returns the plans of one request by the compiler's options as a table, and why other options failed."""
    rows: list[tuple[str, ...]] = [
        ("compiler options", "memory", "temporaries", "HBM traffic", "collectives", "sent", "step, at least", "binds")
    ]
    for plan in plans:
        c = plan.costs
        moved = [size(n) for n in (c.hbm_bytes, c.collective_bytes, c.collective_sent_bytes)] if c else ["-"] * 3
        rows.append(
            (
                plan.request.xla_flags or "(defaults)",
                _memory(plan),
                size(plan.memory.get("temporaries", 0)),
                *moved,
                _time(plan.seconds["step"]) if plan.seconds else "-",
                plan.bound_by or "-",
            )
        )
    return "\n".join([columns(rows), *(why for _, why in failed), ESTIMATE])


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines with aligned columns."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
