"""Behaviour of the models where published implementations disagree, and inputs that they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import DebertaEncoder, DebertaForMaskedLM, abstract_params
from deberta_jax.models.attention import AttentionContext, RelativePositions, SelfAttention
from deberta_jax.models.layers import Runtime
from tests import cases
from tests.cases import BASE, Case, draw_params, execute, make_batch


def apply(case: Case, params, batch, **options):
    inputs = {name: a for name, a in batch.items() if name in ("input_ids", "attention_mask", "inputs_embeds")}
    return cases.apply(case.model(), params, inputs, **options)


@pytest.mark.slow
def test_long_position_rules_differ_only_beyond_the_trained_range():
    """Equal within the trained range, different beyond it; the clamped model never reads row 0 of its table."""
    small = {"max_relative_positions": 10, "position_buckets": 4, "num_hidden_layers": 1}
    for length, equal in ((10, True), (25, False)):
        outs = []
        for rule in ("clamp", "hf"):
            case = Case("long", "v3", options=small, length=length, padding="none", long_positions=rule)
            params = draw_params(case.model())
            outs.append(apply(case, params, make_batch(case)).last_hidden_state)
        assert (np.abs(outs[0] - outs[1]).max() <= 1e-6) == equal
    clamp = dataclasses.replace(case, long_positions="clamp")
    params["encoder"]["rel_embeddings"]["embedding"] = (
        params["encoder"]["rel_embeddings"]["embedding"].at[0].set(jnp.nan)
    )
    assert np.isfinite(apply(clamp, params, make_batch(case)).last_hidden_state).all()
    assert np.isnan(apply(case, params, make_batch(case)).last_hidden_state).any()


def test_the_token_classifier_has_microsofts_projection_only_if_asked():
    plain = Case("plain", "v3", "token-classification")
    assert "proj" not in abstract_params(plain.model())
    proj = Case("proj", "v3", "token-classification", {"classifier_proj": True})
    assert abstract_params(proj.model())["proj"]["kernel"].shape == (32, 32)


def test_regression_logits_keep_their_last_axis():
    case = Case("one-output", "v3", "sequence-classification", labels="regression")
    assert apply(case, draw_params(case.model()), make_batch(case)).logits.shape == (4, 1)


def test_the_original_masked_lm_head_projects_to_the_width_of_the_word_embeddings():
    case = Case("narrow", "v3", "masked-lm", {"embedding_size": 24, "legacy": False})
    head = abstract_params(case.model())["lm_predictions"]["lm_head"]
    assert head["dense"]["kernel"].shape == (32, 24)
    assert "decoder" not in head
    logits = apply(case, draw_params(case.model()), make_batch(case)).logits
    assert logits.shape == (4, 11, 96)


def test_a_v1_model_equals_the_v2_module_without_key_bias():
    v1, v2 = Case("generation", "v1"), Case("generation", "v2")
    params, batch = draw_params(v1.model()), make_batch(v1)
    attention = params["encoder"]["layers"]["attention"]["self"]
    assert "bias" not in attention["key_proj"]
    assert "bias" not in attention["pos_key_proj"]
    expected = apply(v1, params, batch).last_hidden_state
    zero = jnp.zeros_like(attention["query_proj"]["bias"])
    attention["key_proj"]["bias"] = zero
    # A bias on the position keys adds the same to all scores of a query: the softmax does not see it.
    attention["pos_key_proj"]["bias"] = zero + 3.0
    np.testing.assert_allclose(apply(v2, params, batch).last_hidden_state, expected, rtol=0, atol=1e-5)
    attention["key_proj"]["bias"] = attention["query_proj"]["bias"]
    assert np.abs(apply(v2, params, batch).last_hidden_state - expected).max() > 1e-3


@pytest.mark.slow
def test_without_positions_the_first_pass_of_the_mask_decoder_is_the_last_layer():
    """Its first pass with positions of zero is the plain last layer; the second makes the difference."""
    decoder = Case("decoder", "v3", "masked-lm", {"legacy": False, "mask_decoder": True})
    plain = Case("decoder", "v3", "masked-lm", {"legacy": False})
    params, batch = draw_params(decoder.model()), make_batch(decoder)
    table = params["deberta"]["embeddings"]["position_embeddings"]
    with_positions = apply(decoder, params, batch, output_hidden_states=True)
    table["embedding"] = jnp.zeros_like(table["embedding"])
    without = apply(decoder, params, batch, output_hidden_states=True)
    del params["deberta"]["embeddings"]["position_embeddings"]
    last = apply(plain, params, batch, output_hidden_states=True)
    real = batch["attention_mask"] != 0
    np.testing.assert_allclose(without.hidden_states[-2][real], last.hidden_states[-2][real], atol=1e-5)
    assert np.abs(without.logits - last.logits)[real].max() > 0.1
    assert np.abs(without.logits - with_positions.logits)[real].max() > 0.1


def test_every_layer_drops_out_its_own_elements_of_the_relative_table():
    config = dataclasses.replace(
        DebertaConfig.from_hf(BASE["v3"]), hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0
    )
    module, random = SelfAttention(config, Runtime()), np.random.RandomState(0)
    x, table = (jnp.float32(random.standard_normal(shape)) for shape in ((1, 5, 32), (9, 32)))
    rows = np.arange(9, dtype=np.int32)
    context = AttentionContext(RelativePositions(table, rows, rows))
    drops = context._replace(deterministic=False)
    params = module.init(jax.random.key(0), x, x, context)["params"]
    params = jax.tree.map(lambda p: jnp.float32(0.3 * random.standard_normal(p.shape)), params)
    draws = [
        module.apply({"params": params}, x, x, drops, rngs={"dropout": jax.random.key(seed)})[0] for seed in (1, 2, 1)
    ]
    assert np.abs(draws[0] - draws[1]).max() > 1e-3  # the table is all that this module drops
    np.testing.assert_array_equal(draws[0], draws[2])
    # Without a relative table there is nothing to drop.
    no_table = drops._replace(relative=RelativePositions(None, rows, rows))
    alone = [module.apply({"params": params}, x, x, no_table, rngs={"dropout": jax.random.key(s)})[0] for s in (1, 2)]
    np.testing.assert_array_equal(*alone)


def test_position_buckets_and_maximum_distance_are_not_interchangeable():
    """transformers passes them in the wrong order in a branch that nothing reaches; here each has its place."""
    config = DebertaConfig.from_hf({**BASE["v3"], "position_buckets": 8, "max_relative_positions": 20})
    assert (config.relative_span, config.max_distance) == (8, 20)
    assert abstract_params(DebertaEncoder(config))["encoder"]["rel_embeddings"]["embedding"].shape == (16, 32)
    unbucketed = DebertaConfig.from_hf({**BASE["v2"], "max_relative_positions": 20})
    assert abstract_params(DebertaEncoder(unbucketed))["encoder"]["rel_embeddings"]["embedding"].shape == (40, 32)


def test_returned_attentions_are_before_dropout():
    case = Case("before-dropout", "v3", padding="none")
    options = {"output_attentions": True, "deterministic": False, "rngs": {"dropout": jax.random.key(0)}}
    out = apply(case, draw_params(case.model()), make_batch(case), **options)
    for weights in out.attentions:
        assert (weights > 0).all()
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)


def test_the_mask_decoder_counts_positions_from_the_start_of_each_packed_text():
    """Packed texts each count from their own start; alone, from the row's start, as transformers does."""
    case = Case("absolute", "v3", "masked-lm", {"legacy": False, "mask_decoder": True})
    params = draw_params(case.model())
    ids = make_batch(case)["input_ids"][:1, :4]
    expected = apply(case, params, {"input_ids": ids}).logits
    shifted = np.pad(ids, ((0, 0), (3, 0)))
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1]])
    packed = apply(case, params, {"input_ids": shifted}, segment_ids=segments).logits
    np.testing.assert_allclose(packed[:, 3:], expected, rtol=0, atol=1e-5)
    left = apply(case, params, {"input_ids": shifted, "attention_mask": np.int32(segments)}).logits
    assert np.abs(left[:, 3:] - expected).max() > 0.01


def test_a_mask_decoder_over_one_layer_reads_the_embeddings():
    case = Case("one-layer", "v3", "masked-lm", {"legacy": False, "mask_decoder": True, "num_hidden_layers": 1})
    params, batch = draw_params(case.model()), make_batch(case)
    out = apply(case, params, batch, output_hidden_states=True)
    assert len(out.hidden_states) == 2
    assert np.isfinite(out.logits).all()
    table = params["deberta"]["embeddings"]["position_embeddings"]["embedding"]
    params["deberta"]["embeddings"]["position_embeddings"]["embedding"] = table + 1.0
    assert np.abs(apply(case, params, batch).logits - out.logits).max() > 0.01


def test_a_text_longer_than_the_absolute_table_is_refused():
    case = Case("too-long", "v1", options={"position_biased_input": True}, length=65, padding="none")
    with pytest.raises(InputError, match=r"65 tokens, but .* 64 .max_position_embeddings"):
        apply(case, draw_params(case.model()), make_batch(case))


def test_exactly_one_of_ids_and_embeddings():
    case = Case("both", "v1", padding="none")
    params, ids = draw_params(case.model()), make_batch(case)["input_ids"]
    for inputs in ({}, {"input_ids": ids, "inputs_embeds": np.zeros((2, 11, 32), np.float32)}):
        with pytest.raises(ValueError, match="exactly one"):
            apply(case, params, inputs)


def test_scoring_given_positions_alone_is_scoring_all():
    case = Case("positions", "xl", "masked-lm", {"legacy": False, "mask_decoder": True})
    params, batch = draw_params(case.model()), make_batch(case)
    whole = apply(case, params, batch).logits
    positions = jnp.array([[10, 0, 3], [5, 1, -1], [0, -1, -1], [-1, -1, -1]])
    some = apply(case, params, batch, positions=positions).logits
    assert some.shape == (4, 3, case.config.vocab_size)
    for (row, column), position in np.ndenumerate(positions):
        if position >= 0:
            np.testing.assert_allclose(some[row, column], whole[row, position], rtol=0, atol=1e-5)
    assert np.isfinite(some).all()


def test_the_relative_terms_vanish_with_a_table_of_zeros():
    """Then a model is content attention at the scale of three terms."""
    case = Case("zero-table", "v2")
    params, batch = draw_params(case.model()), make_batch(case)
    attention = params["encoder"]["layers"]["attention"]["self"]
    for name in ("pos_key_proj", "pos_query_proj"):
        attention[name] = jax.tree.map(jnp.zeros_like, attention[name])
    off = Case("zero-table", "v2", options={"relative_attention": False})
    expected = apply(case, params, batch).last_hidden_state
    for name in ("pos_key_proj", "pos_query_proj"):
        del attention[name]
    del params["encoder"]["rel_embeddings"]
    np.testing.assert_allclose(apply(off, params, batch).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_padding_tokens_row_learns_only_as_an_output():
    """As torch's padding_idx: no gradient through the input; the tied decoder still has its own."""
    case = Case("padding-row", "v3", padding="none")
    params, ids = draw_params(case.model()), jnp.array([[0, 5, 0, 7]])

    def loss(params, model):
        return jnp.sum(jnp.sin(jax.tree.leaves(model.apply({"params": params}, ids))[0]))

    row = execute(jax.grad(lambda p: loss(p, case.model())), params)["embeddings"]["word_embeddings"]["embedding"]
    assert (row[0] == 0).all()
    assert np.abs(row[5]).max() > 0
    model = DebertaForMaskedLM(case.config)
    grads = execute(jax.grad(lambda p: loss(p, model)), draw_params(model))
    assert np.abs(grads["deberta"]["embeddings"]["word_embeddings"]["embedding"][0]).max() > 0
