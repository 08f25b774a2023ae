"""A model's parameter tree: made, described without being made, and the names of its axes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deberta_jax.models.classes import Model
from deberta_jax.models.encoder import Encoder


def _boxed_init(model: Model, key: jax.Array) -> Any:
    with nn.intercept_methods(_skip_layers):
        return model.init(key, jnp.zeros(model.example_shape(), jnp.int32))["params"]


def _skip_layers(method: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    """Gives the layers' input for their output: their parameters are declared before, and tracing them takes long."""
    if isinstance(context.module, Encoder) and context.method_name == Encoder.iterate.__name__:
        _, carry, _ = args
        return carry, (None, None)
    return method(*args, **kwargs)


def init_params(model: Model, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters as the originals draw them: Normal(0, initializer_range) for every kernel and table, the row of
    the padding token zero, biases zero, LayerNorms 1 and 0.

    Args:
      model: any of this package's model classes.
      key: ``jax.random.key(seed)``.

    Returns:
      A plain nested dict of arrays in the model's ``param_dtype``. Call it under ``jax.jit`` with ``out_shardings`` to
      build every array where it is to live.
    """
    return nn.unbox(_boxed_init(model, key))


def reinitialize_layers(model: Model, params: dict[str, Any], key: jax.Array, count: int) -> dict[str, Any]:
    """``params`` with the last ``count`` layers of the encoder as ``init_params(model, key)`` draws them.

    With few examples the last layers of a pre-trained model, which serve the task it was trained on, can be worse to
    start from than fresh ones (Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning, section 5).
    """
    assert 0 < count <= model.config.num_hidden_layers

    def leaf(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        if not any(getattr(step, "key", None) == "layers" for step in path):
            return old
        return jnp.concatenate([old[: old.shape[0] - count], new[old.shape[0] - count :]])

    return jax.tree_util.tree_map_with_path(leaf, params, init_params(model, key))


def abstract_params(model: Model) -> dict[str, Any]:
    """The tree of ``init_params`` as ``jax.ShapeDtypeStruct``: costs no memory whatever the size."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def logical_axes(model: Model) -> dict[str, Any]:
    """The same tree with a tuple of axis names (or None) for every array; see ``deberta_jax.sharding``."""
    boxed = jax.eval_shape(lambda: _boxed_init(model, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    return jax.tree.map(lambda p: tuple(p.names) if is_box(p) else (None,) * p.ndim, boxed, is_leaf=is_box)
