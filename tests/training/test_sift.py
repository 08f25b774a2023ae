"""SiFT against its recipe in float64 numpy, on a model small enough to differentiate by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax import DebertaForSequenceClassification, init_params
from deberta_jax.ops.losses import cross_entropy
from deberta_jax.training.sift import Sift, first_delta, normalized_words, sift_terms
from tests.cases import apply, execute
from tests.made import TINY

BATCH, LENGTH, WIDTH, INNER, CLASSES = 3, 4, 5, 6, 3
SIFT = Sift(weight=5.0, sigma=0.3, step=0.2, regression=False)


class Out:
    def __init__(self, logits):
        self.logits = logits


def forward(params, x, key):
    """tanh(x W) averaged over the text, times V."""
    return Out(jnp.tanh(x @ params["w"]).mean(1) @ params["v"])


def numpy_forward(params, x):
    return np.tanh(x @ params["w"]).mean(1) @ params["v"]


def log_softmax(a):
    a = a - a.max(-1, keepdims=True)
    return a - np.log(np.exp(a).sum(-1, keepdims=True))


def recipe(params, z, labels, delta):
    """(task loss, regulariser) of each row, and the delta that was taken: z is detached, one step uphill a token."""
    clean = numpy_forward(params, z)
    p = np.exp(log_softmax(clean))
    # The gradient of sum_rows(-p.log q - q'.log p) at z + delta, q' held fixed: only the first term has one.
    h = np.tanh((z + delta) @ params["w"])
    q = np.exp(log_softmax(h.mean(1) @ params["v"]))
    of_logits = q - p
    of_h = np.broadcast_to((of_logits @ params["v"].T)[:, None] / LENGTH, h.shape)
    g = (of_h * (1 - h**2)) @ params["w"].T
    delta = delta + SIFT.step * g / (1e-6 + np.abs(g).max(-1, keepdims=True))
    log_q, log_p = log_softmax(numpy_forward(params, z + delta)), log_softmax(clean)
    q = np.exp(log_q)
    task = -log_p[np.arange(BATCH), labels]
    return task, -(p * log_q + q * log_p).sum(-1), delta, (p, q)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(WIDTH, INNER)), "v": rng.normal(size=(INNER, CLASSES))}
    return params, rng.normal(size=(BATCH, LENGTH, WIDTH)), np.array([2, 0, 1])


def ours(case, params=None):
    true, z, labels = case
    params = jax.tree.map(jnp.float32, true) if params is None else params
    task_loss = lambda out: cross_entropy(out.logits, jnp.asarray(labels))
    return jax.jit(lambda p, z: sift_terms(forward, task_loss, p, z, jax.random.key(7), SIFT))(params, jnp.float32(z))


def test_both_losses_are_those_of_the_recipe(case):
    params, z, labels = case
    noise = np.asarray(first_delta(jax.random.split(jax.random.key(7), 4)[3], z.shape, SIFT.sigma), np.float64)
    assert np.abs(noise).max() <= 2 * SIFT.sigma * (1 + 1e-6)
    assert noise.std() == pytest.approx(SIFT.sigma, rel=0.3)
    task, regulariser, _, _ = recipe(params, z, labels, noise)
    found = ours(case)
    np.testing.assert_allclose(found["task"][0], task, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["sift"][0], regulariser, rtol=1e-6, atol=1e-6)
    assert (np.asarray(found["sift"][1]) == 1).all()


def test_gradients_reach_both_answers_and_not_the_direction(case):
    """By central differences of the recipe with its targets and its delta held fixed."""
    params, z, labels = case
    noise = np.asarray(first_delta(jax.random.split(jax.random.key(7), 4)[3], z.shape, SIFT.sigma), np.float64)
    _, _, delta, (p, q) = recipe(params, z, labels, noise)

    def fixed(w):
        at = {**params, "w": w}
        log_p, log_q = log_softmax(numpy_forward(at, z)), log_softmax(numpy_forward(at, z + delta))
        return -(p * log_q + q * log_p).sum()

    expected = np.zeros_like(params["w"])
    for index in np.ndindex(*expected.shape):
        step = np.zeros_like(expected)
        step[index] = 1e-5
        expected[index] = (fixed(params["w"] + step) - fixed(params["w"] - step)) / 2e-5
    total = lambda w: ours(case, {"w": w, "v": jnp.float32(params["v"])})["sift"][0].sum()
    np.testing.assert_allclose(jax.jit(jax.grad(total))(jnp.float32(params["w"])), expected, rtol=1e-4, atol=1e-5)


def test_the_adversarial_forward_gives_no_gradient_to_the_word_embeddings(case):
    params, z, labels = case
    of_z = lambda z, part: sift_terms(
        forward,
        lambda out: cross_entropy(out.logits, jnp.asarray(labels)),
        jax.tree.map(jnp.float32, params),
        z,
        jax.random.key(7),
        SIFT,
    )[part][0].sum()
    # The clean answer is one side of the loss, so words get a gradient through it, exactly that of its own log.
    _, _, _, (_, q) = recipe(
        params,
        z,
        labels,
        np.asarray(first_delta(jax.random.split(jax.random.key(7), 4)[3], z.shape, SIFT.sigma), np.float64),
    )
    h = np.tanh(z @ params["w"])
    p = np.exp(log_softmax(h.mean(1) @ params["v"]))
    of_h = ((p - q) @ params["v"].T)[:, None] / LENGTH
    expected = (of_h * (1 - h**2)) @ params["w"].T
    np.testing.assert_allclose(
        jax.jit(jax.grad(lambda z: of_z(z, "sift")))(jnp.float32(z)), expected, rtol=1e-4, atol=1e-6
    )


def test_a_direction_that_is_not_finite_is_not_taken(case):
    """Where the ascent overflows the random delta stays, and the loss stays finite."""
    _, z, labels = case

    def broken(params, x, key):
        # Finite values whose derivative is not.
        return Out(jnp.sqrt(jnp.abs(x - x)).sum((1, 2))[:, None] + jnp.tanh(x @ params["w"]).mean(1) @ params["v"])

    params = jax.tree.map(jnp.float32, case[0])
    task_loss = lambda out: cross_entropy(out.logits, jnp.asarray(labels))
    found = jax.jit(lambda p, z: sift_terms(broken, task_loss, p, z, jax.random.key(7), SIFT))(params, jnp.float32(z))
    assert np.isfinite(np.asarray(found["sift"][0])).all()


def test_word_embeddings_are_normalised_without_scale_and_the_model_reads_them():
    model = DebertaForSequenceClassification(TINY)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    ids = jnp.array([[1, 7, 9, 2]], jnp.int32)
    z = execute(lambda params, ids: normalized_words(params, ids, jnp.float32), params, ids)
    table = np.asarray(params["deberta"]["embeddings"]["word_embeddings"]["embedding"], np.float64)
    words = table[np.asarray(ids)]
    expected = (words - words.mean(-1, keepdims=True)) / np.sqrt(words.var(-1, keepdims=True) + 1e-7)
    np.testing.assert_allclose(z, expected, atol=1e-5)
    # A LayerNorm of a LayerNorm's output is that output: the model's own LayerNorm hides the first one.
    by_ids = apply(model, params, {"input_ids": ids}).logits
    by_words = apply(model, params, {"inputs_embeds": z}).logits
    np.testing.assert_allclose(by_words, by_ids, atol=1e-3)
