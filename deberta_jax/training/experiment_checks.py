"""Checks the values that all experiments have."""

from typing import Any

import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.tasks import check_options
from deberta_jax.training.process_options import LONGEST_WAIT


def check_gradient_dtype(runtime: Any, dtype: str) -> None:
    """Raises InputError where the gradients of a computation in ``dtype`` cannot be added up as the options say."""
    asked = runtime.gradient_dtype
    if asked == "float32":
        return
    if dtype != asked:
        raise InputError(f"--gradient-dtype {asked}: goes with --dtype {asked}; leave it out, or compute in {asked}")
    if runtime.attention == "reference":
        raise InputError(
            f"--gradient-dtype {asked}: --attention reference has float32 alone; give another, such as xla"
        )


def check_common(e: Any) -> None:
    """Raises InputError for the first value that cannot be used, of the fields that all experiments have."""
    check_options(e)
    if e.batch_size < 1:
        raise InputError(f"--batch-size {e.batch_size}: must be at least 1")
    if e.max_length < 8:
        raise InputError(f"--max-length {e.max_length}: must be at least 8")
    for name in ("ignore", "base_model"):
        if e.from_scratch and getattr(e, name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: no weights are read with --from-scratch; leave one of them out")
    o, r = e.optimization, e.runtime
    for name in ("learning_rate", "clip_norm", "epsilon"):
        if getattr(o, name) <= 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(o, name)}: must be above 0")
    if np.float32(o.epsilon) == 0:
        raise InputError(f"--epsilon {o.epsilon}: is 0 in float32; give 1e-30 or more")
    for name in ("warmup", "weight_decay", "freeze_layers"):
        if getattr(o, name) < 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(o, name)}: must not be below 0")
    for name in ("beta1", "beta2", "ema"):
        if not 0 <= getattr(o, name) < 1:
            raise InputError(f"--{name} {getattr(o, name)}: must lie in [0, 1)")
    if not 0 < o.layer_decay <= 1:
        raise InputError(f"--layer-decay {o.layer_decay}: must lie in (0, 1]")
    if r.log_every < 1 or r.checkpoint_every < 1:
        raise InputError("--log-every and --checkpoint-every: must be at least 1")
    if not 0 <= r.checkpoint_minutes <= LONGEST_WAIT:
        raise InputError(f"--checkpoint-minutes {r.checkpoint_minutes}: must lie in [0, {LONGEST_WAIT}]")
    if r.keep_state < 0:
        raise InputError(f"--keep-state {r.keep_state}: must not be below 0")
    if r.accumulate < 1:
        raise InputError(f"--accumulate {r.accumulate}: must be at least 1")
    check_gradient_dtype(r, e.dtype)
    if r.peak_tflops < 0:
        raise InputError(f"--peak-tflops {r.peak_tflops}: must not be below 0")
    r.check_times()
    if r.profile and not (len(r.profile) == 2 and 0 <= r.profile[0] <= r.profile[1]):
        raise InputError(f"--profile {' '.join(map(str, r.profile))}: give a first and a last step")
