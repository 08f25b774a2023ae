"""Checks and times this project's attention and models on a GPU, beside PyTorch, in at most nine minutes.

    make gpu-kit                                    # from a checkout; nothing is installed
    python benchmarks/gpu/kit.py [--tiny] [--output FILE.json] [--only PART ...] [--extra FILE.py:FUNCTION]

Parts, each in processes of its own: versions and devices; correctness of every attention implementation; times of one
attention, in JAX and in PyTorch; times and memory of v3-base, in JAX and in PyTorch. What does not fit into a part's
time, cannot run here, fails, crashes or hangs is listed with the reason and stops nothing else. Results go to
benchmarks/results/gpu_CARD.json after every case, and to standard output as tables.

``--tiny`` runs the same code with tiny shapes on any machine. ``--extra`` checks and times another attention, called
as f(query, key, value, pos_key, pos_query, relative_index, *, scale, attention_mask, segment_ids, dropout_rate,
dropout_key), beside those
of the package. Exit code 1: something was wrong, crashed or hung; 2: bad arguments, or no GPU without ``--tiny``.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import report
from runner import ROOT, Part, Row, run_part

RESULTS = ROOT / "benchmarks" / "results"
_ONE_CARD = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
# The host's CPU is asked for beside any named backend: the definition is computed there.
_PLATFORMS = os.environ.get("JAX_PLATFORMS", "")
_JAX = _ONE_CARD | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
_JAX |= {"JAX_PLATFORMS": f"{_PLATFORMS},cpu"} if _PLATFORMS and "cpu" not in _PLATFORMS.split(",") else {}
# Correctness does not depend on the fastest product, which takes XLA seconds to find for every program.
_UNTUNED = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0".strip()}
_TORCH = _ONE_CARD | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
# Seconds of a part and of one case. These are estimates: no card had run this when they were set. A part may also use
# what earlier parts left over. Together they are 9 minutes.
PARTS = (
    Part("machine", "machine", 25, 60, _JAX),
    Part("correctness", "correctness", 160, 45, _JAX | _UNTUNED),
    Part("attention-jax", "attention_times", 125, 45, _JAX),
    Part("attention-torch", "torch_attention", 50, 30, _TORCH),
    Part("model-jax", "model_times", 120, 75, _JAX),
    Part("model-torch", "torch_model_times", 60, 30, _TORCH),
)
# The first process reads all libraries from disk for the first time; what it takes, later parts lack.
_MACHINE_SECONDS = 90.0


def main() -> int:
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()
    results: dict[str, Any] = {
        "kit": 1,
        "tiny": args.tiny,
        "extra": args.extra,
        "command": sys.argv[1:],
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "state": "interrupted",
        "parts": {},
    }
    keep = _Keeper(args.output, results)
    parts = [part for part in PARTS if part.name == "machine" or not args.only or part.name in args.only]
    for number, part in enumerate(parts):
        later = sum(p.seconds for p in parts[number + 1 :])
        left = args.seconds - (time.monotonic() - began) - later * min(1.0, args.seconds / _total(parts))
        _run(part, left, args, results, keep)
        if part.name == "machine" and not args.tiny:
            card = _card(results)
            if card is None:
                print(
                    "kit: JAX sees no GPU; --tiny runs the same code with tiny shapes on any machine", file=sys.stderr
                )
                return 2
            keep.output = keep.output or RESULTS / report.file_name(card)
    results["state"], results["seconds"] = "complete", round(time.monotonic() - began, 1)
    keep.save()
    print(f"\n==== all parts, {results['seconds']:.0f} s", flush=True)
    for name in results["parts"]:
        _print_table(name, results)
    print(f"results: {keep.output or 'not kept (--output FILE.json keeps them)'}", flush=True)
    return int(any(part["failed"] or any(map(report.bad, part["rows"].values())) for part in results["parts"].values()))


class _Keeper:
    """Writes the results to a file, once it is known which."""

    def __init__(self, output: Path | None, results: Mapping[str, Any]):
        self.output, self.results = output, results

    def save(self) -> None:
        """Writes the file; a disk that is full must not end what is printed as well."""
        if self.output is None:
            return
        try:
            report.write(self.output, self.results)
        except OSError as error:
            print(f"kit: cannot write {self.output}: {error}", file=sys.stderr)


def _run(part: Part, seconds: float, args: argparse.Namespace, results: dict[str, Any], keep: _Keeper) -> None:
    """Runs a part and prints its rows as they end, and its table; an error of the kit's own ends this part alone."""
    began = time.monotonic()
    made = {"seconds": 0.0, "limit": round(seconds, 1), "reason": "interrupted", "failed": True, "rows": {}}
    results["parts"][part.name] = made

    def ended(name: str, row: Row) -> None:
        made["rows"][name] = row
        keep.save()
        taken = f" {row['seconds']:.1f} s" if "seconds" in row else ""
        print(f"[{time.monotonic() - began:5.1f} s] {part.name}: {name}: {row['status']}{taken}", flush=True)

    try:
        progress = run_part(part, tiny=args.tiny, extra=args.extra, seconds=seconds, ended=ended)
        made |= {"reason": progress.reason, "failed": progress.failed}
    except Exception:  # time on a card may be short: what follows can still be measured
        made |= {"reason": f"the kit itself failed: {traceback.format_exc()}", "failed": True}
    made["seconds"] = round(time.monotonic() - began, 1)
    keep.save()
    _print_table(part.name, results)


def _print_table(name: str, results: Mapping[str, Any]) -> None:
    try:
        print("\n".join(report.table(name, results["parts"][name], results)), flush=True)
    except Exception:  # the file holds the rows
        print(f"== {name}: its table could not be made\n{traceback.format_exc()}", flush=True)


def _total(parts: list[Part]) -> float:
    return sum(part.seconds for part in parts)


def _card(results: Mapping[str, Any]) -> str | None:
    """Returns the name of the accelerator; None where JAX sees none, "unknown" where it could not be asked."""
    row = results["parts"]["machine"]["rows"].get("jax", {})
    if row.get("status") != "ok":
        return "unknown"
    return row["card"] if row["backend"] != "cpu" else None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on any machine")
    parser.add_argument("--output", type=Path, help="file for the results")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="parts, besides 'machine'")
    parser.add_argument("--extra", help="FILE.py:FUNCTION, an attention of your own")
    parser.add_argument("--seconds", type=float, default=_total(list(PARTS)), help="at most, in all")
    args = parser.parse_args()
    if args.tiny and args.output and RESULTS in args.output.resolve().parents:
        parser.error(f"--output {args.output}: tiny results are not kept in {RESULTS}")
    if args.extra:
        path, _, function = args.extra.rpartition(":")
        if not Path(path).is_file() or not function.isidentifier():
            parser.error(f"--extra {args.extra}: give FILE.py:FUNCTION of an existing file")
        args.extra = f"{Path(path).resolve()}:{function}"
    return args


if __name__ == "__main__":
    sys.exit(main())
