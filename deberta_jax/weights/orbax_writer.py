"""Writes Orbax checkpoints leaf by leaf; a whole model is never in memory.

Orbax writes the container: metadata, commit, cloud paths. TensorStore writes the arrays inside.
"""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import tensorstore as ts
from etils import epath

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.storage import AnyPath
from deberta_jax.weights.orbax_files import PendingLeaf, key_value_store
from deberta_jax.weights.orbax_library import ocp
from deberta_jax.weights.trees import nested


class _LeafHandler(ocp.type_handlers.TypeHandler):
    """Writes ``PendingLeaf`` values as if they were numpy arrays, two blocks at a time. It cannot read.

    It uses only Orbax's public ``TypeHandler`` interface. TensorStore writes the arrays into the directory of one
    process, which Orbax merges into the checkpoint.
    """

    def typestr(self) -> str:
        return "np.ndarray"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise NotImplementedError("this handler only writes")

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Sequence[Any]:
        raise NotImplementedError("this handler only writes")

    async def serialize(
        self, values: Sequence[PendingLeaf], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> list[Any]:
        limit = asyncio.Semaphore(2)
        writes = [_write_leaf(leaf, info, limit) for leaf, info in zip(values, infos, strict=True)]
        # All end before the event loop is closed, even if one fails: TensorStore would print a traceback otherwise.
        for error in await asyncio.gather(*writes, return_exceptions=True):
            if error is not None:
                raise error
        return []


async def _write_leaf(leaf: PendingLeaf, info: Any, limit: asyncio.Semaphore) -> None:
    """Writes a leaf block by block; ``limit`` bounds the number of blocks in memory over all leaves."""
    spec = {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": key_value_store(info.parent_dir / "ocdbt.process_0"),
            "path": f"{info.name}/",
            "config": {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000},
            "target_data_file_size": 2 << 30,
        },
        "metadata": {"shape": leaf.shape, "chunks": leaf.chunks(), "compressor": {"id": "zstd", "level": 1}},
        "dtype": leaf.dtype.name,
        "store_data_equal_to_fill_value": True,
    }
    array = await ts.open(spec, create=True, open=True, context=info.ts_context)
    blocks = leaf.blocks()
    while True:
        async with limit:
            item = next(blocks, None)
            if item is None:
                return
            index, block = item
            await array[index].write(block, can_reference_source_data_indefinitely=True)
            del item, block


def write_orbax(directory: AnyPath, leaves: Mapping[str, PendingLeaf], *, named: str | None = None) -> None:
    """Writes one checkpoint.

    Args:
      directory: a local or remote directory that does not exist.
      leaves: the leaves by path (``a/b/c``); they are stored as a nested dict.
      named: the name of the directory in messages.

    Raises:
      InputError: the local directory cannot be written.
    """
    tree = nested(leaves)
    # The handler of jax.Array is not used, but Orbax warns if there is none.
    handlers = (PendingLeaf, _LeafHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    registry = ocp.type_handlers.create_type_handler_registry(*handlers)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=True, type_handler_registry=registry)) as checkpointer:
        try:
            # Orbax refuses a relative path.
            absolute = directory if storage.is_remote(directory) else Path(directory).absolute()
            checkpointer.save(epath.Path(absolute), args=ocp.args.PyTreeSave(tree))
        except InputError:
            raise
        except (OSError, ValueError) as error:  # TensorStore raises ValueError if a disk is full
            if storage.is_remote(directory):
                raise
            why = " ".join(str(error).split())[:200]
            raise InputError(
                f"{named or directory}: could not be written ({why}); make room, or give another path"
            ) from None
