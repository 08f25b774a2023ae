"""The optimizer against AdamW, schedule, clipping and decay written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax import PRESETS, DebertaForMaskedLM, DebertaForSequenceClassification
from deberta_jax.models import abstract_params
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import decay_mask, make_optimizer, schedule


def rate(step, steps, peak, warmup):
    """The rate of the step counted from 0: a line up to the peak, a line down to nothing at the end."""
    up = int(warmup) if warmup >= 1 else round(warmup * steps)
    return peak * step / up if step < up else peak * (steps - step) / (steps - up)


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 40), (7.0, 40), (0.0, 5), (1.0, 5), (0.5, 3), (0.06, 900)])
def test_the_schedule_is_two_lines(warmup, steps):
    found = schedule(Optimization(learning_rate=3e-4, warmup=warmup), steps)
    expected = [rate(i, steps, 3e-4, warmup) for i in range(steps)]
    np.testing.assert_allclose([float(found(i)) for i in range(steps)], expected, rtol=1e-5, atol=1e-12)


def test_a_warm_up_longer_than_the_run_only_rises():
    found = schedule(Optimization(learning_rate=1.0, warmup=100.0), 10)
    np.testing.assert_allclose([float(found(i)) for i in range(10)], np.arange(10) / 10, rtol=1e-6)


def adamw(params, gradients, o, steps):
    """Loshchilov and Hutter's algorithm 2 in float64, gradients clipped by their common norm first."""
    params = {name: p.astype(np.float64) for name, p in params.items()}
    m = {name: np.zeros_like(p) for name, p in params.items()}
    v = {name: np.zeros_like(p) for name, p in params.items()}
    for t, gradient in enumerate(gradients, 1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient.values()))
        scale = min(1.0, o.clip_norm / norm)
        for name, p in params.items():
            g = gradient[name] * scale
            m[name] = o.beta1 * m[name] + (1 - o.beta1) * g
            v[name] = o.beta2 * v[name] + (1 - o.beta2) * g * g
            update = (m[name] / (1 - o.beta1**t)) / (np.sqrt(v[name] / (1 - o.beta2**t)) + o.epsilon)
            if not name.endswith(("bias", "scale")):
                update = update + o.weight_decay * p
            params[name] = p - rate(t - 1, steps, o.learning_rate, o.warmup) * update
    return params


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_twenty_steps_are_those_of_the_paper(size):
    """Gradients below, about and above the norm at which they are clipped."""
    rng = np.random.default_rng(int(size * 100))
    o = Optimization(learning_rate=1e-2, warmup=4.0, weight_decay=0.1, beta2=0.98, clip_norm=1.0)
    shapes = {"dense/kernel": (4, 3), "dense/bias": (2, 3), "LayerNorm/scale": (2, 3), "words/embedding": (5, 2)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [
        {name: (size * rng.normal(size=s)).astype(np.float32) for name, s in shapes.items()} for _ in range(20)
    ]
    tree = lambda flat: {
        group: {name.split("/")[1]: jnp.asarray(a) for name, a in flat.items() if name.split("/")[0] == group}
        for group in {name.split("/")[0] for name in flat}
    }
    optimizer = make_optimizer(o, 20)
    ours = tree(params)
    state = optimizer.init(ours)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(tree(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
    for name, expected in adamw(params, gradients, o, 20).items():
        group, leaf = name.split("/")
        np.testing.assert_allclose(ours[group][leaf], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [(DebertaForSequenceClassification, "deberta-v3-base"), (DebertaForSequenceClassification, "deberta-base"),
     (DebertaForMaskedLM, "deberta-v2-xlarge")],
)  # fmt: skip
def test_biases_and_layer_norms_are_not_decayed_tables_and_kernels_are(kind, preset):
    """The rule of the originals: no decay where PyTorch's name has ``bias`` or ``LayerNorm.weight`` in it."""
    mask = jax.tree_util.tree_flatten_with_path(decay_mask(abstract_params(kind(PRESETS[preset]))))[0]
    for path, decays in mask:
        name = ".".join(key.key for key in path).replace("LayerNorm.scale", "LayerNorm.weight")
        assert decays == (not any(word in name for word in ("bias", "LayerNorm.weight"))), name
    assert any(decays for _, decays in mask)
    assert not all(decays for _, decays in mask)
