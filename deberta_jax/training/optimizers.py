"""Makes AdamW as DeBERTa is trained with: schedules, weight decay masks, frozen parameters, layer-wise rates."""

import dataclasses
import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deberta_jax.errors import InputError
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


def warmup_steps(o: Optimization, steps: int) -> int:
    """Returns the length of the warm-up in steps."""
    return int(o.warmup) if o.warmup >= 1 else round(o.warmup * steps)


def learning_rate_schedule(o: Optimization, steps: int) -> optax.Schedule:
    """Returns the learning rate by step: from 0 up to the peak, then as ``o.schedule`` says."""
    up = min(warmup_steps(o, steps), steps)
    rise = optax.linear_schedule(0.0, o.learning_rate, max(up, 1))
    rest = max(steps - up, 1)
    if o.schedule == "original":
        # Microsoft's warmup_linear: after the warm-up 1 - step / steps, which does not begin at 1.
        fall = lambda count: o.learning_rate * (1.0 - (count + up) / steps)
    elif o.schedule == "cosine":
        fall = optax.cosine_decay_schedule(o.learning_rate, rest)
    elif o.schedule == "constant":
        fall = optax.constant_schedule(o.learning_rate)
    else:
        fall = optax.linear_schedule(o.learning_rate, 0.0, rest)
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
    """Returns the tree of trained leaves and the tree of frozen leaves; ``join_trees`` undoes it."""
    trained, rest = {}, {}
    for name, value in params.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            a, b = split_frozen(value, frozen, f"{path}/")
            trained |= {name: a} if a else {}
            rest |= {name: b} if b else {}
        else:
            (rest if path in frozen else trained)[name] = value
    return trained, rest


def join_trees(a: Any, b: Any) -> Any:
    """Returns one tree with the leaves of two."""
    out = dict(a)
    for name, value in b.items():
        out[name] = join_trees(out[name], value) if isinstance(value, dict) and name in out else value
    return out


def rate_scales(o: Optimization, shapes: Any) -> Any:
    """Returns the factor of each leaf's update, for stacked leaves one for each layer; None where all factors are 1.

    Layer-wise decay: the head has the factor 1, the last layer ``layer_decay``, the layer below it its square, and so
    on down to the embeddings. Frozen layers have 0.

    Raises:
      InputError: more frozen layers than there are.
    """
    if o.layer_decay == 1.0 and not o.freeze_layers:
        return None
    counts = {
        leaf.shape[0] for keys, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0] if "/layers/" in path_of(keys)
    }
    (layers,) = counts or {0}
    if o.freeze_layers > layers:
        raise InputError(f"--freeze-layers {o.freeze_layers}: the model has {layers}")
    by_layer = o.layer_decay ** np.arange(layers, 0, -1, dtype=np.float64)
    by_layer[: o.freeze_layers] = 0.0

    def scale(keys, leaf):
        path = path_of(keys)
        if "/layers/" in path:
            return by_layer.reshape(-1, *(1,) * (leaf.ndim - 1)).astype(np.float32)
        if "/embeddings/" in path:
            return np.float32(0.0 if o.freeze_layers else o.layer_decay ** (layers + 1))
        if "/encoder/" in path:  # the table of relative positions, which all layers read
            return np.float32(o.layer_decay**layers)
        return np.float32(1.0)

    return jax.tree_util.tree_map_with_path(scale, shapes)


def make_optimizer(o: Optimization, steps: int, scales: Any = None) -> optax.GradientTransformation:
    """Returns the optimizer: clipping by global norm, AdamW (decoupled decay) with the schedule, then ``scales``.

    Args:
      steps: number of steps of the run.
      scales: as ``rate_scales`` returns them.
    """
    if o.bias_correction:
        adam = optax.scale_by_adam(b1=o.beta1, b2=o.beta2, eps=o.epsilon)
    else:
        adam = scale_by_plain_adam(o.beta1, o.beta2, o.epsilon)
    parts = [
        optax.clip_by_global_norm(o.clip_norm),
        adam,
        optax.add_decayed_weights(o.weight_decay, decay_mask),
        optax.scale_by_learning_rate(learning_rate_schedule(o, steps)),
    ]
    if scales is not None:
        # Frozen layers do not count in the norm either.
        trained = jax.tree.map(lambda s: (s != 0).astype(np.float32), scales)
        parts = [_times(trained), *parts, _times(scales)]
    return optax.chain(*parts)


def scale_by_plain_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Returns Adam without bias correction, ``m / (sqrt(v) + eps)``, as Microsoft's code trains DeBERTa with."""

    def update(updates, state, params=None):
        del params
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.nu, updates)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu)
        return scaled, optax.ScaleByAdamState(optax.safe_increment(state.count), mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _times(factors: Any) -> optax.GradientTransformation:
    multiply = lambda u, f: u * jnp.broadcast_to(jnp.asarray(f, u.dtype), u.shape)
    return optax.stateless(lambda updates, _: jax.tree.map(multiply, updates, factors))
