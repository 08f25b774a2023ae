"""Biases and modifiers of attention scores, against the formula in numpy's float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.ops.attention import WHOLE_SCORES
from tests.attention_cases import N, T, attend, by_hand, make_inputs, relative_index_of

RANDOM = np.random.RandomState(5)
PAIRS = RANDOM.random_sample((2, T, T)) < 0.7
INDEX = relative_index_of("clamp")


def biases():
    """Each shape that a bias may have, with the whole bias that it stands for."""
    by_distance = np.float32(RANDOM.standard_normal((N, 2 * T - 1)))
    position = np.arange(T)
    heads, whole = (np.float32(RANDOM.standard_normal(shape)) for shape in ((N, T, T), (2, N, T, T)))
    return {
        "distances": (by_distance, by_distance[:, T - 1 + position[:, None] - position]),
        "heads": (heads, heads),
        "texts": (whole, whole),
    }


BIASES = biases()


@pytest.mark.parametrize("implementation", WHOLE_SCORES)
@pytest.mark.parametrize("kind", BIASES)
def test_a_bias_is_added_to_the_scaled_scores(implementation, kind):
    bias, whole = BIASES[kind]
    arrays = make_inputs()
    given = {"implementation": implementation, "mask": PAIRS}
    context, weights = attend(arrays, INDEX, attention_bias=jnp.asarray(bias), **given)
    expected = by_hand(arrays, INDEX, PAIRS, whole)
    np.testing.assert_allclose(context, expected[0], atol=5e-6)
    np.testing.assert_allclose(weights, expected[1], atol=5e-6)
    assert np.abs(expected[1] - by_hand(arrays, INDEX, PAIRS)[1]).max() > 0.1


@pytest.mark.parametrize("implementation", WHOLE_SCORES)
@pytest.mark.parametrize("kind", BIASES)
def test_gradients_with_a_bias_are_those_of_the_formula(implementation, kind):
    bias, _ = BIASES[kind]
    arrays = make_inputs()
    cotangent = RANDOM.standard_normal(arrays["query"].shape)

    def expand(bias):
        position = np.arange(T)
        return bias[:, T - 1 + position[:, None] - position] if kind == "distances" else bias

    def loss(arrays, bias):
        context, _ = attend(arrays, INDEX, implementation=implementation, mask=PAIRS, attention_bias=bias)
        return jnp.sum(context * jnp.float32(cotangent))

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(jax.tree.map(jnp.asarray, arrays), jnp.asarray(bias))
    for name in (*arrays, "bias"):
        direction = RANDOM.standard_normal((bias if name == "bias" else arrays[name]).shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = {n: np.float64(a) + (step * direction if n == name else 0) for n, a in arrays.items()}
            moved_bias = np.float64(bias) + (step * direction if name == "bias" else 0)
            values.append((by_hand(moved, INDEX, PAIRS, expand(moved_bias))[0] * cotangent).sum())
        expected = (values[0] - values[1]) / 2e-5
        found = (np.float64(gradients[1] if name == "bias" else gradients[0][name]) * direction).sum()
        assert abs(found - expected) <= 1e-4 * max(1.0, abs(expected)), name


def test_a_bias_by_distance_has_derivatives_in_forward_mode():
    arrays, (bias, _) = make_inputs(), BIASES["distances"]
    context = lambda b: attend(arrays, INDEX, implementation="reference", mask=PAIRS, attention_bias=b)[0]
    direction = RANDOM.standard_normal(bias.shape).astype(np.float32)
    _, found = jax.jvp(context, (jnp.asarray(bias),), (jnp.asarray(direction),))
    expand = lambda b: np.float64(b)[:, np.arange(T)[:, None] - np.arange(T)[None] + T - 1]
    values = [by_hand(arrays, INDEX, PAIRS, expand(np.float64(bias) + step * direction))[0] for step in (1e-4, -1e-4)]
    np.testing.assert_allclose(found, (values[0] - values[1]) / 2e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", WHOLE_SCORES)
def test_a_modifier_sees_scaled_scores_and_positions(implementation):
    _, whole = BIASES["heads"]
    arrays = make_inputs()

    def modifier(scores, *, query_index, key_index):
        assert query_index.shape == (1, 1, T, 1)
        assert key_index.shape == (1, 1, 1, T)
        return jnp.where(key_index <= query_index, 2.0 * scores + whole[None], -1e30)

    context, weights = attend(arrays, INDEX, implementation=implementation, score_modifier=modifier)
    doubled = {name: 2 * a if name in ("query", "pos_query") else a for name, a in arrays.items()}
    causal = np.broadcast_to(np.tril(np.ones((T, T), bool)), (2, T, T))
    expected = by_hand(doubled, INDEX, causal, whole)
    np.testing.assert_allclose(context, expected[0], atol=1e-5)
    np.testing.assert_allclose(weights, expected[1], atol=1e-5)


@pytest.mark.parametrize(
    ("modifier", "said"),
    [
        (lambda scores, **_: scores[:, :1], r"float32\[2, 1, 9, 9\]; expected float32\[2, 2, 9, 9\]"),
        (lambda scores, **_: scores.astype(jnp.bfloat16), "bfloat16"),
        (lambda scores, **_: None, "NoneType; expected float32"),
    ],
)
def test_what_a_modifier_returns_has_the_shape_and_dtype_of_scores(modifier, said):
    with pytest.raises(InputError, match=f"^score_modifier returned {said}"):
        attend(make_inputs(), INDEX, implementation="xla", score_modifier=modifier)


@pytest.mark.parametrize("shape", [(N, T), (T, T), (1, N, T, T), (3, N, T, T), (N, 2 * T), (N, T, T, 1)])
def test_a_bias_of_another_shape(shape):
    with pytest.raises(InputError, match="attention_bias has shape"):
        attend(make_inputs(), INDEX, implementation="xla", attention_bias=jnp.zeros(shape))


@pytest.mark.parametrize("implementation", ["blocked", "pallas"])
@pytest.mark.parametrize("change", ["attention_bias", "score_modifier"])
def test_implementations_without_whole_scores_refuse(implementation, change):
    given = {"attention_bias": jnp.zeros((N, T, T)), "score_modifier": lambda scores, **_: scores}[change]
    with pytest.raises(InputError, match=rf"'{implementation}' never holds the whole scores, which .*{change}"):
        attend(make_inputs(), INDEX, implementation=implementation, **{change: given})
    context, _ = attend(make_inputs(), INDEX, implementation="auto", **{change: given})
    np.testing.assert_allclose(context, by_hand(make_inputs(), INDEX)[0], atol=5e-6)
