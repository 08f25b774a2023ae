"""Time, memory and error of quantized weights against float32, by preset.

    python benchmarks/quantization.py speed [--preset deberta-v3-base] [--shapes 8x128] [--layers N] [--rounds 5]
    python benchmarks/quantization.py error [--presets deberta-v3-xsmall ...] [--layers N]
    python benchmarks/quantization.py memory
    ... [--record benchmarks/results/quantization.json]

``speed``: the encoder's forward pass, float32 computation; all variants are in one process and take turns; given are
medians over that of float32, and the largest temporary memory of the compiled program. ``error``: the norm of the
difference of hidden states and logits over their norm, for initialized weights, whose errors stand for those of trained
ones of the same spread. ``memory``: bytes of all arrays over those of float32. ``--record`` adds the rows to a file.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import in_turn

import deberta_jax
from deberta_jax import Quantization
from deberta_jax.models import abstract_params
from deberta_jax.weights.quantization import quantized_shapes

HEAD = "sequence-classification"
VARIANTS = {
    "int8": Quantization(scheme="int8"),
    "int8, embeddings": Quantization(scheme="int8", embeddings=True),
    "int4": Quantization(scheme="int4"),
    "nf4": Quantization(scheme="nf4"),
    "nf4, embeddings": Quantization(scheme="nf4", embeddings=True),
    "nf4 double, embeddings": Quantization(scheme="nf4", double=True, embeddings=True),
}

ERRORS = ("int8", "int4", "nf4", "nf4 double, embeddings")


def saved(preset: str, layers: int, directory: str) -> deberta_jax.DebertaConfig:
    """Writes a model of a preset's shape with initialized weights; returns its config."""
    config = deberta_jax.PRESETS[preset]
    config = config.replace(num_hidden_layers=layers) if layers else config
    model = deberta_jax.DebertaForSequenceClassification(config)
    params = jax.jit(lambda: deberta_jax.init_params(model, jax.random.key(0)))()
    deberta_jax.save_pretrained(directory, model, params)
    return config


def inputs(config: deberta_jax.DebertaConfig, batch: int, length: int) -> jax.Array:
    return jnp.asarray(np.random.RandomState(0).randint(5, config.vocab_size, (batch, length)), jnp.int32)


def speed(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        config = saved(args.preset, args.layers, directory)
        for shape in args.shapes:
            ids = inputs(config, *map(int, shape.split("x")))
            runs, temporary = {}, {}
            for name in ("float32", *VARIANTS):
                model, params = deberta_jax.from_pretrained(directory, HEAD, quantization=VARIANTS.get(name))
                program = jax.jit(lambda params, ids, model=model: model(params, ids).logits)
                compiled = program.lower(params, ids).compile()
                temporary[name] = compiled.memory_analysis().temp_size_in_bytes
                runs[name] = lambda run=compiled, params=params, ids=ids: jax.block_until_ready(run(params, ids))
            times = in_turn(runs, args.rounds)
            ratios = {name: round(times[name] / times["float32"], 3) for name in VARIANTS}
            yield {
                "preset": args.preset,
                "layers": config.num_hidden_layers,
                "shape": shape,
                "time over float32's": ratios,
                "temporary MB": {name: round(size / 1e6, 1) for name, size in temporary.items()},
            }


def error(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for preset in args.presets:
        with tempfile.TemporaryDirectory() as directory:
            config = saved(preset, args.layers, directory)
            ids = inputs(config, 2, 64)
            found = {}
            for name in ("float32", *ERRORS):
                model, params = deberta_jax.from_pretrained(directory, HEAD, quantization=VARIANTS.get(name))

                def run(params: Any, ids: jax.Array, model: Any = model) -> tuple[jax.Array, jax.Array]:
                    out = model(params, ids, output_hidden_states=True)
                    return out.hidden_states[-1], out.logits

                found[name] = [np.asarray(value) for value in jax.jit(run)(params, ids)]
                del params
            errors = {
                name: [
                    float(f"{np.linalg.norm(value - exact) / np.linalg.norm(exact):.3g}")
                    for value, exact in zip(found[name], found["float32"], strict=True)
                ]
                for name in ERRORS
            }
            yield {"preset": preset, "layers": config.num_hidden_layers, "states and logits": errors}


def memory(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    size = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    for preset, config in deberta_jax.PRESETS.items():
        model = deberta_jax.DebertaForSequenceClassification(config)
        whole = size(abstract_params(model))
        ratios = {name: round(size(quantized_shapes(model, q)) / whole, 3) for name, q in VARIANTS.items()}
        yield {"preset": preset, "float32 MB": round(whole / 1e6), "of float32": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "error", "memory"])
    parser.add_argument("--preset", default="deberta-v3-base")
    parser.add_argument("--presets", nargs="+", default=list(deberta_jax.PRESETS))
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--shapes", nargs="+", default=["8x128"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    for row in {"speed": speed, "error": error, "memory": memory}[args.what](args):
        print(json.dumps(row), flush=True)
        if args.record:
            record(args.record, args.what, row)


def record(path: Path, what: str, row: dict[str, Any]) -> None:
    """Adds a row to a file of results, in place of the row of the same preset, layers and shape."""
    same = lambda other: all(other.get(key) == row.get(key) for key in ("preset", "layers", "shape"))
    found = json.loads(path.read_text()) if path.is_file() else {}
    machine = f"{len(os.sched_getaffinity(0))} CPU cores, load {os.getloadavg()[0]:.1f}, jax {jax.__version__}"
    row |= {} if what == "memory" else {"machine": machine}
    found[what] = [*(other for other in found.get(what, []) if not same(other)), row]
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
