"""Every released architecture's training step compiled for TPU slices and GPUs that are not there.

The table of docs/benchmarks/plans.md is made of its results.

    pip install 'deberta_jax[tpu]'      # libtpu, the compiler; no TPU is needed, and none was used
    pip install 'deberta_jax[cuda12]'   # the same for GPUs (--only h100, --only a100)
    python benchmarks/plan.py [--parts presets claims scaling slices] [--output benchmarks/results/plan.json]
    python benchmarks/plan.py --table   # print the recorded figures as a table

All figures are the compiler's estimates, not measurements. What is recorded already is not compiled again.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from deberta_jax.planning.candidates import Candidate, candidates
from deberta_jax.planning.planner import make_plan
from deberta_jax.planning.report import ESTIMATE, Plan, as_json
from deberta_jax.planning.request import Request, make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import RunOptions

SLICES = ("v5e-16", "v5e-256", "v5p-128", "v6e-256", "h100:8")
LENGTH, ROWS = 512, 8  # of a chip
MODELS = [name for name in PRESETS if not name.endswith("-mnli")]


def request(
    model: str, topology: str, job: str, rows: int, length: int = LENGTH, *, slices: int = 1, **runtime: Any
) -> Request:
    target = target_of(topology, slices=slices)
    return make_request(
        job,
        PRESETS[model],
        target,
        batch_size=rows * target.chips,
        length=length,
        dtype="bfloat16",
        runtime=RunOptions(**runtime),
    )


def first_fit(found: Sequence[Candidate]) -> Plan:
    """Returns the plan of the first candidate that fits; where none does, the one that needs least memory."""
    plans = []
    for candidate in found:
        plans.append(make_plan(candidate.request))
        if plans[-1].fits:
            return plans[-1]
    return min(plans, key=lambda plan: plan.needed)


def presets(job: str) -> Iterator[tuple[str, Any]]:
    """Each preset on each slice: the first mesh of the sweep's order that fits."""
    for topology in SLICES:
        for model in MODELS:
            found = lambda m=model, t=topology: candidates(request(m, t, job, ROWS), free_attention=False)[:4]
            yield f"presets/{model}/{topology}/{job}", lambda f=found: first_fit(f())


def claims() -> Iterator[tuple[str, Any]]:
    """A large vocabulary divided over chips, with generator and discriminator; the largest model on eight A100."""
    shared = {"mesh_data": 4, "mesh_fsdp": 8, "mesh_tensor": 2, "remat": "dots"}
    yield (
        "claims/mdeberta-v3-base/v5e-64/rtd",
        lambda: make_plan(request("mdeberta-v3-base", "v5e-64", "rtd", ROWS, **shared)),
    )
    largest = {"mesh_data": 1, "mesh_fsdp": 8, "mesh_tensor": 1, "remat": "dots"}
    yield (
        "claims/deberta-v2-xxlarge/a100-80:8/finetune",
        lambda: make_plan(request("deberta-v2-xxlarge", "a100-80:8", "finetune", ROWS, **largest)),
    )


def scaling(job: str) -> Iterator[tuple[str, Any]]:
    """The same work a chip on 8 and on 256 chips: fsdp of 4, the rest data."""
    for chips in (8, 256):
        mesh = {"mesh_data": chips // 4, "mesh_fsdp": 4, "mesh_tensor": 1, "remat": "dots"}
        yield (
            f"scaling/deberta-v3-base/v5e-{chips}/{job}",
            lambda c=chips, m=mesh: make_plan(request("deberta-v3-base", f"v5e-{c}", job, ROWS, **m)),
        )


def two_slices() -> Iterator[tuple[str, Any]]:
    """Two slices that a network joins, gradients added up in float32 and in bfloat16."""
    for model, fsdp in (("deberta-v3-base", 8), ("deberta-v2-xxlarge", 16)):
        for topology in ("v5e-16", "v5e-256"):
            data = 2 * target_of(topology).chips // fsdp
            mesh = {"mesh_data": data, "mesh_fsdp": fsdp, "mesh_tensor": 1, "remat": "dots" if fsdp > 8 else "none"}
            for dtype in ("float32", "bfloat16"):
                given = {**mesh, "gradient_dtype": dtype}
                yield (
                    f"slices/{model}/2 x {topology}/finetune, {dtype} gradients",
                    lambda m=model, t=topology, g=given: make_plan(request(m, t, "finetune", ROWS, slices=2, **g)),
                )


def table(recorded: dict[str, Any]) -> str:
    """Every preset by slice, then what is claimed of single runs, then the same work a chip on more chips."""
    lines = [
        "| model | job | devices | mesh (data, fsdp, tensor) | remat | memory, of the chip's | HBM traffic "
        "| collectives | step, at least |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    parts, presets, slices = ("presets", "claims", "scaling", "slices"), list(PRESETS), list(SLICES)

    def place(name: str) -> tuple[int, ...]:
        part, model, topology, _ = name.split("/")
        known = (slices.index(topology), presets.index(model)) if part == "presets" else ()
        return parts.index(part), *known

    for name in sorted(recorded, key=place):
        p, (_, model, topology, job) = recorded[name], name.split("/")
        mesh = ", ".join(str(size) for size in p["mesh"].values())
        between = f", {p['network_sent_bytes'] / 1e9:.2f} between slices" if p.get("slices", 1) > 1 else ""
        step = f"{1e3 * p['seconds']['step']:.0f} ms, {p['bound_by']}" if p["seconds"] else "-"
        lines.append(
            f"| {model} | {job} | {topology} | {mesh} | {p['remat']} "
            f"| {p['hbm_bytes_per_chip'] / 1e9:.1f} of {p['hbm_capacity'] / 1e9:.0f} GB"
            f"{'' if p['fits'] else ', DOES NOT FIT'} | {p['hbm_traffic_bytes'] / 1e9:.0f} GB "
            f"| {p['collective_bytes'] / 1e9:.2f} GB, {p['collective_sent_bytes'] / 1e9:.2f} sent{between} | {step} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=("presets", "claims", "scaling", "slices"),
        default=["scaling", "presets", "claims", "slices"],
    )
    parser.add_argument("--job", default="finetune", choices=("mlm", "finetune"))
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/plan.json"))
    args = parser.parse_args()
    recorded = json.loads(args.output.read_text()) if args.output.is_file() else {}
    if args.table:
        print(table(recorded.get("plans", {})))
        return
    plans = recorded.get("plans", {})
    parts = {
        "presets": lambda: presets(args.job),
        "claims": claims,
        "scaling": lambda: scaling(args.job),
        "slices": two_slices,
    }
    for part in args.parts:
        for name, make in parts[part]():
            if name in plans or args.only not in name:
                continue
            try:
                plans[name] = as_json(make())
            except ValueError as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            p = plans[name]
            print(
                f"{name}: fits={p['fits']} {p['hbm_bytes_per_chip']:.3g} B {p['mesh']} {p['remat']} "
                f"{p['compile_seconds']} s",
                flush=True,
            )
            args.output.write_text(json.dumps({"note": ESTIMATE, "plans": plans}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
