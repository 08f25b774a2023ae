"""Rows of a table that is divided over devices, the way each device's share of the gradient stays its own.

Left to the compiler, a large mesh adds up the gradient of the whole table on every device.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deberta_jax.sharding import RULES


def take_rows(table: Float[Array, "V E"], ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
    """Rows of a table; an id outside it gives NaN, never a neighbour's row."""
    return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)


def take_shared_rows(table: Float[Array, "V E"], ids: Int[Array, "B T"], dtype: Any) -> Float[Array, "B T E"]:
    """``take_rows`` in ``dtype``, of a table divided over a mesh as parameters are, for ids divided as a batch is.

    Devices that share the width look up their part of it for each other's ids, then exchange; those that share the
    vocabulary add what each has found. Where no mesh is set, or one that does not divide, it is ``take_rows``.
    """
    mesh = jax.sharding.get_abstract_mesh()
    data, width, words = RULES.replica, RULES.embed, RULES.vocab
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return take_rows(table, ids).astype(dtype)
    divided = (ids.shape[0], mesh.shape[data] * mesh.shape[width]), (table.shape[1], mesh.shape[width])
    if any(size % parts for size, parts in (*divided, (table.shape[0], mesh.shape[words]))):
        return take_rows(table, ids).astype(dtype)
    size = table.shape[0]

    def here(table, ids):
        ids = lax.all_gather(ids, width, axis=0, tiled=True)
        local = ids - lax.axis_index(words) * table.shape[0]
        mine = (local >= 0) & (local < table.shape[0])
        rows = jnp.take(table, jnp.where(mine, local, 0), axis=0, mode="clip").astype(dtype)
        if mesh.shape[words] > 1:
            rows = lax.psum(jnp.where(mine[..., None], rows, 0), words)
        rows = jnp.where(((ids < 0) | (ids >= size))[..., None], jnp.asarray(math.nan, dtype), rows)
        return lax.all_to_all(rows, width, split_axis=0, concat_axis=2, tiled=True)

    table_spec, batch_spec = RULES.spec(("vocab", "embed")), RULES.spec(("batch",))
    return jax.shard_map(here, mesh=mesh, in_specs=(table_spec, batch_spec), out_specs=batch_spec, check_vma=False)(
        table, ids
    )
