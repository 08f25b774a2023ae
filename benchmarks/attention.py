"""The attention bodies against each other and against plain attention, forward and backward, in one process.

    python benchmarks/attention.py [--batch 8] [--length 128] [--heads 12] [--head-size 64] [--rounds 9]

All run in turn, round by round; the table gives medians as ratios to plain attention written as three einsums and to
``reference``, the definition by gather. Absolute times mean nothing on a shared machine.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp

from deberta_jax.ops.attention import BODIES, disentangled_attention
from deberta_jax.ops.relative_position import reachable_rows, table_rows


def plain_attention(query, key, value, pos_key, pos_query, mask):
    """Attention without the relative terms."""
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key) / query.shape[-1] ** 0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weights, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 8), ("length", 128), ("heads", 12), ("head-size", 64), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    rows = table_rows(args.length, 256, buckets=256, max_distance=512, clamp=True)
    kept, rows = reachable_rows(rows)
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), (*shape, args.heads, args.head_size))
    inputs = [draw(i, args.batch, args.length) for i in range(3)] + [draw(i, len(kept)) for i in (3, 4)]
    cotangent, mask = draw(5, args.batch, args.length), jnp.ones((args.batch, args.length), bool)

    def body(name):
        scale = (3 * args.head_size) ** -0.5
        return lambda *a: disentangled_attention(*a[:5], rows, scale=scale, mask=a[5], impl=name)[0]

    programs = {}
    here = [name for name in BODIES if name != "pallas" or jax.default_backend() in ("tpu", "gpu")]
    for name, attend in {"plain": plain_attention, **{name: body(name) for name in here}}.items():

        def both(mask, cotangent, *inputs, attend=attend):
            out, backward = jax.vjp(lambda *x: attend(*x, mask), *inputs)
            return out, backward(cotangent)

        programs[name] = jax.jit(both).lower(mask, cotangent, *inputs).compile()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(mask, cotangent, *inputs))
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{args.batch}x{args.length}, {args.heads} heads of {args.head_size}, forward and backward")
    for name, value in median.items():
        print(f"  {name:10} {value / median['plain']:6.2f} of plain  {value / median['reference']:6.2f} of reference")


if __name__ == "__main__":
    main()
