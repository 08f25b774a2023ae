"""Time and memory of converting a file of the size of deberta-v2-xlarge (884M parameters, float16, 1.8 GB).

    python benchmarks/convert.py [--layers 24] [--repeats 3] [--directory /tmp] [--record FILE.json]

Prints, for each target, our time as a ratio of a peer's, alternating in fresh processes (median of repeats), and the
peak of anonymous memory as a ratio of its limit. The peers: for hf, ``torch.load`` + cast + ``save_file``; for Orbax,
saving the same tree from memory with chunks of 4 MB. Limits: hf 1.5 largest leaves + 512 MB and 1.5 of the peer's time;
Orbax 2.5 largest leaves + 512 MB and 1.3 of the peer's time.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PEER_HF = """
import sys, time, torch
from safetensors.torch import save_file
source, target, dtype = sys.argv[1:4]
kind = dict(f16=torch.float16, bf16=torch.bfloat16, f32=torch.float32)[dtype]
start = time.perf_counter()
state = torch.load(source + "/pytorch_model.bin", weights_only=True)
state = {name: value.to(kind).contiguous() for name, value in state.items()}
save_file(state, target, metadata={"format": "pt"})
print(time.perf_counter() - start)
"""

PEER_ORBAX = """
import sys, time, jax, numpy as np
import orbax.checkpoint as ocp
from deberta_jax.weights import load
source, target, dtype = sys.argv[1:4]
_, params, _ = load(source, "encoder", param_dtype=dtype)
tree = jax.tree.map(np.asarray, params)
del params
save_args = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=4 << 20), tree)
start = time.perf_counter()
with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(target, args=ocp.args.PyTreeSave(tree, save_args=save_args))
print(time.perf_counter() - start)
"""

OURS = """
import sys, time
assert "torch" not in sys.modules
from deberta_jax.weights import convert
source, target, dtype, to = sys.argv[1:5]
start = time.perf_counter()
convert(source, target, to=to, dtype=dtype)
print(time.perf_counter() - start)
assert "torch" not in sys.modules
"""


def make_source(directory: Path, layers: int) -> tuple[int, int]:
    """Random weights as a .bin of torch; returns the bytes of the largest leaf in float16, and the parameters."""
    import torch

    from deberta_jax.presets import PRESETS
    from deberta_jax.weights import names

    config = dataclasses.replace(PRESETS["deberta-v2-xlarge"], num_hidden_layers=layers)
    sizes = names.sizes(config, 2)
    state, largest, count = {}, 0, 0
    for row in names.table(config, ()):
        shape = row.torch_shape(sizes)
        for name in row.names(config):
            state[name] = torch.empty(shape, dtype=torch.float16).normal_(0, 0.02)
            count += state[name].numel()
        elements = state[name].numel() * (layers if row.layered else 1)
        largest = max(largest, 2 * elements)
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "config.json").write_text(json.dumps(config.to_hf()))
    print(f"{count / 1e6:.0f}M parameters, {2 * count / 1e9:.2f} GB, largest leaf {largest / 1e6:.0f} MB")
    return largest, count


def run(code: str, *arguments: str) -> tuple[float, int]:
    """Seconds that the code printed, and the peak of its process's anonymous memory in bytes."""
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            peak = max([peak, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))])
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"failed: {code.strip().splitlines()[0]}")
    return float(out.split()[-1]), peak


def measure(source: Path, work: Path, to: str, dtype: str, repeats: int, limit: float) -> dict[str, Any]:
    """Runs both in turn, prints the ratios, and gives all that was measured."""
    ours, theirs, peaks = [], [], []
    for _ in range(repeats):
        for peer in (True, False):
            target = work / "out"
            if peer:
                seconds, _ = run(PEER_HF if to == "hf" else PEER_ORBAX, str(source), str(target), dtype)
                theirs.append(seconds)
            else:
                seconds, peak = run(OURS, str(source), str(target), dtype, to)
                ours.append(seconds)
                peaks.append(peak)
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink()
    ratio = statistics.median(ours) / statistics.median(theirs)
    bound = 1.5 if to == "hf" else 1.3
    print(
        f"{to} {dtype}: time {ratio:.2f} of the peer's (limit {bound}; {statistics.median(ours):.1f} s), "
        f"memory {max(peaks) / limit:.2f} of the limit ({max(peaks) / 1e6:.0f} of {limit / 1e6:.0f} MB)",
        flush=True,
    )
    return {
        "to": to,
        "dtype": dtype,
        "time_ratio": round(ratio, 3),
        "time_limit": bound,
        "memory_ratio": round(max(peaks) / limit, 3),
        "peak_MB": round(max(peaks) / 1e6),
        "limit_MB": round(limit / 1e6),
        "seconds": [round(s, 2) for s in ours],
        "peer_seconds": [round(s, 2) for s in theirs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--record", type=Path, default=None, help="also write the figures to this JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        source = Path(folder) / "source"
        source.mkdir()
        largest, parameters = make_source(source, arguments.layers)
        results = []
        for to, dtype in (("hf", "f16"), ("hf", "bf16"), ("orbax", "f16")):
            factor = 1.5 if to == "hf" else 2.5
            results.append(measure(source, Path(folder), to, dtype, arguments.repeats, factor * largest + 512e6))
    if arguments.record is not None:
        machine = f"{os.cpu_count()} cores, shared with other jobs while this ran"
        record = {
            "command": "python benchmarks/convert.py",
            "machine": machine,
            "parameters": parameters,
            "largest_leaf_MB": round(largest / 1e6),
            "runs": results,
        }
        arguments.record.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
