"""Real tokens do not depend on padding: its amount, its side, its ids, the other rows, or the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.models import logical_axes
from deberta_jax.sharding import batch_sharding, make_mesh, tree_shardings
from tests.cases import Case, draw_params, execute, make_batch

XL, SEQUENCE, REPLACED = (
    Case(f"padding-{head}", "xl", head) for head in ("encoder", "sequence-classification", "replaced-token-detection")
)
TOLERANCE = {"rtol": 0, "atol": 1e-5}


def forward(case: Case, params, inputs) -> dict[str, np.ndarray]:
    def run(params, inputs):
        out = case.model().apply({"params": params}, output_hidden_states=True, output_attentions=True, **inputs)
        values = {"states": jnp.stack(out.hidden_states, axis=2), "attentions": jnp.stack(out.attentions, axis=3)}
        return values | ({"logits": out.logits} if hasattr(out, "logits") else {})

    return execute(run, params, inputs)


def inputs_of(case: Case) -> dict[str, np.ndarray]:
    return {name: a for name, a in make_batch(case).items() if name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("case", [SEQUENCE, REPLACED], ids=lambda case: case.head)
def test_states_do_not_depend_on_amount_or_side_of_padding(case: Case):
    """Left padding is right padding is none, for pooled heads too: they read a text's first real token."""
    params, right = draw_params(case.model()), inputs_of(case)
    mask = right["attention_mask"] != 0
    expected = forward(case, params, right)
    rows = np.array([0, 1, 2])  # the fourth has no token at all
    for before, after in ((0, 5), (4, 2)):
        wide = {name: np.pad(a, ((0, 0), (before, after))) for name, a in right.items()}
        found = forward(case, params, wide)
        inner = slice(before, before + mask.shape[1])
        np.testing.assert_allclose(found["states"][:, inner][mask], expected["states"][mask], **TOLERANCE)
        weights = found["attentions"].swapaxes(1, 2)[:, inner][:, :, :, :, inner][mask]
        np.testing.assert_allclose(weights, expected["attentions"].swapaxes(1, 2)[mask], **TOLERANCE)
        logits = found["logits"][:, inner][mask] if case is REPLACED else found["logits"][rows]
        np.testing.assert_allclose(logits, expected["logits"][mask if case is REPLACED else rows], **TOLERANCE)
        assert all(np.isfinite(a).all() for a in found.values())


def test_padding_ids_change_nothing_at_all():
    """Bit for bit, with ids outside the vocabulary too, whose embedding is NaN."""
    params, inputs = draw_params(XL.model()), inputs_of(XL)
    mask, random = inputs["attention_mask"] != 0, np.random.RandomState(0)
    run = jax.jit(lambda ids: XL.model().apply({"params": params}, ids, attention_mask=mask).last_hidden_state)
    expected = np.asarray(run(inputs["input_ids"]))
    for low, high in ((0, XL.config.vocab_size), (XL.config.vocab_size, 2**31 - 1), (-(2**31), -1)):
        ids = np.where(mask, inputs["input_ids"], random.randint(low, high, mask.shape)).astype(np.int32)
        assert np.asarray(run(ids)).tobytes() == expected.tobytes()


def test_an_id_outside_the_vocabulary_is_nan_where_it_is_a_token():
    params, inputs = draw_params(XL.model()), inputs_of(XL)
    inputs["input_ids"][1, 2] = XL.config.vocab_size
    states = forward(XL, params, inputs)["states"]
    assert np.isnan(states[1, :3]).any()
    assert np.isfinite(states[0]).all()


def test_other_rows_of_the_batch():
    params, inputs = draw_params(XL.model()), inputs_of(XL)
    whole = forward(XL, params, inputs)["states"]
    mixed = forward(XL, params, {name: np.concatenate([a[2:], a[1:2], a[::-1]]) for name, a in inputs.items()})[
        "states"
    ]
    mask = inputs["attention_mask"][1] != 0
    np.testing.assert_allclose(mixed[2, mask], whole[1, mask], **TOLERANCE)
    alone = forward(XL, params, {name: a[1:2] for name, a in inputs.items()})["states"]
    np.testing.assert_allclose(alone[0, mask], whole[1, mask], **TOLERANCE)


def test_padded_queries_attend_to_nothing_and_are_attended_by_nothing():
    """transformers gives them uniform weights over every position; Microsoft's code and ours none."""
    params, inputs = draw_params(XL.model()), inputs_of(XL)
    found = forward(XL, params, inputs)
    padded = inputs["attention_mask"] == 0
    assert (found["attentions"].swapaxes(1, 2)[padded] == 0).all()
    assert np.isfinite(found["states"]).all()
    assert (found["attentions"].transpose(0, 4, 1, 2, 3)[padded] == 0).all()


def test_padding_is_zero_before_the_convolution():
    params, inputs = draw_params(XL.model()), inputs_of(XL)
    states = forward(XL, params, inputs)["states"]
    padded = inputs["attention_mask"] == 0
    assert (states[padded][:, 0] == 0).all()
    assert (states[padded][:, 1] == 0).all()  # the first layer's output, joined by the convolution
    assert (np.abs(states[~padded][:, :2]).max(-1) > 0.1).all()


def test_attention_masks_of_any_dtype():
    params, inputs = draw_params(XL.model()), inputs_of(XL)
    expected = forward(XL, params, inputs)["states"]
    for dtype in (bool, np.uint8, np.float32):
        found = forward(XL, params, {**inputs, "attention_mask": inputs["attention_mask"].astype(dtype)})
        np.testing.assert_array_equal(found["states"], expected)


@pytest.mark.slow
def test_an_attention_mask_over_pairs_of_tokens():
    """[B,T,T] equal to the outer product of a token mask gives the same; a block-diagonal one separates texts."""
    params, inputs = draw_params(XL.model()), inputs_of(XL)
    mask = inputs["attention_mask"]
    expected = forward(XL, params, inputs)["states"]
    found = forward(XL, params, {**inputs, "attention_mask": mask[:, :, None] * mask[:, None, :]})["states"]
    np.testing.assert_allclose(found, expected, **TOLERANCE)
    v3 = Case("padding-pairs", "v3")  # the convolution reads neighbours whatever pairs say: segment_ids separate it
    params, half = draw_params(v3.model()), 6
    pairs = np.zeros((1, 11, 11), np.int32)
    pairs[:, :half, :half] = pairs[:, half:, half:] = 1
    ids = inputs["input_ids"][:1]
    joined = forward(v3, params, {"input_ids": ids, "attention_mask": pairs})["states"]
    for part in (slice(0, half), slice(half, None)):
        alone = forward(v3, params, {"input_ids": ids[:, part]})["states"]
        np.testing.assert_allclose(joined[:, part], alone, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [pytest.param((8, 1, 1), marks=pytest.mark.long), (2, 2, 2)], ids=str)
def test_number_of_devices(sizes):
    case = Case("devices", "xl", "masked-lm", {"legacy": False, "mask_decoder": True})
    model, inputs = case.model(), {name: np.tile(a, (2, 1)) for name, a in inputs_of(case).items()}
    params = draw_params(model)
    run = lambda params, inputs: model.apply({"params": params}, **inputs).logits
    expected = execute(run, params, inputs)
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        shardings = tree_shardings(logical_axes(model), mesh)
        placed = jax.device_put(params, shardings)
        spread = jax.device_put(inputs, batch_sharding(mesh))
        kernel = placed["deberta"]["encoder"]["layers"]["intermediate"]["dense"]["kernel"]
        assert len({shard.device for shard in kernel.addressable_shards}) == 8
        assert kernel.addressable_shards[0].data.size * sizes[1] * sizes[2] == kernel.size
        found = execute(run, placed, spread)
    mask = inputs["attention_mask"] != 0
    np.testing.assert_allclose(found[mask], expected[mask], **TOLERANCE)
