"""Every configuration of the matrix against live transformers: outputs, losses and gradients."""

import jax
import numpy as np
import pytest

from tests.cases import Case, real_part, run, run_with_gradients, to_tree
from tests.parity import hugging_face
from tests.parity.matrix import CASES, QUICK_GRADIENTS

pytestmark = [pytest.mark.parity, pytest.mark.every_case]

_WITH_GRADIENTS = [pytest.param(c, marks=() if c.name in QUICK_GRADIENTS else pytest.mark.long) for c in CASES]
_WITH_ATTENTIONS = [pytest.param(c, marks=pytest.mark.long if c.name in QUICK_GRADIENTS else ()) for c in CASES]
_name = lambda case: case.name


def assert_same_outputs(case: Case, tree, ours, theirs, batch) -> None:
    theirs = {name: a for name, a in theirs.items() if name in ours}
    if case.config.talking_head and "attentions" in ours:  # transformers gives the weights after they were mixed
        mixer = tree["encoder"]["layers"]["attention"]["self"]["head_weights_proj"]["kernel"]
        ours = ours | {"attentions": np.einsum("LBNTS,LNM->LBMTS", ours["attentions"], mixer)}
    for name, expected in theirs.items():
        if name == "loss":
            assert ours[name] == pytest.approx(float(expected), rel=2e-6, abs=1e-5)
            continue
        found, expected = (real_part(case, name, a, batch) for a in (ours[name], expected))
        if found.ndim == 1 and name == "logits":
            expected = expected.reshape(found.shape)
        assert np.isfinite(ours[name]).all()
        assert expected.size
        difference = np.abs(found - expected.reshape(found.shape)).max()
        assert difference <= 1e-5, f"{name} differs by {difference}"


@pytest.mark.parametrize("case", _WITH_ATTENTIONS, ids=_name)
def test_outputs_equal_transformers(case: Case):
    torch_model, state = hugging_face.build(case)
    batch = case.batch()
    theirs, _ = hugging_face.run(case, torch_model, batch)
    tree = to_tree(case.config, state)
    ours = run(case, tree, batch, attention="xla")
    assert "attentions" in ours
    assert_same_outputs(case, tree, ours, theirs, batch)


@pytest.mark.parametrize("case", _WITH_GRADIENTS, ids=lambda case: case.name)
def test_outputs_and_gradients_equal_transformers(case: Case):
    torch_model, state = hugging_face.build(case)
    batch = case.batch()
    theirs, torch_gradients = hugging_face.run(case, torch_model, batch)
    tree = to_tree(case.config, state)
    ours, gradients = run_with_gradients(case, tree, batch)
    assert_same_outputs(case, tree, ours, theirs, batch)

    expected = to_tree(case.config, torch_gradients)
    largest = max(np.linalg.norm(g) for g in torch_gradients.values())
    assert largest > 1e-3

    def compare(path, ours, theirs):
        # Layers one by one: a stack's norm would hide a wrong small layer behind a large one.
        pairs = zip(ours, theirs, strict=True) if "layers" in str(path) else [(ours, theirs)]
        for mine, torchs in pairs:
            bound = 1e-4 * np.linalg.norm(torchs) + 1e-6 * largest
            assert np.linalg.norm(mine - torchs) <= bound, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, gradients, expected)
