"""The fused linear cross-entropy: values, gradients and samples of numpy's float64, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from deberta_jax.ops.linear_cross_entropy import linear_cross_entropy
from deberta_jax.sharding import make_mesh

BATCH, TARGETS, WIDTH, WORDS = 4, 6, 8, 1200


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, WORDS, (BATCH, TARGETS)).astype(np.int32)
    labels[0, 3:], labels[2, 0] = -100, -100
    return {
        "states": rng.normal(size=(BATCH, TARGETS, WIDTH)).astype(np.float32),
        "table": rng.normal(size=(WORDS, WIDTH)).astype(np.float32),
        "bias": rng.normal(size=WORDS).astype(np.float32),
        "labels": labels,
        "uniform": rng.random((BATCH, TARGETS)).astype(np.float32),
        "cotangent": rng.normal(size=(BATCH, TARGETS)).astype(np.float32),
    }


def by_numpy(case):
    """Values, hits, draws and the three gradients, in float64 from the definition."""
    h, w, b = (case[name].astype(np.float64) for name in ("states", "table", "bias"))
    logits = h @ w.T + b
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    counts = case["labels"] >= 0
    safe = np.where(counts, case["labels"], 0)
    value = np.where(counts, -np.log(np.take_along_axis(p, safe[..., None], -1)[..., 0]), 0)
    change = (p - np.eye(WORDS)[safe]) * (case["cotangent"] * counts)[..., None]
    gradients = change @ w, np.einsum("bpv,bpe->ve", change, h), change.sum((0, 1))
    drawn = (np.cumsum(p, -1) <= case["uniform"][..., None]).sum(-1)
    return value, (logits.argmax(-1) == safe) & counts, drawn, gradients


def ours(case, chunk_size, dtype=jnp.float32):
    def run(states, table, bias):
        labels, uniform = jnp.asarray(case["labels"]), jnp.asarray(case["uniform"])
        return linear_cross_entropy(states.astype(dtype), table, bias, labels, uniform=uniform, chunk_size=chunk_size)

    def scalar(*args):
        found = run(*args)
        return (found.value * case["cotangent"]).sum(), found

    factors = tuple(jnp.asarray(case[name]) for name in ("states", "table", "bias"))
    gradients, found = jax.jit(jax.grad(scalar, argnums=(0, 1, 2), has_aux=True))(*factors)
    return found, gradients


def agree(case, found, gradients):
    value, right, drawn, expected = by_numpy(case)
    np.testing.assert_allclose(found.value, value, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.weight, case["labels"] >= 0)
    np.testing.assert_array_equal(found.correct, right)
    np.testing.assert_array_equal(found.sampled, drawn)
    for mine, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("chunk_size", [10**9, 5 * WORDS, 1])
def test_in_chunks_of_any_size(case, chunk_size):
    agree(case, *ours(case, chunk_size))


@pytest.mark.parametrize("sizes", [(2, 1, 4), (1, 2, 2), (2, 2, 2)])
def test_split_over_a_mesh_and_no_device_has_all_words(case, sizes):
    data, fsdp, tensor = sizes
    mesh = make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
    with jax.set_mesh(mesh):
        agree(case, *ours(case, 5 * WORDS))
        text = jax.jit(lambda: ours(case, 5 * WORDS)).lower().compile().as_text()
    gathered = [line for line in text.splitlines() if "all-gather" in line and f"[{WORDS}," in line]
    assert not gathered, "the table is never put together"


def test_a_label_beyond_the_last_word_is_nan_and_draws_follow_the_distribution(case):
    beyond = {**case, "labels": np.full_like(case["labels"], WORDS)}
    assert np.isnan(ours(beyond, 10**9)[0].value).all()
    rng = np.random.default_rng(1)
    logits = np.log(np.array([0.5, 0.2, 0.2, 0.1]))
    uniform = rng.random((1, 20000)).astype(np.float32)
    found = linear_cross_entropy(
        jnp.zeros((1, 20000, 1)),
        jnp.zeros((4, 1)),
        jnp.asarray(logits, jnp.float32),
        jnp.zeros((1, 20000), jnp.int32),
        uniform=jnp.asarray(uniform),
        chunk_size=1 << 14,
    )
    assert found.sampled is not None
    counts = np.bincount(np.asarray(found.sampled).reshape(-1), minlength=4)
    assert stats.chisquare(counts, 20000 * np.exp(logits)).pvalue > 1e-3


def test_bfloat16_products_and_float32_everything_else(case):
    found, gradients = ours(case, 5 * WORDS, jnp.bfloat16)
    value, _, _, expected = by_numpy(case)
    np.testing.assert_allclose(found.value, value, rtol=0.02, atol=0.05)
    assert found.value.dtype == jnp.float32
    assert gradients[1].dtype == jnp.float32
    np.testing.assert_allclose(gradients[1], expected[1], atol=0.05 * np.abs(expected[1]).max())
