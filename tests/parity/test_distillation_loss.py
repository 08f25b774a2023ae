"""The losses of distillation against PyTorch's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.training.distillation import soft_binary_divergence, soft_divergence

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_soft_losses_and_their_gradients_are_those_of_torch(temperature):
    rng = np.random.default_rng(0)
    student, teacher = (3 * rng.normal(size=(6, 5)).astype(np.float32) for _ in range(2))
    s, t = torch.tensor(student, requires_grad=True), torch.tensor(teacher)
    kl = torch.nn.functional.kl_div
    loss = temperature**2 * kl((s / temperature).log_softmax(-1), (t / temperature).softmax(-1), reduction="sum")
    loss.backward()
    ours = lambda a: soft_divergence(a, jnp.asarray(teacher), temperature).sum()
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(student))
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, s.grad, rtol=1e-4, atol=1e-6)

    s.grad = None
    p = (t / temperature).sigmoid()
    cross = torch.nn.functional.binary_cross_entropy_with_logits
    loss = temperature**2 * (cross(s / temperature, p) - cross(t / temperature, p))
    loss.backward()
    ours = lambda a: soft_binary_divergence(a, jnp.asarray(teacher), temperature).mean()
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(student))
    assert float(value) == pytest.approx(loss.item(), rel=1e-4)
    np.testing.assert_allclose(gradient, s.grad, rtol=1e-4, atol=1e-6)
