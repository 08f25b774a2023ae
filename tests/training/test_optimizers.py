"""The optimizer against AdamW, schedule, clipping and decay written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax import PRESETS, DebertaForMaskedLM, DebertaForSequenceClassification
from deberta_jax.errors import InputError
from deberta_jax.models import abstract_params
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import (
    adamw,
    decay_mask,
    frozen_paths,
    join_trees,
    learning_rate_schedule,
    make_optimizer,
    rate_scales,
    split_frozen,
)
from tests.made import TINY


def rate(step, steps, peak, warmup):
    """The rate of the step counted from 0: a line up to the peak, a line down to nothing at the end."""
    up = int(warmup) if warmup >= 1 else round(warmup * steps)
    return peak * step / up if step < up else peak * (steps - step) / (steps - up)


def rates(found, steps):
    """A schedule's value at each step, in one program."""
    return jax.jit(jax.vmap(found))(jnp.arange(steps))


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 40), (7.0, 40), (0.0, 5), (1.0, 5), (0.5, 3), (0.06, 900)])
def test_the_linear_schedule_rises_and_falls_in_straight_lines(warmup, steps):
    found = learning_rate_schedule(3e-4, steps, warmup=warmup)
    expected = [rate(i, steps, 3e-4, warmup) for i in range(steps)]
    np.testing.assert_allclose(rates(found, steps), expected, rtol=1e-5, atol=1e-12)


def test_a_warm_up_longer_than_the_run_only_rises():
    found = learning_rate_schedule(1.0, 10, warmup=100.0)
    np.testing.assert_allclose(rates(found, 10), np.arange(10) / 10, rtol=1e-6)


def adamw_of_the_paper(params, gradients, o, steps):
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
def test_twenty_steps_equal_adamw_of_the_paper(size):
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
    for name, expected in adamw_of_the_paper(params, gradients, o, 20).items():
        group, leaf = name.split("/")
        np.testing.assert_allclose(ours[group][leaf], expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "preset"),
    [
        (DebertaForSequenceClassification, "deberta-v3-base"),
        (DebertaForSequenceClassification, "deberta-base"),
        (DebertaForMaskedLM, "deberta-v2-xlarge"),
    ],
)
def test_biases_and_layer_norms_are_not_decayed_tables_and_kernels_are(kind, preset):
    """The rule of the originals: no decay where PyTorch's name has ``bias`` or ``LayerNorm.weight`` in it."""
    mask = jax.tree_util.tree_flatten_with_path(decay_mask(abstract_params(kind(PRESETS[preset]))))[0]
    for path, decays in mask:
        name = ".".join(key.key for key in path).replace("LayerNorm.scale", "LayerNorm.weight")
        assert decays == (not any(word in name for word in ("bias", "LayerNorm.weight"))), name
    assert any(decays for _, decays in mask)
    assert not all(decays for _, decays in mask)


def test_microsofts_adam_has_no_bias_correction_and_its_schedule_a_step():
    """m / (sqrt(v) + eps) from zero moments; after the warm-up 1 - step / steps, below where the warm-up ended."""
    rng = np.random.default_rng(3)
    o = Optimization(learning_rate=1e-2, warmup=4, weight_decay=0.1, bias_correction=False, schedule="original")
    params = {"dense": {"kernel": rng.normal(size=(3, 2)).astype(np.float32)}}
    gradients = [0.01 * rng.normal(size=(3, 2)).astype(np.float32) for _ in range(10)]
    optimizer = make_optimizer(o, 10)
    state, ours = optimizer.init(params), jax.tree.map(jnp.asarray, params)
    update = jax.jit(optimizer.update)
    p, m, v = params["dense"]["kernel"].astype(np.float64), 0.0, 0.0
    for step, g in enumerate(gradients):
        updates, state = update({"dense": {"kernel": jnp.asarray(g)}}, state, ours)
        ours = optax.apply_updates(ours, updates)
        m, v = 0.9 * m + 0.1 * g.astype(np.float64), 0.999 * v + 0.001 * g.astype(np.float64) ** 2
        rate = 1e-2 * (step / 4 if step < 4 else 1 - step / 10)
        p = p - rate * (m / (np.sqrt(v) + o.epsilon) + 0.1 * p)
        np.testing.assert_allclose(ours["dense"]["kernel"], p, rtol=1e-5)
    schedule = learning_rate_schedule(1e-2, 10, warmup=4, schedule="original")
    assert float(schedule(4)) == pytest.approx(0.6e-2)
    assert float(schedule(3)) == pytest.approx(0.75e-2)


@pytest.mark.parametrize(("kind", "at"), [("cosine", 0.5 * (1 + np.cos(np.pi / 3))), ("constant", 1.0)])
def test_other_schedules(kind, at):
    schedule = learning_rate_schedule(2.0, 12, warmup=3, schedule=kind)
    assert float(schedule(6)) == pytest.approx(2.0 * at)
    assert float(schedule(1)) == pytest.approx(2 / 3)


def test_lower_layers_are_slower_and_the_lowest_may_stay():
    """By name and layer: the head's rate is whole, the last layer's times the decay, and so on down."""
    shapes = abstract_params(DebertaForSequenceClassification(TINY))
    scales = rate_scales(shapes, layer_decay=0.5)
    layers = scales["deberta"]["encoder"]["layers"]
    assert all(scale.ravel().tolist() == [0.25, 0.5] for scale in jax.tree.leaves(layers))
    assert {float(s) for s in jax.tree.leaves(scales["deberta"]["embeddings"])} == {0.125}
    assert float(scales["deberta"]["encoder"]["rel_embeddings"]["embedding"]) == 0.25
    assert {float(s) for s in jax.tree.leaves((scales["pooler"], scales["classifier"]))} == {1.0}
    assert {float(s) for s in jax.tree.leaves(jax.tree.map(np.mean, rate_scales(shapes)))} == {1.0}

    optimizer = adamw(learning_rate_schedule(1.0, 10, warmup=0), weight_decay=0.5, freeze_layers=1)
    with pytest.raises(InputError, match="--freeze-layers 3: the model has 2"):
        adamw(1.0, freeze_layers=3).init(shapes)
    params = jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes)

    def huge(keys, s):
        gradient = np.ones(s.shape, np.float32)
        gradient[0] *= 1e6 if "layers" in str(keys) else 1.0
        return gradient

    gradients = jax.tree_util.tree_map_with_path(huge, shapes)
    updates = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(gradients, params)
    for update in jax.tree.leaves(updates["deberta"]["encoder"]["layers"]):
        assert (np.asarray(update[0]) == 0).all(), "not even decayed"
        assert (np.asarray(update[1]) != 0).all()
    assert (np.asarray(updates["deberta"]["embeddings"]["word_embeddings"]["embedding"]) == 0).all()


def test_patterns_freeze_and_what_is_frozen_has_no_moments():
    shapes = abstract_params(DebertaForSequenceClassification(TINY))
    frozen = frozen_paths(Optimization(freeze=("deberta/embeddings/*", "*/rel_embeddings/*")), shapes)
    trained, rest = split_frozen(shapes, frozen)
    assert "embeddings" not in trained["deberta"]
    assert set(rest["deberta"]) == {"embeddings", "encoder"}
    assert set(rest["deberta"]["encoder"]) == {"rel_embeddings"}
    assert jax.tree.structure(join_trees(trained, rest)) == jax.tree.structure(shapes)
    state = jax.eval_shape(make_optimizer(Optimization(), 10).init, trained)
    sizes = [leaf.size for leaf in jax.tree.leaves(state)]
    assert sum(sizes) < 2.1 * sum(leaf.size for leaf in jax.tree.leaves(trained)) + 10
    with pytest.raises(InputError, match="leaves nothing to train"):
        frozen_paths(Optimization(freeze=("*",)), shapes)


@pytest.mark.parametrize("bias_correction", [True, False])
def test_moments_in_bfloat16_follow_those_in_float32(bias_correction):
    """After 1000 steps, in which the second mean changes by less than bfloat16 can tell in each."""
    gradients = jax.random.normal(jax.random.key(0), (1000, 64)) * 0.1
    params = {"dense": {"kernel": jnp.ones((8, 8))}}
    states = {}
    for dtype in ("float32", "bfloat16"):
        optimizer = adamw(1e-3, beta2=0.999, bias_correction=bias_correction, moment_dtype=dtype)

        def step(carry, gradient, optimizer=optimizer):
            params, state = carry
            updates, state = optimizer.update({"dense": {"kernel": gradient.reshape(8, 8)}}, state, params)
            return (optax.apply_updates(params, updates), state), None

        (found, state), _ = jax.jit(lambda p, s=step, o=optimizer: jax.lax.scan(s, (p, o.init(p)), gradients))(params)
        states[dtype] = found["dense"]["kernel"], optax.tree.get(state, "nu")["dense"]["kernel"]
    (exact, nu), (near, rounded) = states["float32"], states["bfloat16"]
    assert rounded.dtype == jnp.bfloat16
    assert near.dtype == jnp.float32
    np.testing.assert_allclose(rounded.astype(jnp.float32).mean(), nu.mean(), rtol=0.02)
    moved = np.abs(exact - 1).mean()
    assert np.abs(near - exact).mean() < 0.1 * moved, (np.abs(near - exact).mean(), moved)
