"""For inference: the relative table as each layer projects it depends on the weights alone, so it is computed once."""

from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.models.attention import head_projection, table_projections
from deberta_jax.models.classes import DebertaEncoder, Model
from deberta_jax.models.layers import LayerNorm


def prepare_for_inference(model: Model, params: dict[str, Any]) -> tuple[Model, dict[str, Any]]:
    """The same function of the inputs with every layer's position tables computed beforehand.

    Args:
      model: any of this package's models.
      params: its parameters, anywhere: under ``jax.jit`` or on a mesh too.

    Returns:
      (model, params) to call as before, deterministically. In each layer's ``attention/self``, ``pos_key`` and
      ``pos_query`` [layers, R, N, H] in the compute dtype, where the model has these terms; the encoder's table, its
      LayerNorm and projections of the table alone are gone. Not to be trained or saved. A model without relative
      attention comes back as it is.

    Raises:
      ValueError: parameters that are prepared already.
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
    own = dict(layers["attention"]["self"])

    def project_table(table: jax.Array, norm: Any, own: Any) -> dict[str, jax.Array]:
        if norm is not None:
            layer_norm = LayerNorm(c.hidden_size, c.layer_norm_eps, run, parent=None)
            table = jnp.asarray(layer_norm.apply({"params": norm}, table))
        table = table.astype(run.dtype)

        def project(name: str, use_bias: bool) -> jax.Array:
            linear = head_projection(c, run, use_bias, parent=None)
            return jax.lax.map(lambda p: linear.apply({"params": p}, table), own[name])

        return {name: project(*projection) for name, projection in table_projections(c).items()}

    tables = jax.jit(project_table)(encoder.pop("rel_embeddings")["embedding"], norm, own)
    own = {name: p for name, p in own.items() if name not in ("pos_key_proj", "pos_query_proj")} | tables
    encoder["layers"] = layers | {"attention": layers["attention"] | {"self": own}}
    if isinstance(model, DebertaEncoder):
        return model.clone(prepared=True), params | {"encoder": encoder}
    return model.clone(prepared=True), params | {"deberta": params["deberta"] | {"encoder": encoder}}
