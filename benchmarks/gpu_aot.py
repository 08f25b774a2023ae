"""Attention kernels compiled for GPUs that are not there: registers, spills and shared memory of each.

    pip install 'deberta_jax[cuda12]'      # the compiler; no GPU is needed, and none was used
    python benchmarks/gpu_aot.py [--cards h100 a100-80 l4 b200] [--output benchmarks/results/gpu_aot.json]

Figures are those of ptxas, not measured. A spill is a register that a thread keeps in memory. ``instructions`` are
those of products and of copies by TMA. ``temporaries`` are the bytes that XLA sets aside for forward and backward.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest.mock
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from deberta_jax.ops.attention import disentangled_attention
from deberta_jax.ops.attention.relative_position import compact_relative_index, make_relative_index
from deberta_jax.planning.cards import CARDS, Card, card_device, target_config

HEADS = {32: 24, 64: 12, 128: 6}  # by head size: 768 wide


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes one program: forward and backward of one attention.

    Attributes:
      card: key of ``CARDS``.
      pairwise: with a mask of pairs, else with packed rows.
    """

    card: str
    size: int = 64
    dtype: str = "bfloat16"
    length: int = 512
    batch: int = 4
    dropout: float = 0.1
    pairwise: bool = False


def compile_case(case: Case) -> dict[str, Any]:
    """Returns the figures of one program and of its kernels.

    In a process of its own: within one, JAX would give all cards the kernels of the first.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_aot", "--case", json.dumps(dataclasses.asdict(case))]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if found.returncode:
        raise RuntimeError(f"{case}: {found.stderr[-2000:]}")
    return json.loads(found.stdout.splitlines()[-1])


def _compile_here(case: Case) -> dict[str, Any]:
    card = CARDS[case.card]
    with tempfile.TemporaryDirectory() as folder:
        with unittest.mock.patch.dict(os.environ, MOSAIC_GPU_DUMP_TO=folder):
            compiled = _compile(case, card)
        kernels = [_facts(path) for path in sorted(Path(folder).glob("*.ptxas"))]
    memory = compiled.memory_analysis().temp_size_in_bytes
    return dataclasses.asdict(case) | {"temporaries": memory, "kernels": kernels}


def _compile(case: Case, card: Card) -> Any:
    options = {"target_config": target_config(card), "topology": "1x1x1"}
    devices = topologies.get_topology_desc(platform="cuda", topology_name="", **options).devices
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec())
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=card_device(card))
    index = make_relative_index(case.length, 256, buckets=256, max_distance=512, clamp=True)
    rows, index = compact_relative_index(index)
    like = lambda shape, dtype=case.dtype: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)
    heads = HEADS[case.size]
    x = like((case.batch, case.length, heads, case.size))
    table = like((len(rows), heads, case.size))
    mask = like((case.batch, case.length, case.length), bool) if case.pairwise else like(x.shape[:2], "int32")

    def both(arrays, mask, key, cotangent):
        options = {"scale": 0.07, "dropout_rate": case.dropout, "dropout_key": key, "implementation": "pallas"}
        options |= {"attention_mask" if case.pairwise else "segment_ids": mask}
        context, pull = jax.vjp(lambda *arrays: disentangled_attention(*arrays, index, **options)[0], *arrays)
        return context, pull(cotangent)

    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(both).trace((x, x, x, table, table), mask, key, x)
        return traced.lower(lowering_platforms=("cuda",)).compile()


def _facts(path: Path) -> dict[str, Any]:
    said = path.read_text()
    number = lambda pattern: int(re.search(pattern, said)[1])
    name = path.stem.rpartition("_")[0]  # the number differs between the two files
    (resources,) = path.parent.glob(f"{name}_*.resources.txt")
    shared = re.search(r"smem_scratch_bytes=(\d+)", resources.read_text())
    (program,) = [file.read_text() for file in path.parent.glob(f"{name}_*.ptx")]
    instructions = [part for part in ("wgmma.mma_async", "mma.sync", "cp.async.bulk.tensor") if f"{part}." in program]
    return {
        "name": name,
        "instructions": instructions,
        "architecture": re.search(r"for '(sm_\w+)'", said)[1],
        "registers": number(r"Used (\d+) registers"),
        "spilled_bytes": number(r"(\d+) bytes spill stores"),
        "shared_bytes": int(shared[1]),
    }


def cases(cards: list[str]) -> list[Case]:
    """Returns the programs: training on each card, and for the first also with other head sizes."""
    others = ({"size": 32}, {"size": 128})
    return [Case(card) for card in cards] + [Case(cards[0], **other) for other in others]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cards", nargs="+", choices=CARDS, default=["h100", "a100-80", "l4", "b200"])
    parser.add_argument("--case", help="only this one, as JSON: prints its figures")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/gpu_aot.json"))
    args = parser.parse_args()
    if args.case:
        print(json.dumps(_compile_here(Case(**json.loads(args.case)))))
        return
    rows = []
    for case in cases(args.cards):
        rows.append(compile_case(case))
        print(json.dumps(rows[-1]), flush=True)
    result = {"note": "compiler's figures, no GPU was used", "jax": jax.__version__, "programs": rows}
    args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
