"""Cycles of the attention kernel and its peers on TPUs that are not there, from the compiler's own schedules.

    pip install 'deberta_jax[tpu]'      # libtpu, the compiler; no TPU is needed, and none was used
    python benchmarks/tpu_cycles.py [--generations v5e v5p v6e] [--lengths 128 256 512 1024 2048] [--steps PRESET ...]
    python benchmarks/tpu_cycles.py --table     # print the recorded figures

Figures are the compiler's, not measured: a kernel's cycles are the lines of its static schedule, without waits for
memory; for everything else they are XLA's own estimates. Cycles are given for one head of one row, forward, and forward
with backward; "other" is what XLA does around the kernels. A row of the results file is replaced when its case is
compiled again, and all are dropped when another JAX or libtpu compiles one.
"""

import argparse
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from benchmarks.tables import markdown
from benchmarks.tpu_aot import released_index
from benchmarks.tpu_schedule import CompiledProgram, compile_with_dump
from deberta_jax.ops.attention.pallas.tiling import make_tpu_tiling

GENERATIONS = ("v5e", "v5p", "v6e")
# Rows of a batch. With fewer, XLA would keep operands in the chip's own memory, and kernels would copy them.
BATCHES = {128: 512, 256: 256, 512: 256, 1024: 128, 2048: 64}
PLAIN_BATCHES = {128: 512, 256: 256, 512: 64, 1024: 16, 2048: 4}  # whole scores must fit the memory
HEADS = 12
ATTENTIONS = ("pallas", "without tables", "flash", "splash", "plain")
OURS = ("pallas", "without tables")
STEPS = {128: 32, 512: 8}  # and the batch
PRESETS = ("deberta-v3-base", "deberta-v3-large")
RESULTS = Path(__file__).with_name("results") / "tpu_cycles.json"
IDENTITY = ("kind", "attention", "generation", "length", "part", "dropout", "preset")  # what tells rows apart


def measure(function: str, **arguments: Any) -> dict[str, Any]:
    """Returns what the compiler says about one program."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        compile_with_dump(function, Path(folder), **arguments)
        seconds = time.perf_counter() - start
        program = CompiledProgram(Path(folder))
        kernels = [
            {
                "kernel": name,
                "runs": runs,
                "programs": schedule.programs,
                "cycles of a program": schedule.cycles,
                "of far blocks": schedule.shorter_cycles,
                "empty": round(schedule.empty / schedule.cycles, 3),
                "binding unit": schedule.binding_unit,
                "over its bound": round(schedule.cycles / schedule.units[schedule.binding_unit], 2),
                "over the MXU's bound": round(schedule.cycles / max(1, schedule.units["MXU"]), 2),
            }
            for name, (schedule, runs) in program.kernels.items()
        ]
        other = program.other_cycles
    return {
        "kernel cycles": cycles_of(kernels),
        "other cycles": other,
        "kernels": kernels,
        "seconds": round(seconds, 1),
    }


def cycles_of(kernels: list[dict[str, Any]], near: float = 1.0) -> float:
    """Returns the cycles of all programs of kernels, of which a share ``near`` handles near blocks."""
    return sum(
        k["runs"] * k["programs"] * (near * k["cycles of a program"] + (1 - near) * k["of far blocks"]) for k in kernels
    )


def near_share(length: int) -> float:
    """Returns the share of the pairs of blocks of our kernel that are near."""
    tiling = make_tpu_tiling(length, HEADS, 64, released_index(length), scale=1.0, dropout_rate=0.0)
    offsets = [j - i for i in range(tiling.blocks) for j in range(tiling.blocks)]
    return sum(tiling.far[0] < offset < tiling.far[1] for offset in offsets) / len(offsets)


def measure_attention(
    attention: str, generation: str, length: int, parts: Sequence[str], dropout: float
) -> Iterator[dict[str, Any]]:
    """Yields a row for each part of one attention, its cycles for one head of one row of the batch.

    Our own kernels are compiled once, with the backward: the forward is the same without it.
    """
    batch = (PLAIN_BATCHES if attention == "plain" else BATCHES)[length]
    ours, found = attention in OURS, {}
    for part in parts:
        if not (ours and found):
            backward = ours or part == "both"
            case = {"generation": generation, "length": length, "batch": batch, "rate": dropout, "backward": backward}
            found = measure("compile_attention", implementation=attention, **case)
        kernels = [k for k in found["kernels"] if part == "both" or not ours or "_forward" in k["kernel"]]
        cycles = cycles_of(kernels, near_share(length) if attention == "pallas" else 1.0)
        yield {
            "kind": "attention",
            "attention": attention,
            "generation": generation,
            "length": length,
            "part": part,
            "dropout": dropout,
            "batch": batch,
            "kernel cycles": round(cycles / (batch * HEADS)),
            "other cycles": None if ours and part == "forward" else round(found["other cycles"] / (batch * HEADS)),
            "kernels": kernels,
            "seconds": found["seconds"],
        }


def measure_step(attention: str, preset: str, length: int) -> dict[str, Any]:
    """Returns a row of a whole train step on one v5e, in cycles."""
    found = measure("compile_train_step", attention=attention, preset=preset, batch=STEPS[length], length=length)
    case = {"kind": "step", "attention": attention, "generation": "v5e", "length": length, "preset": preset}
    return {**case, "batch": STEPS[length], "cycles": found["kernel cycles"] + found["other cycles"], **found}


def cases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for generation in args.generations:
        for length in args.lengths:
            for attention in args.attentions:
                for dropout in args.rates if attention in OURS else (0.0,):
                    yield from measure_attention(attention, generation, length, args.parts, dropout)
    for preset in args.steps:
        for length in STEPS:
            for attention in args.attentions:
                yield measure_step(attention, preset, length)


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in IDENTITY)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns both tables: cycles of one head of one row, and of whole steps in millions."""
    found = {identity(row): row for row in rows}
    of = lambda *case: found.get(case, {})
    attentions = [(name, rate) for name in ATTENTIONS for rate in ((0.0, 0.1) if name in OURS else (0.0,))]
    body = []
    for generation in GENERATIONS:
        for length in BATCHES:
            both = [
                [of("attention", name, generation, length, part, rate, None) for part in ("forward", "both")]
                for name, rate in attentions
            ]
            cells = [" / ".join(str(_cycles(row)) for row in pair) for pair in both]
            if any(row for pair in both for row in pair):
                body.append((f"{generation} {length}", *cells))
    heads = (f"{name}{', dropout' if rate else ''}" for name, rate in attentions)
    kernels = markdown(("cycles forward / with backward", *heads), body)
    steps = [
        (
            f"{preset} {STEPS[length]}x{length}",
            *(_millions(of("step", name, "v5e", length, None, None, preset)) for name in ATTENTIONS),
        )
        for preset in PRESETS
        for length in STEPS
    ]
    return f"{kernels}\n\n{markdown(('million cycles of a step', *ATTENTIONS), steps)}"


def _cycles(row: dict[str, Any]) -> Any:
    """Returns a row's cycles: those of its kernels, or what XLA estimates where there are none."""
    return (row["kernel cycles"] or row["other cycles"]) if row else "-"


def _millions(row: dict[str, Any]) -> str:
    return f"{row['cycles'] / 1e6:.1f}" if row else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", nargs="*", choices=GENERATIONS, default=list(GENERATIONS))
    parser.add_argument("--lengths", nargs="*", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--attentions", nargs="*", choices=ATTENTIONS, default=list(ATTENTIONS))
    parser.add_argument("--parts", nargs="*", choices=("forward", "both"), default=["forward", "both"])
    parser.add_argument("--rates", nargs="*", type=float, choices=(0.0, 0.1), default=[0.0, 0.1], help="of dropout")
    parser.add_argument("--steps", nargs="*", choices=PRESETS, default=[], help="whole train steps of these models")
    parser.add_argument("--table", action="store_true", help="print the recorded figures, and compile nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    recorded = json.loads(args.output.read_text()) if args.output.is_file() else {"rows": []}
    if args.table:
        print(table(recorded["rows"]))
        return
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    rows = recorded["rows"] if all(recorded.get(name) == version for name, version in versions.items()) else []
    for row in cases(args):
        print({name: value for name, value in row.items() if name != "kernels"}, flush=True)
        for kernel in row["kernels"]:
            print("   ", kernel, flush=True)
        kept = [r for r in rows if identity(r) != identity(row)]
        rows = sorted([*kept, row], key=lambda r: tuple(str(v) for v in identity(r)))
        note = {"note": "the compiler's figures, no TPU was used"} | versions
        args.output.write_text(json.dumps(note | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
