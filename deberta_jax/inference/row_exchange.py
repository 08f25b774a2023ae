"""Keeps the results of a process's own rows, and exchanges them with the other processes once, at the end."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from deberta_jax.sharding import batch_sharding, row_share

BLOCK_BYTES = 1 << 26
"""Largest number of bytes that a process receives at once."""


class RowExchange:
    """Divides the rows of batches among the processes of a mesh as the devices hold them.

    Where several processes hold the same rows, because their devices share a copy of the parameters, the first of them
    sends.

    Args:
      mesh: the devices of all processes.

    Attributes:
      share: the rows of this process.
      needed: whether there are several processes.
    """

    def __init__(self, mesh: Mesh):
        self.share = row_share(mesh)
        self.needed = not batch_sharding(mesh).is_fully_addressable
        # The first process that holds each of the equal blocks of a batch's rows.
        count = self.share.count
        indices = batch_sharding(mesh).devices_indices_map((count,))
        self._owner_of_block = np.full(count, np.iinfo(np.int32).max, np.int32)
        for device, index in indices.items():
            assert index is not None, "every device has rows"
            block = range(count)[index[0]][0]
            self._owner_of_block[block] = min(self._owner_of_block[block], device.process_index)

    def own(self, members: np.ndarray, rows: int) -> np.ndarray:
        """Returns those of a batch's texts whose rows this process has; the rows of a batch begin with its texts.

        Args:
          members: the texts of the batch, int64 [n].
          rows: number of its rows, at least n, a multiple of ``share.count``.
        """
        local = self.share.rows(rows)
        return members[local[local < len(members)]]

    def owners(self, texts: int, rows: int) -> np.ndarray:
        """Returns for each of a batch's texts the process that sends its results: int32 [texts]."""
        return np.repeat(self._owner_of_block, rows // self.share.count)[:texts]

    def local(self, array: jax.Array) -> np.ndarray:
        """Returns the rows of a batch's results that this process has, in the order of ``share.rows``."""
        if not self.needed:
            return np.asarray(jax.device_get(array))
        parts: dict[int, Any] = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate(jax.device_get([parts[start] for start in sorted(parts)]))

    def complete(self, out: np.ndarray, owners: np.ndarray) -> None:
        """Fills in the rows of the other processes, where this is ``needed``. All must call.

        Args:
          out: results [n, ...], with this process's rows; changed in place.
          owners: int [n], the process that sends each row; -1 for rows that nobody sends.
        """
        processes = jax.process_count()
        rows = [np.flatnonzero(owners == process) for process in range(processes)]
        own, longest = rows[jax.process_index()], max(map(len, rows))
        step = max(1, BLOCK_BYTES // (processes * max(1, out[:1].nbytes)))
        for first in range(0, longest, step):
            # All send arrays of one shape; shorter ones are filled up.
            sent = np.zeros((min(step, longest - first), *out.shape[1:]), out.dtype)
            part = own[first : first + step]
            sent[: len(part)] = out[part]
            received: Any = multihost_utils.process_allgather(sent)
            for process, theirs in enumerate(rows):
                chosen = theirs[first : first + step]
                out[chosen] = received[process][: len(chosen)]
