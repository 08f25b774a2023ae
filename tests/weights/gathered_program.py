"""One of two processes that load a model into shards and save it again; a check of whole arrays would raise here."""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, Runtime
from deberta_jax.sharding import make_mesh
from deberta_jax.training.state import parameter_shardings
from deberta_jax.weights import gathering, load, load_config, save_pretrained


def anonymous_memory() -> int:
    """Returns the bytes of this process that are no pages of files."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))


def refuse(value, *_, **__):
    """Raises for anything but the one number that ``sync_global_devices`` compares."""
    if np.size(value) > 1:
        raise AssertionError("whole arrays are compared between processes")


def main(source: str, target: str, coordinator: str, process: str, mesh_sizes: str, block: str) -> None:
    jax.distributed.initialize(coordinator, 2, int(process))
    multihost_utils.assert_equal = refuse
    gathering._LARGEST_BLOCK = int(block)
    mesh = make_mesh(*(int(size) for size in mesh_sizes.split(",")))
    model = HEADS["sequence-classification"].model.create(load_config(source), Runtime())
    shardings = parameter_shardings(model, mesh)
    multihost_utils.sync_global_devices("before")
    before = anonymous_memory()
    try:
        loaded, params, _ = load(source, "sequence-classification", shardings=shardings)
    except InputError as error:
        print(f"refused: {error}", flush=True)
        return
    for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    own = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    whole = sum(np.prod(leaf.shape, dtype=int) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    print(f"grown {anonymous_memory() - before} own {own} whole {whole}", flush=True)
    save_pretrained(target, loaded, params)


main(*sys.argv[1:])
