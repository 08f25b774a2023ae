"""Implementations of attention from outside the package, used by name in whole models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.ops.attention import AttentionInputs, register_attention
from deberta_jax.ops.attention.implementations import IMPLEMENTATIONS
from tests.attention_cases import N, T, attend, by_hand, make_inputs, relative_index_of
from tests.cases import Case, draw_params, execute, make_batch

INDEX = relative_index_of("clamp")
CASE = Case("registered", "v3", "masked-lm", {"num_hidden_layers": 2})


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    kept = dict(IMPLEMENTATIONS)
    yield
    IMPLEMENTATIONS.clear()
    IMPLEMENTATIONS.update(kept)


def library_attention(inputs: AttentionInputs) -> jax.Array:
    """JAX's own attention, with the position scores as a bias."""
    length = inputs.query.shape[1]
    position = np.arange(length)
    rows = inputs.relative_index[position[:, None] - position + length - 1]
    assert inputs.pos_key is not None
    assert inputs.pos_query is not None
    bias = jnp.einsum("BTNH,TSNH->BNTS", inputs.query, inputs.pos_key[rows])
    bias += jnp.einsum("BSNH,TSNH->BNTS", inputs.key, inputs.pos_query[rows])
    segments = inputs.segment_ids
    mask = None
    if segments is not None:
        mask = ((segments[:, :, None] == segments[:, None]) & (segments[:, None] > 0))[:, None]
    context = jax.nn.dot_product_attention(
        inputs.query, inputs.key, inputs.value, bias=bias * inputs.scale, mask=mask, scale=inputs.scale
    )
    return context if segments is None else jnp.where(segments[:, :, None, None] > 0, context, 0.0)


def test_its_results_are_used():
    register_attention("library", library_attention)
    arrays = make_inputs()
    context, weights = attend(arrays, INDEX, implementation="library")
    assert weights is None
    np.testing.assert_allclose(context, by_hand(arrays, INDEX)[0], atol=5e-6)


def test_a_model_takes_it_by_name():
    calls = []

    def counted(inputs):
        calls.append(inputs.query.shape)
        return library_attention(inputs)

    register_attention("library", counted)
    batch = {name: jnp.asarray(a) for name, a in make_batch(CASE).items() if name in ("input_ids", "attention_mask")}
    params = draw_params(CASE.model())
    run = lambda attention: execute(
        lambda p: CASE.model(attention=attention).apply({"params": p}, **batch).logits, params
    )
    expected, found = run("reference"), run("library")
    assert calls
    real = np.asarray(batch["attention_mask"]) != 0
    np.testing.assert_allclose(found[real], expected[real], atol=2e-5)


def test_whole_scores_decide_what_it_is_asked_for():
    def with_weights(inputs):
        weights = jnp.full((2, N, T, T), 1.0 / T)
        return jnp.zeros_like(inputs.value), weights + (0.0 if inputs.attention_bias is None else 1.0)

    register_attention("plain", library_attention)
    with pytest.raises(InputError, match=r"'plain' never holds the whole scores.* 'reference' or 'xla'$"):
        attend(make_inputs(), INDEX, implementation="plain", attention_bias=jnp.zeros((N, T, T)))
    register_attention("whole", with_weights, whole_scores=True)
    _, weights = attend(make_inputs(), INDEX, implementation="whole", return_weights=True)
    np.testing.assert_allclose(weights, 1.0 / T)
    biased = {"attention_bias": jnp.zeros((N, T, T)), "return_weights": True}
    np.testing.assert_allclose(attend(make_inputs(), INDEX, implementation="whole", **biased)[1], 1 + 1.0 / T)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda inputs: inputs.value[:, :1], r"'odd' returned a context float32\[2, 1, 2, 4\]; expected float32\[2, 9"),
        (lambda inputs: inputs.value.astype(jnp.bfloat16), r"a context bfloat16"),
        (lambda inputs: None, "a context NoneType"),
    ],
)
def test_a_wrong_result_is_named(result, message):
    register_attention("odd", result)
    with pytest.raises(InputError, match=message):
        attend(make_inputs(), INDEX, implementation="odd")


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda inputs: inputs.value, r"'odd' returned .*; with whole_scores=True it returns \(context, weights\)"),
        (lambda inputs: (inputs.value,) * 3, "'odd' returned a tuple of 3"),
        (lambda inputs: (inputs.value, inputs.value), r"'odd' returned weights float32\[2, 9, 2, 4\]"),
    ],
)
def test_a_wrong_result_with_whole_scores_is_named(result, message):
    register_attention("odd", result, whole_scores=True)
    with pytest.raises(InputError, match=message):
        attend(make_inputs(), INDEX, implementation="odd")


@pytest.mark.parametrize(
    ("name", "why"),
    [("xla", "is taken"), ("auto", "is taken"), ("a b", "no identifier")],
)
def test_names_that_cannot_be_used(name, why):
    with pytest.raises(InputError, match=why):
        register_attention(name, library_attention)


def test_an_unknown_name_lists_the_registered_ones():
    register_attention("library", library_attention)
    with pytest.raises(InputError, match="'blocked', 'pallas', 'library'"):
        attend(make_inputs(), INDEX, implementation="librray")
    register_attention("library", lambda inputs: jnp.zeros_like(inputs.value))
    assert not np.asarray(attend(make_inputs(), INDEX, implementation="library")[0]).any()
