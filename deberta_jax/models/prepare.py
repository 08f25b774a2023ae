"""Projects the relative table for every layer once. For inference this is exact: it depends on the weights alone."""

from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.models.attention import head_projection, table_projections
from deberta_jax.models.base import Model
from deberta_jax.models.classes import DebertaEncoder
from deberta_jax.models.layers import LayerNorm


def prepare_for_inference(model: Model, params: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """Returns a model and parameters that compute the same function with the relative table projected beforehand.

    The result can neither be trained nor saved.

    Args:
      model: a model of any head.
      params: its parameters, on any devices; the function also works under ``jax.jit``.

    Returns:
      (model, params), to be called as before with ``deterministic=True``. ``attention/self`` of the layers has
      ``pos_key`` and ``pos_query`` [L,R,N,H] in the dtype of the computation, each if the model has that score term.
      The relative table, its LayerNorm, and the projections that only the table uses are removed. A model without
      relative attention is returned unchanged.

    Raises:
      ValueError: the parameters are prepared already.
    """
    c = model.config
    if model.prepared:
        raise ValueError("these parameters are prepared already")
    if not (c.relative_attention and c.relative_terms):
        return model, params
    run = model.runtime
    encoder = dict((params if isinstance(model, DebertaEncoder) else params["deberta"])["encoder"])
    norm = encoder.pop("LayerNorm") if c.normalizes_relative_table else None
    layers = encoder["layers"]
    self_attention = dict(layers["attention"]["self"])

    def project_table(table: jax.Array, norm: Any, projections: Any) -> dict[str, jax.Array]:
        if norm is not None:
            layer_norm = LayerNorm(c.hidden_size, c.layer_norm_eps, run, parent=None)
            table = jnp.asarray(layer_norm.apply({"params": norm}, table))
        table = table.astype(run.dtype)

        def project(name: str, use_bias: bool) -> jax.Array:
            linear = head_projection(c, run, use_bias, parent=None)
            return jax.lax.map(lambda p: linear.apply({"params": p}, table), projections[name])

        return {name: project(*projection) for name, projection in table_projections(c).items()}

    tables = jax.jit(project_table)(encoder.pop("rel_embeddings")["embedding"], norm, self_attention)
    kept = {name: p for name, p in self_attention.items() if name not in ("pos_key_proj", "pos_query_proj")}
    encoder["layers"] = layers | {"attention": layers["attention"] | {"self": kept | tables}}
    if isinstance(model, DebertaEncoder):
        return model.clone(prepared=True), params | {"encoder": encoder}
    return model.clone(prepared=True), params | {"deberta": params["deberta"] | {"encoder": encoder}}
