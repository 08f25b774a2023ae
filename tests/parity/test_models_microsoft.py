"""The encoder, the enhanced mask decoder, the replaced-token head and the token classifier against Microsoft's code."""

import jax
import numpy as np
import pytest

from tests.cases import Case, run_with_gradients, to_tree
from tests.parity import microsoft

pytestmark = [pytest.mark.parity, pytest.mark.every_case]

_DECODER = {"legacy": False, "mask_decoder": True}
CASES = [
    *(Case(f"{base}-mask-decoder", base, "masked-lm", _DECODER) for base in ("v1", "v2", "v3")),
    Case("xl-mask-decoder-3-layers", "xl", "masked-lm", {**_DECODER, "num_hidden_layers": 3}),
    Case("v3-mask-decoder-1-layer", "v3", "masked-lm", {**_DECODER, "num_hidden_layers": 1}),
    Case("xl-mask-decoder-full", "xl", "masked-lm", _DECODER, padding="none"),
    *(Case(f"{base}-replaced-token", base, "replaced-token-detection") for base in ("v1", "v2", "v3", "xl")),
    Case("v3-microsoft-classifier", "v3", "token-classification", {"classifier_proj": True}),
    Case("v1-microsoft-classifier", "v1", "token-classification", {"classifier_proj": True}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_heads_equal_microsoft(case: Case):
    model, state = microsoft.build(case)
    batch = case.batch()
    theirs, torch_gradients = microsoft.run(case, model, batch)
    ours, gradients = run_with_gradients(case, to_tree(case.config, state), batch)
    real = batch["attention_mask"] != 0
    assert np.abs(ours["logits"][real] - theirs["logits"][real]).max() <= 1e-5
    assert ours["loss"] == pytest.approx(float(theirs["loss"]), abs=1e-5)
    # The mask decoder replaces the last layer, and its package lacks the state before the first.
    count = case.config.num_hidden_layers - (1 if case.config.mask_decoder else 0)
    for layer in range(count):
        difference = ours["hidden_states"][layer + 1][real] - theirs["layer_states"][layer][real]
        assert np.abs(difference).max() <= 1e-5

    expected = to_tree(case.config, torch_gradients)
    largest = max(np.linalg.norm(g) for g in torch_gradients.values())

    def compare(path, mine, torchs):
        bound = 1e-4 * np.linalg.norm(torchs) + 1e-6 * largest
        assert np.linalg.norm(mine - torchs) <= bound, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(compare, gradients, expected)


def test_padded_queries_have_zero_context_as_in_microsofts_code():
    """Where a query may read nothing, Microsoft's context is zero and so is ours, padding included."""
    case = Case("padded-queries", "v3")
    model, state = microsoft.build(case)
    batch = case.batch()
    theirs, _ = microsoft.run(case, model, batch)
    tree = to_tree(case.config, {name.removeprefix("deberta."): a for name, a in state.items()})
    ours, _ = run_with_gradients(case, tree, batch)
    assert np.abs(ours["hidden_states"][1:] - theirs["layer_states"]).max() <= 1e-5
