"""Biases and modifiers of attention scores in whole models: in every layer, with every generation, looped or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.models import HEADS
from tests.cases import Case, draw_params, execute, make_batch

CASES = [
    Case("changed-v1", "v1", "sequence-classification", {"talking_head": True}),
    Case("changed-xl", "xl", "masked-lm", {"legacy": False, "mask_decoder": True, "num_hidden_layers": 3}),
]


def outputs(case, params, change=None, **runtime):
    """Logits and attention weights; ``change``: more arguments of the call."""
    model = case.model(**runtime)
    batch = {name: jnp.asarray(a) for name, a in make_batch(case).items() if name in ("input_ids", "attention_mask")}

    def run(params, given):
        out = model.apply({"params": params}, output_attentions=True, **given)
        return out.logits, out.attentions

    logits, attentions = execute(run, params, {**batch, **(change or {})})
    return logits, attentions, np.asarray(batch["attention_mask"] != 0)


@pytest.mark.parametrize("scan", [True, False])
def test_a_causal_modifier_is_a_causal_mask(scan):
    case = CASES[1]
    params = draw_params(case.model())

    def causal(scores, *, layer, query_index, key_index):
        return jnp.where(key_index <= query_index, scores, -1e30)

    length = case.length
    tokens = make_batch(case)["attention_mask"] != 0
    pairs = tokens[:, :, None] & tokens[:, None] & np.tril(np.ones((length, length), bool))
    found = outputs(case, params, score_modifier=causal, scan=scan)
    expected = outputs(case, params, {"attention_mask": jnp.asarray(pairs)})
    real = found[2]
    np.testing.assert_allclose(found[0][real], expected[0][real], atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bias_reaches_every_layer_as_a_modifier_does(case):
    params, heads, length = draw_params(case.model()), case.config.num_attention_heads, case.length
    factors = 2.0 ** -np.arange(1, heads + 1)
    distance = np.arange(-(length - 1), length)
    by_distance = jnp.asarray(-factors[:, None] * np.abs(distance), jnp.float32)

    def alibi(scores, *, layer, query_index, key_index):
        return scores - jnp.float32(factors)[None, :, None, None] * jnp.abs(query_index - key_index)

    plain, modified = outputs(case, params), outputs(case, params, score_modifier=alibi)
    biased = outputs(case, params, {"attention_bias": by_distance})
    for layer, weights in enumerate(biased[1]):
        assert np.abs(weights - plain[1][layer]).max() > 1e-2
        np.testing.assert_allclose(weights, modified[1][layer], atol=1e-5)
    np.testing.assert_allclose(biased[0], modified[0], atol=2e-5)


@pytest.mark.parametrize("scan", [True, False])
def test_a_modifier_knows_its_layer(scan):
    case = CASES[1]
    params = draw_params(case.model())

    def only_in_layer_1(scores, *, layer, query_index, key_index):
        return jnp.where(layer == 1, jnp.where(query_index == key_index, 50.0, scores), scores)

    plain, changed = outputs(case, params), outputs(case, params, score_modifier=only_in_layer_1, scan=scan)
    real = np.flatnonzero(plain[2][0])
    diagonal = [weights[0][:, real, real] for weights in changed[1]]
    np.testing.assert_allclose(changed[1][0], plain[1][0], atol=1e-6)
    np.testing.assert_allclose(diagonal[1], 1.0, atol=1e-5)
    assert diagonal[2].max() < 0.99


def test_choices_keep_a_bias_whole():
    case = Case("changed-choices", "v3", "multiple-choice")
    params, length, heads = draw_params(case.model()), case.length, case.config.num_attention_heads
    bias = jnp.asarray(np.random.RandomState(0).standard_normal((heads, length, length)), jnp.float32)
    model = HEADS[case.head].model(case.config)
    batch = {name: jnp.asarray(a) for name, a in make_batch(case).items() if name in ("input_ids", "attention_mask")}
    score = jax.jit(lambda given, bias: model.apply({"params": params}, attention_bias=bias, **given).logits)
    whole = score(batch, bias)
    for choice in range(whole.shape[1]):
        one = {name: a[:, choice : choice + 1] for name, a in batch.items()}
        np.testing.assert_allclose(score(one, bias)[:, 0], whole[:, choice], atol=1e-5)
