"""AdamW with DeBERTa's rules: linear warm-up and decay, and what is not decayed."""

from typing import Any

import jax
import optax

from deberta_jax.training.experiment import Optimization


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everywhere but in biases and LayerNorm scales (tables are decayed).

    Goes by the parameter's name, not its rank: with stacked layers a bias is a matrix.
    """

    def decays(path, _):
        return path[-1].key not in ("bias", "scale")

    return jax.tree_util.tree_map_with_path(decays, params)


def warmup_steps(o: Optimization, steps: int) -> int:
    return int(o.warmup) if o.warmup >= 1 else round(o.warmup * steps)


def schedule(o: Optimization, steps: int) -> optax.Schedule:
    """Learning rate by step: from 0 up to the peak, then linearly to 0 at ``steps``."""
    up = min(warmup_steps(o, steps), steps)
    rise = optax.linear_schedule(0.0, o.learning_rate, max(up, 1))
    fall = optax.linear_schedule(o.learning_rate, 0.0, max(steps - up, 1))
    return optax.join_schedules([rise, fall], [up])


def make_optimizer(o: Optimization, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (decoupled decay, bias correction) under the schedule."""
    adamw = optax.adamw(
        schedule(o, steps), b1=o.beta1, b2=o.beta2, eps=o.epsilon, weight_decay=o.weight_decay, mask=decay_mask
    )
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), adamw)
