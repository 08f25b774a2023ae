"""Time of the exported ONNX graph in ONNX Runtime, beside the graphs that PyTorch's exporter makes of the same weights.

    python benchmarks/onnx_runtime.py [--preset deberta-v3-base] [--layers N] [--shapes 8x128 4x512] [--rounds 7]
                                      [--record benchmarks/results/onnx.json]

Needs torch, transformers, onnx and onnxruntime. PyTorch's exporter (``dynamo=False``) makes two graphs: one for any
batch and length, and one for the measured shape alone, in which it has computed the relative positions beforehand. All
sessions are open in one process and take turns; given are medians of our time over theirs, and the largest difference
of the outputs.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnxruntime
import torch
import transformers
from peers import Traced
from timing import in_turn

import deberta_jax
from deberta_jax.export.onnx.building import build

AXES = {0: "batch", 1: "length"}


def torch_graph(directory: str, inputs: dict[str, np.ndarray], file: str, *, dynamic: bool) -> str:
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    names = dict.fromkeys((*given, "states"), AXES)
    with torch.no_grad():
        torch.onnx.export(
            Traced(transformers.AutoModel.from_pretrained(directory).eval()),
            tuple(given.values()),
            file,
            input_names=list(given),
            output_names=["states"],
            dynamic_axes=names if dynamic else None,
            dynamo=False,
            opset_version=17,
        )
    return file


def opened(file: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def measure(args: argparse.Namespace, batch: int, length: int) -> dict[str, Any]:
    config = deberta_jax.PRESETS[args.preset]
    config = config.replace(num_hidden_layers=args.layers) if args.layers else config
    model = deberta_jax.DebertaEncoder(config)
    params = jax.jit(lambda: deberta_jax.init_params(model, jax.random.key(0)))()
    ids = np.random.RandomState(0).randint(5, config.vocab_size, (batch, length))
    inputs = {"input_ids": ids, "attention_mask": np.ones((batch, length), np.int64)}
    with tempfile.TemporaryDirectory() as directory:
        deberta_jax.save_pretrained(directory, model, params)
        files = {name: os.path.join(directory, f"{name}.onnx") for name in ("ours", "torch any", "torch fixed")}
        build(model, params).write(Path(files["ours"]))
        for name in ("torch any", "torch fixed"):
            torch_graph(directory, inputs, files[name], dynamic=name == "torch any")
        sizes = {name: os.path.getsize(file) for name, file in files.items()}
        sessions = {name: opened(file) for name, file in files.items()}
    runs = {name: lambda session=session: session.run(None, inputs)[0] for name, session in sessions.items()}
    found = {name: run() for name, run in runs.items()}
    median = in_turn(runs, args.rounds)
    return {
        "shape": f"{batch}x{length}",
        "our time over theirs": {name: round(median["ours"] / median[name], 3) for name in runs if name != "ours"},
        "difference": {name: float(np.abs(found[name] - found["ours"]).max()) for name in runs if name != "ours"},
        "file size over ours": {name: round(sizes[name] / sizes["ours"], 3) for name in runs if name != "ours"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deberta-v3-base")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--shapes", nargs="+", default=["8x128", "4x512"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    rows = []
    for shape in args.shapes:
        rows.append(measure(args, *map(int, shape.split("x"))))
        print(json.dumps(rows[-1]), flush=True)
    if args.record:
        args.record.write_text(json.dumps({"command": sys.argv[1:], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
