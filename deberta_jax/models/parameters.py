"""Initializes the parameter tree of a model, and describes its shapes and the names of its axes."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deberta_jax.models.base import Model
from deberta_jax.models.encoder import Encoder


def _boxed_init(model: Model, key: jax.Array) -> Any:
    with nn.intercept_methods(_skip_layers):
        return nn.Module.init_with_output(model, key, jnp.zeros(model.example_shape(), jnp.int32))[1]["params"]


def _skip_layers(method: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
    """Replaces the loop over layers by its input: the parameters are declared before it, and tracing it takes long."""
    if isinstance(context.module, Encoder) and context.method_name == Encoder.iterate.__name__:
        _, carry, _ = args
        return carry, (None, None, None)
    return method(*args, **kwargs)


def init_params(model: Model, key: jax.Array) -> dict[str, Any]:
    """Initializes the parameters of a model, with the distributions of the original code.

    Kernels and embedding tables are sampled from Normal(0, initializer_range), except that the padding token's word
    embedding is 0. Biases are 0; the scales of LayerNorms are 1.

    Args:
      model: a model of any head.
      key: ``jax.random.key(seed)``.

    Returns:
      A plain nested dict of arrays in the model's ``param_dtype``. Call this function under ``jax.jit`` with
      ``out_shardings`` to create every array on its devices.
    """
    return nn.unbox(_boxed_init(model, key))


def reinitialize_layers(model: Model, params: dict[str, Any], key: jax.Array, count: int) -> dict[str, Any]:
    """Returns ``params`` with the last ``count`` layers of the encoder reinitialized by ``init_params(model, key)``.

    The last layers of a pre-trained model are specialized for its pre-training task. With few examples initialized
    layers can be a better start (Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning, section 5).
    """
    assert 0 < count <= model.config.num_hidden_layers

    def leaf(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        if not any(getattr(step, "key", None) == "layers" for step in path):
            return old
        return jnp.concatenate([old[: old.shape[0] - count], new[old.shape[0] - count :]])

    return jax.tree_util.tree_map_with_path(leaf, params, init_params(model, key))


def abstract_params(model: Model) -> dict[str, Any]:
    """Returns the tree of ``init_params`` with a ``jax.ShapeDtypeStruct`` for every array; nothing is allocated."""
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def logical_axes(model: Model) -> dict[str, Any]:
    """Returns the same tree with a tuple of logical axis names for every array, None for an axis without a name.

    ``deberta_jax.sharding`` maps the names to axes of a mesh.
    """
    boxed = jax.eval_shape(lambda: _boxed_init(model, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    return jax.tree.map(lambda p: tuple(p.names) if is_box(p) else (None,) * p.ndim, boxed, is_leaf=is_box)
