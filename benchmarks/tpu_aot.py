"""Attention compiled for TPUs that are not there: which programs compile, and how many bytes of HBM each moves.

    pip install 'deberta_jax[tpu]'      # libtpu, the compiler; no TPU is needed, and none was used
    python benchmarks/tpu_aot.py [--generations v5e v5p v6e] [--output benchmarks/results/tpu_aot.json]

Figures are the compiler's, not measured. Its "bytes accessed" counts a Pallas call as its operands and results, once
each. What the kernel moves besides, because a block is fetched again for every other block it meets, is counted here
from the kernel's own index maps and added: the column "moved". Time cannot be told from either.
"""

import argparse
import contextlib
import json
import os
import re
import time
import unittest.mock
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import deberta_jax
from benchmarks.tpu_peers import PEERS, in_a_model
from deberta_jax.models import abstract_params
from deberta_jax.models import attention as model_attention
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
from deberta_jax.ops.attention.pallas.tiling import TILE, make_tpu_tiling
from deberta_jax.ops.attention.relative_position import compact_relative_index, make_relative_index
from deberta_jax.ops.attention.tpu import backward, forward, grid
from deberta_jax.ops.attention.xla import xla_attention
from deberta_jax.sharding import RULES, make_mesh

GENERATIONS = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x2", "v6e": "v6e:2x4"}
LENGTHS = {128: 32, 384: 8, 512: 8, 2048: 2, 4096: 1, 8192: 1}  # and the batch
HEADS = {32: 24, 64: 12, 128: 6}  # by head size: 768 wide


IMPLEMENTATIONS = {
    "plain": PEERS["plain"],
    "xla": lambda inputs: xla_attention(inputs)[0],
    "pallas": pallas_attention,
}
ARRAYS = ("query", "key", "value", "pos_key", "pos_query")


def released_index(length: int) -> np.ndarray:
    """The relative index of the released v3 models."""
    return compact_relative_index(make_relative_index(length, 256, buckets=256, max_distance=512, clamp=True))[1]


def devices(generation: str) -> list[Any]:
    """The devices of a described TPU.

    Raises:
      ImportError: without libtpu.
    """
    import libtpu  # noqa: F401 - asked for here, so that its absence has one place

    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return topologies.get_topology_desc(platform="tpu", topology_name=GENERATIONS[generation]).devices


def compile_attention(
    implementation: str,
    generation: str,
    length: int,
    *,
    head_size: int = 64,
    batch: int | None = None,
    dtype: Any = jnp.bfloat16,
    rate: float = 0.0,
    pairwise_mask: bool = False,
    backward: bool = True,
    relative_index: np.ndarray | None = None,
) -> Any:
    """One attention, forward and backward, with a mask of tokens, compiled for one device.

    Args:
      implementation: a name of ``IMPLEMENTATIONS`` or ``PEERS``.
      generation: a name of ``GENERATIONS``.
      length: tokens of a row.
      head_size: numbers of a head; the width is 768.
      batch: rows; None: that of ``LENGTHS``.
      dtype: of all arrays.
      rate: of dropout, which ``plain``, ``flash`` and ``splash`` do not have.
      pairwise_mask: also with an attention_mask [B,T,T].
      backward: also with all gradients.
      relative_index: table row of each distance; None: that of the released v3 models.
    """
    batch, heads = batch or LENGTHS[length], HEADS[head_size]
    relative_index = released_index(length) if relative_index is None else relative_index
    like = jax.ShapeDtypeStruct
    x = like((batch, length, heads, head_size), dtype)
    table = like((relative_index.max() + 1, heads, head_size), dtype)
    masks = {"segment_ids": like((batch, length), jnp.int32)}
    masks |= {"attention_mask": like((batch, length, length), jnp.bool_)} if pairwise_mask else {}
    masks |= {"dropout_key": jax.eval_shape(lambda: jax.random.key(0))} if rate else {}

    def program(arrays, masks, cotangent):
        options = {"relative_index": relative_index, "scale": (3 * head_size) ** -0.5, "dropout_rate": rate, **masks}
        given = lambda arrays: dict(zip(ARRAYS, arrays, strict=True))
        attend = lambda *arrays: (IMPLEMENTATIONS | PEERS)[implementation](AttentionInputs(**given(arrays), **options))
        if not backward:
            return attend(*arrays)
        context, pull = jax.vjp(attend, *arrays)
        return context, pull(cotangent)

    mesh = Mesh(np.array(devices(generation)[:1]), ("one",))
    sharding = NamedSharding(mesh, PartitionSpec())
    jitted = jax.jit(program, in_shardings=sharding, out_shardings=sharding)
    return jitted.lower((x, x, x, table, table), masks, x).compile()


def compile_on_mesh(length: int, *, data: int, tensor: int) -> Any:
    """The kernel, forward and backward with dropout, on a v5e mesh: examples over ``data``, heads over ``tensor``."""
    heads, relative_index, like = HEADS[64], released_index(length), jax.ShapeDtypeStruct
    mesh = make_mesh(data=data, tensor=tensor, devices=devices("v5e")[: data * tensor])
    split, whole = (NamedSharding(mesh, RULES.spec(axes)) for axes in (("batch", None, "heads", None), ()))
    x = like((8, length, heads, 64), jnp.bfloat16)
    table = like((relative_index.max() + 1, heads, 64), jnp.bfloat16)

    def program(arrays, segment_ids, key, cotangent):
        options = {"relative_index": relative_index, "scale": 0.07, "segment_ids": segment_ids}
        options |= {"dropout_rate": 0.1, "dropout_key": key}
        given = lambda arrays: dict(zip(ARRAYS, arrays, strict=True))
        attend = lambda *arrays: pallas_attention(AttentionInputs(**given(arrays), **options))
        context, pull = jax.vjp(attend, *arrays)
        return context, pull(cotangent)

    key, segment_ids = jax.eval_shape(lambda: jax.random.key(0)), like((8, length), jnp.int32)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jitted = jax.jit(program, in_shardings=((split,) * 3 + (whole,) * 2, whole, whole, split))
        return jitted.lower((x, x, x, table, table), segment_ids, key, x).compile()


def compile_train_step(attention: str, batch: int, length: int, preset: str = "deberta-v3-base") -> Any:
    """A step of fine-tuning in bfloat16 (AdamW, dropout) on one v5e.

    Args:
      attention: an implementation of the model, or a name of ``PEERS``, which then takes its place.
    """
    model = deberta_jax.DebertaForSequenceClassification(
        deberta_jax.PRESETS[preset], dtype=jnp.bfloat16, attention="pallas" if attention in PEERS else attention
    )
    params, optimizer = abstract_params(model), optax.adamw(1e-5)
    whole = NamedSharding(make_mesh(devices=devices("v5e")[:1]), PartitionSpec())

    def step(params, state, key, ids, mask, labels):
        def loss(params):
            run = {"attention_mask": mask, "deterministic": False, "rngs": {"dropout": key}}
            logits = model.apply({"params": params}, ids, **run).logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    tokens, key = jax.ShapeDtypeStruct((batch, length), jnp.int32), jax.eval_shape(lambda: jax.random.key(0))
    arguments = params, jax.eval_shape(optimizer.init, params), key, tokens, tokens, tokens.update(shape=(batch,))
    replaced = contextlib.nullcontext()
    if attention in PEERS:
        replaced = unittest.mock.patch.object(model_attention, "disentangled_attention", in_a_model(attention))
    with replaced:
        jitted = jax.jit(step, in_shardings=whole, out_shardings=whole, donate_argnums=(0, 1))
        return jitted.lower(*arguments).compile()


def bytes_accessed(compiled: Any) -> float:
    """The compiler's count; a Pallas call stands in it with its operands and results."""
    return compiled.cost_analysis()["bytes accessed"]


def bytes_refetched(length: int, *, head_size: int = 64, batch: int | None = None) -> int:
    """What both kernels move beyond their operands and results once: from their index maps, nothing masked, bfloat16.

    A block is moved whenever its index differs from that of the step before. The windows of the tables overlap, so
    even one step may move more than the operand is large; and what no step reads is not moved. With one block, nothing
    is fetched again.
    """
    batch, heads = batch or LENGTHS[length], HEADS[head_size]
    tiling = make_tpu_tiling(length, heads, head_size, released_index(length), scale=1.0, dropout_rate=0.0)
    if tiling.blocks == 1:
        return 0
    like = jax.ShapeDtypeStruct
    x = like((batch, tiling.padded_length, tiling.padded_heads * tiling.lanes_per_head), jnp.bfloat16)
    table = like((tiling.table_rows, x.shape[2]), jnp.bfloat16)
    arrays = {"query": x, "key": x, "value": x, "table_key": table, "table_query": table}
    by_query = forward.output_blocks(tiling, arrays)["logsumexp"][1]
    by_tile = like((tiling.table_rows // TILE, x.shape[2], TILE), jnp.bfloat16)
    of_backward = dict.fromkeys(("query", "key", "value", "cotangent"), x)
    of_backward |= dict.fromkeys(("table_key_transposed", "table_query_transposed"), by_tile)
    of_backward |= dict.fromkeys(("logsumexp", "delta"), by_query)
    both = ((forward, arrays, grid.QUERY_MAJOR), (backward, of_backward, grid.KEY_MAJOR))
    more = 0
    for kernel, given, order in both:
        _, specs, values = grid.input_blocks(tiling, given, order)
        blocks = [*zip(specs, values, strict=True), *kernel.output_blocks(tiling, given).values()]
        more += sum(
            _moved(spec, a, (tiling.groups, batch, tiling.blocks, tiling.blocks)) - a.size * _width(a)
            for spec, a in blocks
        )
    return more


def _width(array: Any) -> int:
    return jnp.dtype(array.dtype).itemsize


def _moved(spec: Any, array: Any, grid: tuple[int, ...]) -> int:
    size = int(np.prod([getattr(side, "block_size", side) for side in spec.block_shape])) * _width(array)
    count, last = 0, None
    for step in np.ndindex(*grid):
        index = tuple(int(i) for i in spec.index_map(*step, None, None, None))
        count, last = count + (index != last), index
    return count * size


def gathers(compiled: Any) -> list[tuple[int, ...]]:
    """Shapes of the arrays that the program's gathers and scatters make."""
    made = re.findall(r"= \w+\[([\d,]*)\]\S* (?:gather|scatter)\(", compiled.as_text())
    return [tuple(int(n) for n in shape.split(",") if n) for shape in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generations", nargs="+", choices=GENERATIONS, default=list(GENERATIONS))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/tpu_aot.json"))
    args = parser.parse_args()
    result: dict[str, Any] = {"note": "compiler's figures, no TPU was used", "traffic": [], "compiles": []}
    for length in (128, 512, 2048):
        row: dict[str, Any] = {"generation": args.generations[0], "batch": LENGTHS[length], "length": length}
        for name in IMPLEMENTATIONS:
            row[name] = bytes_accessed(compile_attention(name, args.generations[0], length)) / 1e9
        row["pallas_moved"] = row["pallas"] + bytes_refetched(length) / 1e9
        row["ratios"] = {name: row[name] / row["plain"] for name in ("xla", "pallas", "pallas_moved")}
        result["traffic"].append(row)
        print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
    for generation in args.generations:
        for length in LENGTHS:
            for head_size in HEADS:
                start = time.perf_counter()
                compiled = compile_attention("pallas", generation, length, head_size=head_size, rate=0.1)
                row = {"generation": generation, "length": length, "head_size": head_size}
                row["seconds"] = round(time.perf_counter() - start, 1)
                row["temp_mib"] = compiled.memory_analysis().temp_size_in_bytes >> 20
                result["compiles"].append(row)
                print(row, flush=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
