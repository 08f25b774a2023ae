"""One attention, forward and forward+backward: the implementations, v1's rows, and plain attention, in one process.

    python benchmarks/attention.py [--shapes 8x128 4x512] [--heads 12] [--head-size 64] [--rounds 9] [--dropout 0.0]
                                   [--record FILE.json]

All run in turn, round by round. Medians are given as ratios to the best plain attention there is (three einsums, or our
own implementations without the relative terms, whichever is fastest), and as a speed-up over ``reference``, the
definition by gather. Absolute times mean nothing on a shared machine.
"""

import argparse
import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import in_turn

from deberta_jax.ops.attention import IMPLEMENTATIONS, disentangled_attention
from deberta_jax.ops.attention.relative_position import compact_relative_index, make_relative_index

PLAIN = "plain"


def three_products(query, key, value, mask):
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, value)


def contestants(batch: int, length: int, heads: int, size: int, dropout: float) -> dict[str, tuple[Callable, tuple]]:
    """By name: the attention, and its arrays."""
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), (*shape, heads, size))
    sequences, mask = tuple(draw(i, batch, length) for i in range(3)), jnp.ones((batch, length), bool)
    key = jax.random.key(6) if dropout else None

    def attend(name: str, relative_index: np.ndarray) -> Callable:
        def run(query, keys, value, pos_key=None, pos_query=None):
            terms = 1 if pos_key is None else 3
            return disentangled_attention(
                query,
                keys,
                value,
                pos_key,
                pos_query,
                relative_index,
                scale=(terms * size) ** -0.5,
                attention_mask=mask,
                implementation=name,
                dropout_rate=dropout,
                dropout_key=key,
            )[0]

        return run

    here = [name for name in IMPLEMENTATIONS if name != "pallas" or jax.default_backend() in ("tpu", "gpu")]
    rows, relative_index = compact_relative_index(
        make_relative_index(length, 256, buckets=256, max_distance=512, clamp=True)
    )
    tables = tuple(draw(i, len(rows)) for i in (3, 4))
    found: dict[str, tuple[Callable, tuple]] = {}
    if not dropout:
        found[f"{PLAIN}, three einsums"] = lambda q, k, v: three_products(q, k, v, mask), sequences
    for name in here:
        if name != "reference":
            found[f"{PLAIN}, {name}"] = attend(name, relative_index), sequences
    for name in here:
        found[name] = attend(name, relative_index), (*sequences, *tables)
    rows, relative_index = compact_relative_index(
        make_relative_index(length, 512, buckets=-1, max_distance=512, clamp=False)
    )
    tables = tuple(draw(i, len(rows)) for i in (3, 4))
    found["v1 spans, auto"] = attend("auto", relative_index), (*sequences, *tables)
    return found


def program(job: str, attend: Callable, arrays: tuple, cotangent: jax.Array) -> Callable[[], Any]:
    """Compiles a job; the function returned does not wait for its result."""

    def both(cotangent, *arrays):
        out, backward = jax.vjp(attend, *arrays)
        return out, backward(cotangent)

    chosen = both if job == "forward+backward" else lambda _, *arrays: attend(*arrays)
    compiled = jax.jit(chosen).lower(cotangent, *arrays).compile()
    return lambda: compiled(cotangent, *arrays)


def waiting(call: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(call())


def measure(job: str, batch: int, length: int, args: argparse.Namespace) -> dict[str, Any]:
    found = contestants(batch, length, args.heads, args.head_size, args.dropout)
    cotangent = jax.random.normal(jax.random.key(5), (batch, length, args.heads, args.head_size))
    runs = {name: waiting(program(job, attend, arrays, cotangent)) for name, (attend, arrays) in found.items()}
    median = in_turn(runs, args.rounds, pause=0)
    best = min(value for name, value in median.items() if name.startswith(PLAIN))
    return {
        "job": job,
        "shape": f"{batch}x{length}",
        "dropout": args.dropout,
        "over the best plain": {name: round(value / best, 2) for name, value in median.items()},
        "faster than the gather": {name: round(median["reference"] / value, 2) for name, value in median.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["8x128", "4x512"])
    for name, default in (("heads", 12), ("head-size", 64), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    rows = []
    for shape in args.shapes:
        for job in ("forward", "forward+backward"):
            rows.append(measure(job, *map(int, shape.split("x")), args))
            print(f"{shape}, {args.heads} heads of {args.head_size}, {job}, dropout {args.dropout}")
            for name, value in rows[-1]["over the best plain"].items():
                print(f"  {name:24} {value:6.2f} x plain {rows[-1]['faster than the gather'][name]:8.2f} x the gather")
            gc.collect()
    if args.record:
        args.record.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
