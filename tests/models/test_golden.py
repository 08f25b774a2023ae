"""Recorded outputs of transformers and of Microsoft's code, without either being installed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.models import abstract_params, prepare_for_inference
from tests.cases import Case, draw_weights, real_part, run, run_with_gradients, to_tree
from tests.golden.recorded import GRADIENTS, HUGGING_FACE, MICROSOFT, file_of

# Every gradient is compared in tests/parity; two here stand for all where PyTorch is not installed.
_QUICK_GRADIENTS = ("golden-v1-masked-lm", "golden-xl-mask-decoder")


def load(case: Case):
    with np.load(file_of(case)) as file:
        arrays = dict(file)
    shapes = {name: tuple(shape) for name, shape in json.loads(str(arrays.pop("shapes"))).items()}
    gradients = {name.removeprefix("gradient "): a for name, a in arrays.items() if name.startswith("gradient ")}
    outputs = {name: a for name, a in arrays.items() if not name.startswith("gradient ")}
    return to_tree(case.config, draw_weights(shapes)), outputs, gradients


def assert_recorded(case: Case, ours, recorded, batch) -> None:
    assert set(recorded) & {"logits", "last_hidden_state", "start_logits"}
    for name, expected in recorded.items():
        if name == "loss":
            assert ours[name] == pytest.approx(float(expected), rel=2e-6, abs=1e-5)
        elif name == "layer_states":  # Microsoft's lack the embeddings, and the mask decoder replaces the last
            real = batch["attention_mask"] != 0
            found = ours["hidden_states"][1:, real]
            last = -1 if case.config.mask_decoder else None
            np.testing.assert_allclose(found[:last], expected[:, real][:last], rtol=0, atol=1e-5)
        else:
            found, expected = (real_part(case, name, a, batch) for a in (ours[name], expected))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", HUGGING_FACE + MICROSOFT, ids=lambda case: case.name)
def test_recorded_outputs(case: Case):
    tree, recorded, _ = load(case)
    batch = case.batch()
    assert_recorded(case, run(case, tree, batch), recorded, batch)


_PREPARED = ("golden-v1-encoder", "golden-v2-unshared", "golden-v3-left", "golden-xl-mask-decoder")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=() if c.name in _PREPARED else pytest.mark.long, id=c.name)
        for c in HUGGING_FACE + MICROSOFT
    ],
)
def test_recorded_outputs_with_precomputed_position_tables(case: Case):
    """``prepare_for_inference``: at another length too its tables serve, as they hold every row."""
    tree, recorded, _ = load(case)
    batch = case.batch()
    model = case.model()
    prepared, params = prepare_for_inference(model, jax.tree.map(jnp.asarray, tree))
    found = run(case, params, batch, prepared=True)
    assert_recorded(case, found, recorded, batch)
    before, after = (len(jax.tree.leaves(t)) for t in (tree, params))
    assert prepared.prepared
    assert before != after or case.config.share_att_key
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), abstract_params(prepared), params)
    with pytest.raises(ValueError, match="prepared already"):
        prepare_for_inference(prepared, params)
    inputs = {name: jnp.asarray(batch[name]) for name in ("input_ids", "attention_mask")}
    train = lambda p: prepared.apply({"params": p}, **inputs, deterministic=False, rngs={"dropout": jax.random.key(0)})
    with pytest.raises(ValueError, match="cannot be trained"):
        jax.eval_shape(train, params)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=() if c.name in _QUICK_GRADIENTS else pytest.mark.long, id=c.name)
        for c in HUGGING_FACE + MICROSOFT
        if c.name in GRADIENTS
    ],
)
def test_recorded_gradients(case: Case):
    tree, _, gradients = load(case)
    _, found = run_with_gradients(case, tree, case.batch())
    largest = max(np.linalg.norm(g) for g in gradients.values())

    def compare(path, mine, expected):
        bound = 1e-4 * np.linalg.norm(expected) + 1e-6 * largest
        assert np.linalg.norm(mine - expected) <= bound, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, found, to_tree(case.config, gradients))
