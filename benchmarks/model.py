"""A whole classifier: ours, ours with plain attention, and PyTorch transformers with the same weights, in one process.

    python benchmarks/model.py [--preset deberta-v3-base] [--shapes 8x128 4x512] [--jobs forward train compile]
                               [--dtype float32] [--dropout 0.1] [--rounds 7] [--alone] [--record FILE.json]

All run in turn, round by round; the table gives medians as ratios, and each row's share of the machine's own
matrix-product peak in that dtype (products of the model's own FLOPs, those of the recomputation not counted). A train
step is forward, backward and AdamW, whose state both keep in float32; ``compile`` is tracing and compiling one, without
PyTorch. ``--alone`` leaves PyTorch out of the process, whose threads still look for work for a while after a call.
Absolute times mean nothing on a shared machine. PyTorch runs eagerly; in bfloat16 under autocast.
"""

import argparse
import dataclasses
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import in_turn, seconds

import deberta_jax
from deberta_jax.ops.losses import cross_entropy, weighted_mean

RATE = 1e-5


def our_job(job: str, config: Any, params: Any, batch: dict[str, np.ndarray], dtype: Any) -> Callable[[], Any]:
    model = deberta_jax.DebertaForSequenceClassification(config, dtype=dtype)
    inputs = {name: jnp.asarray(batch[name]) for name in ("input_ids", "attention_mask")}
    if job == "forward":
        model, params = deberta_jax.prepare_for_inference(model, params)
        program = jax.jit(lambda p, x: model.apply({"params": p}, **x).logits).lower(params, inputs).compile()
        return lambda: jax.block_until_ready(program(params, inputs))
    optimizer, labels = optax.adamw(RATE, weight_decay=0.01), jnp.asarray(batch["labels"])

    def step(params, state, key):
        key, drop = jax.random.split(key)

        def loss(p):
            out = model.apply({"params": p}, **inputs, deterministic=False, rngs={"dropout": drop})
            return weighted_mean(*cross_entropy(out.logits, labels))

        gradients = jax.grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, key

    params = jax.tree.map(jnp.array, params)
    held = [(params, jax.jit(optimizer.init)(params), jax.random.key(0))]
    if job == "compile":
        # A function of its own each time: a known one would not be traced again.
        return lambda: jax.jit(lambda *state: step(*state), donate_argnums=(0, 1)).lower(*held[0]).compile()
    program = jax.jit(step, donate_argnums=(0, 1)).lower(*held[0]).compile()

    def run():
        held[0] = jax.block_until_ready(program(*held[0]))

    return run


def torch_job(job: str, directory: str, batch: dict[str, np.ndarray], dtype: Any) -> Callable[[], None]:
    import torch
    import transformers
    from torch_program import torch_program

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    names = ("input_ids", "attention_mask", *(["labels"] if job == "train" else []))
    inputs = {name: torch.from_numpy(batch[name]).long() for name in names}
    run = torch_program(job, model, bfloat16=dtype == jnp.bfloat16, rate=RATE)
    return lambda: run(inputs)


def peak(dtype: Any) -> float:
    """Best FLOP/s of a 2048 cubed product of XLA on this machine, among ten, summed and given in float32."""
    a = jnp.ones((2048, 2048), dtype)
    # A product given in bfloat16 takes three times as long as one given in float32.
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    jax.block_until_ready(product(a))
    best = min(seconds(lambda: jax.block_until_ready(product(a))) for _ in range(10))
    return 2 * 2048**3 / best


def model_flops(config: Any, batch: int, length: int, *, train: bool, plain: bool) -> float:
    """Of the products alone: projections, feed-forward, attention, and the relative table's projections."""
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    tokens = batch * length
    attention = (2 if plain else 4) * 2 * tokens * length * d
    rows = 0 if plain else min(2 * length - 1, 2 * config.relative_span)
    forward = layers * (tokens * (8 * d * d + 4 * d * f) + attention + 4 * rows * d * d)
    return forward * (3 if train else 1)


def measure(args: argparse.Namespace, job: str, batch: int, length: int, dtype: Any) -> dict[str, Any]:
    """Medians of one shape and job, as ratios."""
    config = dataclasses.replace(
        deberta_jax.PRESETS[args.preset], hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=args.dropout
    )
    plain = dataclasses.replace(config, relative_attention=False)
    params = deberta_jax.init_params(deberta_jax.DebertaForSequenceClassification(config), jax.random.key(0))
    random = np.random.RandomState(0)
    arrays = {
        "input_ids": random.randint(5, config.vocab_size, (batch, length)).astype(np.int32),
        "attention_mask": np.ones((batch, length), np.int32),
        "labels": random.randint(0, config.num_labels, batch).astype(np.int32),
    }
    runs = {"ours": our_job(job, config, params, arrays, dtype)}
    of_plain = deberta_jax.init_params(deberta_jax.DebertaForSequenceClassification(plain), jax.random.key(0))
    runs["ours, plain attention"] = our_job(job, plain, of_plain, arrays, dtype)
    if job != "compile" and not args.alone:
        with tempfile.TemporaryDirectory() as directory:
            deberta_jax.save_pretrained(directory, deberta_jax.DebertaForSequenceClassification(config), params)
            runs["torch"] = torch_job(job, directory, arrays, dtype)
    median = in_turn(runs, args.rounds)
    found = {
        "job": job,
        "shape": f"{batch}x{length}",
        "dtype": jnp.dtype(dtype).name,
        "dropout": args.dropout,
        "over plain attention": round(median["ours"] / median["ours, plain attention"], 3),
    }
    if job == "compile":
        return found
    flops = {name: model_flops(config, batch, length, train=job == "train", plain="plain" in name) for name in runs}
    best = peak(dtype)
    if "torch" in runs:
        found["times as fast as torch"] = round(median["torch"] / median["ours"], 3)
    return found | {
        "share of peak": {name: round(flops[name] / median[name] / best, 3) for name in runs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="deberta-v3-base")
    parser.add_argument("--shapes", nargs="+", default=["8x128", "4x512"])
    parser.add_argument("--jobs", nargs="+", default=["forward", "train"], choices=["forward", "train", "compile"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alone", action="store_true", help="ours and plain attention, without PyTorch")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    rows = []
    for shape in args.shapes:
        batch, length = map(int, shape.split("x"))
        for job in args.jobs:
            rows.append(measure(args, job, batch, length, jnp.dtype(args.dtype)))
            print(json.dumps(rows[-1]), flush=True)
            gc.collect()
    if args.record:
        args.record.write_text(json.dumps({"command": sys.argv[1:], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
