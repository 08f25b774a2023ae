"""Makes AdamW as DeBERTa is trained with: schedules, weight decay masks, frozen parameters, layer-wise rates."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deberta_jax.errors import InputError
from deberta_jax.ops.quantization import is_compressed
from deberta_jax.ops.rounding import round_at_random
from deberta_jax.training.experiment import Optimization


@dataclasses.dataclass(frozen=True)
class SeparateOptimizers:
    """Holds an optimizer for each top-level part of the tree; updates the parts that ``update`` gets gradients of."""

    parts: Mapping[str, optax.GradientTransformation]

    def init(self, params: Any) -> dict[str, Any]:
        """Returns the state of each part."""
        return {name: part.init(params[name]) for name, part in self.parts.items()}

    def update(self, gradients: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Returns the updates of the parts with gradients, and the state of all parts."""
        done = {name: self.parts[name].update(gradients[name], state[name], params[name]) for name in gradients}
        return {name: u for name, (u, _) in done.items()}, {**state, **{name: s for name, (_, s) in done.items()}}


Optimizer = optax.GradientTransformation | SeparateOptimizers


def path_of(keys: Any) -> str:
    """Returns a leaf's path as text, such as ``deberta/encoder/layers/...``."""
    return "/".join(key.key for key in keys)


def decay_mask(params: Any) -> Any:
    """Returns True for each leaf with weight decay: all but biases and LayerNorm scales; embedding tables are decayed.

    The parameter's name decides, not its rank: with stacked layers a bias is a matrix.
    """

    def decays(path, _):
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def warmup_steps(warmup: float | int, steps: int) -> int:
    """Returns the length of the warm-up in steps: ``warmup`` itself from 1 on, a fraction of ``steps`` below 1."""
    return int(warmup) if warmup >= 1 else round(warmup * steps)


def learning_rate_schedule(
    learning_rate: float,
    steps: int,
    *,
    warmup: float | int = 0.1,
    schedule: Literal["linear", "cosine", "constant", "original"] = "linear",
) -> optax.Schedule:
    """Returns the learning rate by step: from 0 up to ``learning_rate``, then as ``schedule`` says.

    Args:
      learning_rate: the highest learning rate, at the end of the warm-up.
      steps: number of steps of the run.
      warmup: length of the warm-up: a fraction of all steps if below 1, else a number of steps.
      schedule: after the warm-up the learning rate falls linearly or as a cosine to 0 at the last step, or stays
        constant. ``original`` is Microsoft's linear schedule, which jumps down at the end of the warm-up.

    Returns:
      A function of the number of steps taken, an int or an int32 scalar, to a float32 scalar.

    Raises:
      InputError: an unknown schedule.
    """
    up = min(warmup_steps(warmup, steps), steps)
    rise = optax.linear_schedule(0.0, learning_rate, max(up, 1))
    rest = max(steps - up, 1)
    if schedule == "original":
        # Microsoft's warmup_linear: after the warm-up 1 - step / steps, which does not begin at 1.
        fall = lambda count: learning_rate * (1.0 - (count + up) / steps)
    elif schedule == "cosine":
        fall = optax.cosine_decay_schedule(learning_rate, rest)
    elif schedule == "constant":
        fall = optax.constant_schedule(learning_rate)
    elif schedule == "linear":
        fall = optax.linear_schedule(learning_rate, 0.0, rest)
    else:
        raise InputError(f"schedule {schedule!r}: unknown; there are linear, cosine, constant and original")
    return optax.join_schedules([rise, fall], [up])


def frozen_paths(o: Optimization, shapes: Any) -> frozenset[str]:
    """Returns the paths of the leaves that the patterns freeze.

    Raises:
      InputError: a pattern that matches nothing, or patterns that leave nothing to train.
    """
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    frozen: set[str] = set()
    for pattern in o.freeze:
        found = fnmatch.filter(paths, pattern)
        if not found:
            raise InputError(f"--freeze {pattern}: matches no parameter; there are such as {paths[0]} and {paths[-1]}")
        frozen.update(found)
    if len(frozen) == len(paths):
        raise InputError("--freeze: leaves nothing to train")
    return frozenset(frozen)


def split_frozen(params: Any, frozen: frozenset[str], prefix: str = "") -> tuple[Any, Any]:
    """Returns the tree of trained leaves and the tree of frozen leaves; ``join_trees`` undoes it.

    Quantized leaves are never trained.
    """
    trained, rest = {}, {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            a, b = split_frozen(value, frozen, f"{path}/")
            trained |= {name: a} if a else {}
            rest |= {name: b} if b else {}
        else:
            (rest if path in frozen or is_compressed(value) else trained)[name] = value
    return trained, rest


def join_trees(a: Any, b: Any) -> Any:
    """Returns one tree with the leaves of two."""
    out = dict(a)
    for name, value in b.items():
        out[name] = join_trees(out[name], value) if isinstance(value, dict) and name in out else value
    return out


def rate_scales(shapes: Any, layer_decay: float = 1.0, freeze_layers: int = 0) -> Any:
    """Returns the factor of each leaf's update, for stacked leaves one for each layer.

    Layer-wise decay: the head has the factor 1, the last layer ``layer_decay``, the layer below it its square, and so
    on down to the embeddings. Frozen layers have 0.

    Args:
      shapes: the trained parameters, or their shapes.
      layer_decay: factor from one layer to the layer below it.
      freeze_layers: number of layers that are not trained, counted from the first.

    Returns:
      A tree of float32 numpy arrays that broadcast to the leaves.

    Raises:
      InputError: more frozen layers than there are.
    """
    counts = {
        leaf.shape[0] for keys, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0] if "/layers/" in path_of(keys)
    }
    (layers,) = counts or {0}
    if freeze_layers > layers:
        raise InputError(f"--freeze-layers {freeze_layers}: the model has {layers}")
    by_layer = layer_decay ** np.arange(layers, 0, -1, dtype=np.float64)
    by_layer[:freeze_layers] = 0.0

    def scale(keys, leaf):
        path = path_of(keys)
        if "/layers/" in path:
            return by_layer.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(np.float32)
        if "/embeddings/" in path:
            return np.float32(0.0 if freeze_layers else layer_decay ** (layers + 1))
        if "/encoder/" in path:  # the table of relative positions, which all layers read
            return np.float32(layer_decay**layers)
        return np.float32(1.0)

    return jax.tree_util.tree_map_with_path(scale, shapes)


def adamw(
    learning_rate: float | optax.Schedule,
    *,
    weight_decay: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-6,
    bias_correction: bool = True,
    clip_norm: float = 1.0,
    layer_decay: float = 1.0,
    freeze_layers: int = 0,
    moment_dtype: Literal["float32", "bfloat16"] = "float32",
) -> optax.GradientTransformation:
    """Returns AdamW (decoupled decay) for the parameters of the models: gradients are clipped by global norm first.

    Biases and the scales of LayerNorms are not decayed (``decay_mask``). A mask by rank, such as ``ndim > 1``, would
    decay those of the layers, which are stacked in arrays ``[layers, ...]``.

    Args:
      learning_rate: a number, or a schedule such as ``learning_rate_schedule`` returns.
      weight_decay: decay of all other parameters, embedding tables included.
      beta1, beta2, epsilon: of Adam.
      bias_correction: False omits it, as Microsoft's code does.
      clip_norm: global norm to which larger gradients are scaled down.
      layer_decay, freeze_layers: as for ``rate_scales``; 1 and 0 train all layers alike.
      moment_dtype: dtype of Adam's two means in the state. They are computed in float32, and rounded at random.

    Returns:
      An optimizer for the tree of ``init_params``, or for a part of it. Its ``init`` raises InputError if
      ``freeze_layers`` is more than the layers that there are.
    """
    if bias_correction:
        adam = optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon)
    else:
        adam = scale_by_plain_adam(beta1, beta2, epsilon)
    if moment_dtype == "bfloat16":
        adam = rounded_moments(adam)
    parts = [
        optax.clip_by_global_norm(clip_norm),
        adam,
        optax.add_decayed_weights(weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if layer_decay == 1.0 and not freeze_layers:
        return optax.chain(*parts)
    scales = lambda tree: rate_scales(tree, layer_decay, freeze_layers)
    # Frozen layers do not count in the norm either.
    trained = lambda tree: jax.tree.map(lambda s: (s != 0).astype(np.float32), scales(tree))
    chain = optax.chain(_times(trained), *parts, _times(scales))

    def init(params: Any) -> Any:
        if jax.tree.leaves(params):  # optax also calls it with a placeholder that has none
            scales(params)
        return chain.init(params)

    return optax.GradientTransformation(init, chain.update)


def make_optimizer(o: Optimization, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer that an experiment describes, for a run of ``steps`` steps."""
    return adamw(
        learning_rate_schedule(o.learning_rate, steps, warmup=o.warmup, schedule=o.schedule),
        weight_decay=o.weight_decay,
        beta1=o.beta1,
        beta2=o.beta2,
        epsilon=o.epsilon,
        bias_correction=o.bias_correction,
        clip_norm=o.clip_norm,
        layer_decay=o.layer_decay,
        freeze_layers=o.freeze_layers,
        moment_dtype=o.moment_dtype,
    )


def rounded_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer that computes as ``adam`` does, and keeps its two means in bfloat16.

    The second mean changes by a thousandth of itself in a step, less than half of bfloat16's precision: rounded to the
    nearest number it would never change. Rounded up or down at random it has the right expectation (Gupta et al. 2015,
    Deep Learning with Limited Numerical Precision). The random bits follow from the step, the array and the index of
    the element, so they do not depend on the mesh.

    Args:
      adam: a transformation with the state ``optax.ScaleByAdamState``.
    """
    cast = lambda tree, dtype: jax.tree.map(lambda leaf: leaf.astype(dtype), tree)

    def init(params: Any) -> optax.ScaleByAdamState:
        state: Any = adam.init(params)
        return state._replace(mu=cast(state.mu, jnp.bfloat16), nu=cast(state.nu, jnp.bfloat16))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        wide = state._replace(mu=cast(state.mu, jnp.float32), nu=cast(state.nu, jnp.float32))
        found: Any = adam.update(updates, wide, params)
        scaled, new = found
        leaves, structure = jax.tree.flatten((new.mu, new.nu))
        step = new.count.astype(jnp.uint32)
        rounded = [round_at_random(leaf, (step, np.uint32(number))) for number, leaf in enumerate(leaves)]
        mu, nu = jax.tree.unflatten(structure, rounded)
        return scaled, new._replace(mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def scale_by_plain_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Returns Adam without bias correction, ``m / (sqrt(v) + eps)``, as Microsoft's code trains DeBERTa with."""

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return scaled, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _times(factors: Callable[[Any], Any]) -> optax.GradientTransformation:
    """Returns the multiplication of the updates by ``factors(updates)``."""
    multiply = lambda u, f: u * jnp.broadcast_to(jnp.asarray(f, u.dtype), u.shape)
    return optax.stateless(lambda updates, _: jax.tree.map(multiply, updates, factors(updates)))
