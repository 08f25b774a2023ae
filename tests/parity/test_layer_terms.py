"""Relative terms that differ between layers, against transformers' layers with other ``pos_att_type`` each."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from deberta_jax import from_pretrained, save_pretrained
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import prepare_for_inference
from tests.cases import Case, run, run_with_gradients, to_tree
from tests.parity import hugging_face

pytestmark = pytest.mark.parity

TERMS = [["c2p", "p2c"], ["c2p"], [], ["p2c"]]
CASES = [
    Case(f"terms-{base}", base, "sequence-classification", {"num_hidden_layers": 4}, padding="right")
    for base in ("v1", "v2", "v3", "xl")
]
OURS = {
    case.name: Case(case.name, case.base, case.head, {**case.options, "layer_pos_att_type": TERMS}) for case in CASES
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_layer_has_its_terms_and_its_scale(case):
    torch_model, state = hugging_face.build(case)
    batch, tree = case.batch(), to_tree(case.config, state)
    plain, _ = hugging_face.run(case, torch_model, batch)
    for layer, terms in zip(torch_model.deberta.encoder.layer, TERMS, strict=True):
        layer.attention.self.pos_att_type = terms
    expected, torch_gradients = hugging_face.run(case, torch_model, batch)
    real = batch["attention_mask"].any(axis=1)
    assert np.abs(expected["logits"][real] - plain["logits"][real]).max() > 1e-2

    for runtime in ({}, {"scan": False, "attention": "reference"}):
        ours, gradients = run_with_gradients(OURS[case.name], tree, batch, **runtime)
        np.testing.assert_allclose(ours["logits"][real], expected["logits"][real], atol=1e-5)
        largest = max(np.linalg.norm(g) for g in torch_gradients.values())
        names = ("key_proj", "pos_key_proj", "pos_query_proj", "query_proj")
        for name in (name for name in names if name in gradients["deberta"]["encoder"]["layers"]["attention"]["self"]):
            found = gradients["deberta"]["encoder"]["layers"]["attention"]["self"][name]["kernel"]
            theirs = to_tree(case.config, torch_gradients)["deberta"]["encoder"]["layers"]["attention"]["self"][name]
            np.testing.assert_allclose(found, theirs["kernel"], atol=1e-5 * largest, err_msg=name)
    attentions = run(OURS[case.name], tree, batch)["attentions"]
    mask = batch["attention_mask"][0] != 0
    theirs = expected["attentions"][:, 0][:, :, mask]
    if not case.config.talking_head:
        np.testing.assert_allclose(attentions[:, 0][:, :, mask], theirs, atol=1e-5)


def test_a_saved_model_is_refused_by_transformers_and_reloaded_here(tmp_path):
    case = OURS["terms-v3"]
    _, state = hugging_face.build(CASES[2])
    model, params = case.model(), jax.tree.map(jnp.asarray, to_tree(case.config, state))
    save_pretrained(tmp_path / "ours", model, params)
    raw = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (raw["model_type"], raw["base_model_type"], raw["layer_pos_att_type"]) == (
        "deberta_jax",
        "deberta-v2",
        TERMS,
    )
    with pytest.raises(ValueError, match="deberta_jax"):
        transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    loaded, again = from_pretrained(tmp_path / "ours", head="sequence-classification")
    assert loaded.config == case.config == DebertaConfig.from_hf(case.config.to_hf())
    batch = {name: value for name, value in case.batch().items() if name != "labels"}
    expected = model.apply({"params": params}, **batch).logits
    np.testing.assert_allclose(loaded.apply({"params": again}, **batch).logits, expected, atol=1e-6)
    prepared, tables = prepare_for_inference(loaded, again)
    np.testing.assert_allclose(prepared.apply({"params": tables}, **batch).logits, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([["c2p"]], "has 1 entries; num_hidden_layers is 4"),
        ([["c2p"], ["p2p"], [], []], "hold some of pos_att_type"),
        ([["c2p", "c2p"], [], [], []], "each at most once"),
        ("c2p", "expected the terms of each layer"),
        ([["c2p"], 3, [], []], "pos_att_type is 3"),
        ([[["c2p"]], [], [], []], "pos_att_type is"),
    ],
)
def test_terms_that_cannot_be(terms, message):
    with pytest.raises(InputError, match=message):
        DebertaConfig.from_hf({**CASES[2].raw, "layer_pos_att_type": terms})
    with pytest.raises(InputError, match="needs relative_attention"):
        DebertaConfig.from_hf({**CASES[2].raw, "relative_attention": False, "layer_pos_att_type": TERMS})
