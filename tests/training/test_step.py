"""One step: micro-batches, several losses, frozen parameters, the moving average of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax.training.state import make_state
from deberta_jax.training.step import StepOptions, make_step


def loss(params, batch, key):
    """A squared error of weighted items, and a second loss with weights of its own."""
    out = batch["x"] @ params["body"]["w"] + params["head"]["b"][None]
    second = jnp.abs(out).sum(-1)
    return {"task": (jnp.square(out - batch["y"]).sum(-1), batch["a"]), "other": (second, batch["b"])}


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.normal(size=(12, 3)), jnp.float32) for name in ("x", "y")}
    batch |= {"a": jnp.asarray(rng.random(12) < 0.6, jnp.float32), "b": jnp.asarray(rng.random(12) < 0.3, jnp.float32)}
    params = {"body": {"w": jnp.asarray(rng.normal(size=(3, 3)), jnp.float32)}, "head": {"b": jnp.zeros(3)}}
    return params, batch


def by_numpy(params, batch):
    """Loss and gradient of mean(task) + 0.5 mean(other), in float64."""
    w, b = (np.asarray(a, np.float64) for a in (params["body"]["w"], params["head"]["b"]))
    x, y, a, c = (np.asarray(batch[name], np.float64) for name in ("x", "y", "a", "b"))
    out = x @ w + b
    value = (((out - y) ** 2).sum(-1) * a).sum() / a.sum() + 0.5 * (np.abs(out).sum(-1) * c).sum() / c.sum()
    of_out = 2 * (out - y) * a[:, None] / a.sum() + 0.5 * np.sign(out) * c[:, None] / c.sum()
    return value, x.T @ of_out, of_out.sum(0)


@pytest.mark.parametrize("accumulate", [1, 2, 6])
def test_means_are_over_the_batch_however_many_parts_it_has(case, accumulate):
    params, batch = case
    options = StepOptions(loss_weights={"other": 0.5}, accumulate=accumulate)
    optimizer = optax.sgd(1.0)
    state, measured = jax.jit(make_step(loss, optimizer, options))(make_state(params, optimizer, 0), batch)
    value, of_w, of_b = by_numpy(params, batch)
    assert float(measured["loss"]) == pytest.approx(value, rel=1e-5)
    assert float(measured["loss"]) == pytest.approx(float(measured["task"] + 0.5 * measured["other"]), rel=1e-6)
    np.testing.assert_allclose(params["body"]["w"] - state.params["body"]["w"], of_w, atol=1e-5)
    np.testing.assert_allclose(params["head"]["b"] - state.params["head"]["b"], of_b, atol=1e-5)
    norm = np.sqrt((of_w**2).sum() + (of_b**2).sum())
    assert float(measured["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    assert int(state.step) == 1


def test_frozen_parameters_stay_and_the_moving_average_follows(case):
    params, batch = case
    frozen = frozenset({"body/w"})
    options = StepOptions(frozen=frozen, ema=0.9)
    optimizer = optax.sgd(0.1)
    state = make_state(params, optimizer, 0, frozen=frozen, ema=0.9)
    step = jax.jit(make_step(loss, optimizer, options))
    mean = np.zeros(3)
    for _ in range(5):
        state, measured = step(state, batch)
        mean = 0.9 * mean + 0.1 * np.asarray(state.params["head"]["b"], np.float64)
    np.testing.assert_array_equal(state.params["body"]["w"], params["body"]["w"])
    np.testing.assert_array_equal(state.ema_params["body"]["w"], params["body"]["w"])
    np.testing.assert_allclose(state.ema_params["head"]["b"], mean, rtol=1e-5)
    assert float(measured["gradient_norm"]) > 0
