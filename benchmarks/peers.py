"""A forward pass of the encoder beside the other ways to run DeBERTa on this machine, in one process.

    python benchmarks/peers.py [--preset deberta-v3-base] [--shapes 8x128 4x512] [--dtype float32] [--rounds 5]
                               [--peers torch compile onnxruntime openvino keras] [--record FILE.json]

Needs torch, transformers and, for those peers, onnxruntime with onnx, openvino, keras-hub (whose backend is JAX here).
All read the same weights but KerasHub, whose own random ones have the same shapes; each is called once before the
clock runs, so that compilation is not counted; then they take turns. Given are the peers' median times over ours, and
ours as a share of the machine's own matrix-product peak. In bfloat16 PyTorch runs under autocast, the others are left
out. Absolute times mean nothing on a shared machine.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from model import model_flops, peak
from timing import in_turn

import deberta_jax

Run = Callable[[], Any]
Inputs = dict[str, np.ndarray]


def ours(model: Any, params: Any, inputs: Inputs) -> Run:
    model, params = deberta_jax.prepare_for_inference(model, params)
    arrays = {name: jnp.asarray(a) for name, a in inputs.items()}
    run = jax.jit(lambda p, x: model.apply({"params": p}, **x).last_hidden_state).lower(params, arrays).compile()
    return lambda: jax.block_until_ready(run(params, arrays))


def load_torch(directory: str) -> Any:
    return transformers.AutoModel.from_pretrained(directory).eval()


def torch_inputs(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(a).long() for name, a in inputs.items()}


def torch_eager(directory: str, inputs: Inputs, dtype: Any, compiled: bool = False) -> Run:
    model, given = load_torch(directory), torch_inputs(inputs)
    call = torch.compile(model) if compiled else model

    def run():
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == jnp.bfloat16):
            return call(**given).last_hidden_state

    return run


class Traced(torch.nn.Module):
    """The encoder with arguments and result in the form that exporters take."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def onnx_runtime(directory: str, inputs: Inputs) -> Run:
    import onnxruntime

    path, given = os.path.join(directory, "model.onnx"), torch_inputs(inputs)
    with torch.no_grad():
        torch.onnx.export(
            Traced(load_torch(directory)),
            tuple(given.values()),
            path,
            input_names=list(given),
            dynamo=False,
            opset_version=17,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    wanted = {name: a.astype(np.int64) for name, a in inputs.items()}
    return lambda: session.run(None, wanted)[0]


def open_vino(directory: str, inputs: Inputs) -> Run:
    import openvino

    given = torch_inputs(inputs)
    with torch.no_grad():
        model = openvino.convert_model(Traced(load_torch(directory)), example_input=tuple(given.values()))
    model.reshape({place: openvino.PartialShape(list(array.shape)) for place, array in enumerate(given.values())})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0))}
    compiled = openvino.compile_model(model, "CPU", settings)
    wanted = [a.astype(np.int64) for a in inputs.values()]
    return lambda: compiled(wanted)[0]


def keras_hub(config: Any, inputs: Inputs) -> Run:
    from keras_hub.models import DebertaV3Backbone

    backbone = DebertaV3Backbone(
        vocabulary_size=config.vocab_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        intermediate_dim=config.intermediate_size,
        dropout=0.0,
        max_sequence_length=config.max_position_embeddings,
        bucket_size=config.position_buckets,
    )
    trainable = [v.value for v in backbone.trainable_variables]
    fixed = [v.value for v in backbone.non_trainable_variables]
    given = {"token_ids": jnp.asarray(inputs["input_ids"]), "padding_mask": jnp.asarray(inputs["attention_mask"])}
    run = jax.jit(lambda t, f, x: backbone.stateless_call(t, f, x, training=False)[0])
    run = run.lower(trainable, fixed, given).compile()
    return lambda: jax.block_until_ready(run(trainable, fixed, given))


def measure(args: argparse.Namespace, batch: int, length: int, dtype: Any) -> dict[str, Any]:
    config = deberta_jax.PRESETS[args.preset]
    model = deberta_jax.DebertaEncoder(config, dtype=dtype)
    params = jax.jit(lambda: deberta_jax.init_params(model, jax.random.key(0)))()
    ids = np.random.RandomState(0).randint(5, config.vocab_size, (batch, length)).astype(np.int32)
    inputs = {"input_ids": ids, "attention_mask": np.ones((batch, length), np.int32)}
    with tempfile.TemporaryDirectory() as directory:
        deberta_jax.save_pretrained(directory, model, params)
        makers: dict[str, Callable[[], Run]] = {
            "torch": lambda: torch_eager(directory, inputs, dtype),
            "compile": lambda: torch_eager(directory, inputs, dtype, compiled=True),
            "onnxruntime": lambda: onnx_runtime(directory, inputs),
            "openvino": lambda: open_vino(directory, inputs),
            "keras": lambda: keras_hub(config, inputs),
        }
        runs = {"ours": ours(model, params, inputs)} | {name: makers[name]() for name in args.peers}
        found = {name: np.float32(run()) for name, run in runs.items()}
    for name in args.peers:
        if name != "keras":
            error = float(np.abs(found[name] - found["ours"]).max())
            assert error < (0.2 if dtype == jnp.bfloat16 else 1e-3), f"{name} computes something else: {error}"
    median = in_turn(runs, args.rounds)
    flops = model_flops(config, batch, length, train=False, plain=False)
    best = peak(dtype)
    return {
        "shape": f"{batch}x{length}",
        "dtype": jnp.dtype(dtype).name,
        "time over ours": {name: round(median[name] / median["ours"], 2) for name in args.peers},
        "share of peak": {name: round(flops / median[name] / best, 3) for name in runs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deberta-v3-base")
    parser.add_argument("--shapes", nargs="+", default=["8x128", "4x512"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--peers", nargs="+", default=["torch", "compile", "onnxruntime", "openvino", "keras"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    rows = []
    for shape in args.shapes:
        batch, length = map(int, shape.split("x"))
        rows.append(measure(args, batch, length, jnp.dtype(args.dtype)))
        print(json.dumps(rows[-1]), flush=True)
        gc.collect()
    if args.record:
        args.record.write_text(json.dumps({"command": sys.argv[1:], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
