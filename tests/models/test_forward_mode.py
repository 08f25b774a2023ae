"""Derivatives in forward mode, which exist with ``attention="reference"``: against differences of values.

The differences are of the default implementation, whose backward passes are written by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cases import Case, draw_params, execute, make_batch, objective

CASES = [
    Case("forward-v1", "v1", "sequence-classification", {"talking_head": True}),
    Case("forward-v3", "v3", "token-classification"),
    Case("forward-mlm", "xl", "masked-lm", {"legacy": False, "mask_decoder": True}),
]


def loss_of(case, batch, **runtime):
    model = case.model(**runtime)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return lambda params: objective(case, model.apply({"params": params}, **inputs), batch)


def moved(params, direction, step):
    return jax.tree.map(lambda p, d: p + step * d, params, direction)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_derivative_and_a_hessian_product_by_forward_mode(case):
    batch = jax.tree.map(jnp.asarray, make_batch(case))
    params = draw_params(case.model())
    random = np.random.RandomState(0)
    direction = jax.tree.map(lambda p: jnp.asarray(random.standard_normal(p.shape), jnp.float32) * 0.1, params)
    loss, default = loss_of(case, batch, attention="reference"), loss_of(case, batch)
    gradient = jax.grad(default)

    def everything(params, direction, step):
        forward = jax.jvp(loss, (params,), (direction,))
        hessian_product = jax.jvp(jax.grad(loss), (params,), (direction,))[1]
        ends = [moved(params, direction, sign * step) for sign in (1, -1)]
        values = [default(end) for end in ends]
        differences = jax.tree.map(lambda a, b: (a - b) / (2 * step), *(gradient(end) for end in ends))
        return forward, hessian_product, (values[0] - values[1]) / (2 * step), differences

    (value, derivative), product, expected, differences = execute(everything, params, direction, jnp.float32(1e-2))
    np.testing.assert_allclose(value, execute(default, params), rtol=1e-5)
    assert abs(derivative - expected) <= 0.01 * abs(expected) + 1e-3
    ours, theirs = (jnp.concatenate([a.ravel() for a in jax.tree.leaves(tree)]) for tree in (product, differences))
    assert jnp.linalg.norm(theirs) > 1e-3
    assert jnp.linalg.norm(ours - theirs) <= 0.02 * jnp.linalg.norm(theirs)


def test_other_implementations_have_none():
    case = CASES[1]
    batch, params = jax.tree.map(jnp.asarray, make_batch(case)), draw_params(case.model())
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss_of(case, batch, attention="xla"), (params,), (params,))
