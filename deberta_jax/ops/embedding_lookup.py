"""Looks up rows of an embedding table, also of one that is sharded over devices.

In the sharded lookup each device keeps its own part of the gradient. Left to the compiler, a large mesh would sum the
gradient of the whole table on every device.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from deberta_jax.ops.quantization import QuantizedArray
from deberta_jax.sharding import RULES


def take_rows(table: Float[Array, "V E"] | QuantizedArray, ids: Int[Array, "B T"]) -> Float[Array, "B T E"]:
    """Returns the rows ``ids`` of a table; an id outside the table gives NaN, never another row.

    Of a quantized table only these rows are dequantized.
    """
    if isinstance(table, QuantizedArray):
        rows = dataclasses.replace(
            table,
            codes=jnp.take(table.codes, ids, axis=0, mode="clip"),
            scales=jnp.take(table.scales, ids, axis=0, mode="fill", fill_value=jnp.nan),
            unstacked_shape=(ids.shape[-1], *table.unstacked_shape[1:]),
        )
        return rows.dequantize()
    return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan)


def take_sharded_rows(
    table: Float[Array, "V E"] | QuantizedArray,
    ids: Int[Array, "B T"],
    dtype: Any,
    *,
    gradient_dtype: Any = jnp.float32,
) -> Float[Array, "B T E"]:
    """Returns ``take_rows`` in ``dtype``, from a table that is sharded over a mesh as parameters are.

    Devices that share the embedding axis look up their part of it for each other's ids, then exchange the parts. Those
    that share the vocabulary add their results. Where no mesh is set, or where its axes do not divide the sizes, this
    is ``take_rows``.

    Args:
      table: sharded over vocabulary and embedding axis; or quantized, with a copy on every device.
      ids: sharded over the batch.
      dtype: of the result.
      gradient_dtype: dtype in which devices that share the batch add up the table's gradient. Each computes its own
        part in the table's dtype.
    """
    mesh = jax.sharding.get_abstract_mesh()
    data, embed, vocab = RULES.replica, RULES.embed, RULES.vocab
    if isinstance(table, QuantizedArray) or mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return take_rows(table, ids).astype(dtype)
    divided = (ids.shape[0], mesh.shape[data] * mesh.shape[embed]), (table.shape[1], mesh.shape[embed])
    if any(size % parts for size, parts in (*divided, (table.shape[0], mesh.shape[vocab]))):
        return take_rows(table, ids).astype(dtype)
    size, own_dtype = table.shape[0], table.dtype
    if jnp.dtype(gradient_dtype) != jnp.float32:
        # ``shard_map`` adds up a gradient in the dtype of its argument. The rows are rounded to ``dtype`` in any case.
        table = table.astype(gradient_dtype)

    def on_device(table, ids):
        table = table.astype(own_dtype)  # so that a device adds up its own rows in this dtype
        ids = lax.all_gather(ids, embed, axis=0, tiled=True)
        local = ids - lax.axis_index(vocab) * table.shape[0]
        is_local = (local >= 0) & (local < table.shape[0])
        rows = jnp.take(table, jnp.where(is_local, local, 0), axis=0, mode="clip").astype(dtype)
        if mesh.shape[vocab] > 1:
            rows = lax.psum(jnp.where(is_local[..., None], rows, 0), vocab)
        rows = jnp.where(((ids < 0) | (ids >= size))[..., None], jnp.asarray(math.nan, dtype), rows)
        return lax.all_to_all(rows, embed, split_axis=0, concat_axis=2, tiled=True)

    table_spec, batch_spec = RULES.spec(("vocab", "embed")), RULES.spec(("batch",))
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(table_spec, batch_spec), out_specs=batch_spec, check_vma=False
    )(table, ids)
