"""bfloat16 against transformers' own bfloat16: the error each has from its float32, on the same models and inputs."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from deberta_jax.ops.activations import ACTIVATIONS
from tests.cases import Case, apply, to_tree
from tests.parity import hugging_face

pytestmark = [pytest.mark.parity, pytest.mark.slow]

_WIDE = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128}
MODELS = [
    Case(f"bfloat16-{base}-{name}", base, options={**_WIDE, **options}, length=24)
    for base in ("v1", "v2", "v3", "xl")
    for name, options in (("a", {}), ("c2p", {"pos_att_type": "c2p"}), ("types", {"type_vocab_size": 2}))
]


def error(low, exact, mask) -> float:
    return float(np.square(np.float32(low)[mask] - exact[mask]).sum())


def test_bfloat16_error_is_no_more_than_transformers():
    """Root mean square over all models, layers and real tokens."""
    assert len(MODELS) >= 10
    ours = theirs = 0.0
    for case in MODELS:
        model, state = hugging_face.build(case)
        batch = {name: a for name, a in case.batch().items() if name != "cotangent"}
        inputs = {name: torch.from_numpy(a).long() for name, a in batch.items()}
        mask = batch["attention_mask"] != 0
        states = lambda m, i=inputs: m(**i, output_hidden_states=True).hidden_states
        with torch.no_grad():
            exact = [s.numpy() for s in states(model)]
            low = [s.float().numpy() for s in states(model.to(torch.bfloat16))]
        tree = to_tree(case.config, state)
        mine = apply(case.model(dtype=jnp.bfloat16), tree, batch, output_hidden_states=True).hidden_states
        for layer in range(len(exact)):
            theirs += error(low[layer], exact[layer], mask)
            ours += error(mine[layer], exact[layer], mask)
    ratio = (ours / theirs) ** 0.5
    print(f"bfloat16 error, ours over transformers': {ratio:.3f}")
    assert ratio <= 1.05


def test_float16_is_finite_when_raw_scores_exceed_its_range():
    """Projections scaled until raw q.k passes 65504: float16 compute stays near float32 compute."""
    case = MODELS[6]
    _, state = hugging_face.build(case)
    scaled = {name: a * (100 if "query_proj" in name or "key_proj" in name else 1) for name, a in state.items()}
    tree, batch = to_tree(case.config, scaled), {n: a for n, a in case.batch().items() if n != "cotangent"}
    half, full = (
        apply(case.model(dtype=dtype), tree, batch, output_hidden_states=True).hidden_states
        for dtype in (jnp.float16, jnp.float32)
    )
    mask = batch["attention_mask"] != 0
    weight, bias = (scaled[f"encoder.layer.0.attention.self.query_proj.{kind}"] for kind in ("weight", "bias"))
    query = full[0] @ weight.T + bias
    key = full[0] @ scaled["encoder.layer.0.attention.self.key_proj.weight"].T
    raw = np.einsum("btnh,bsnh->bnts", *(a.reshape(*a.shape[:2], 4, 16) for a in (query, key)))
    assert np.abs(raw).max() > 65504
    assert all(np.isfinite(np.float32(h)).all() for h in half)
    assert np.abs(np.float32(half[1])[mask] - full[1][mask]).mean() < 0.05


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_transformers(name):
    x = np.linspace(-12, 12, 997, dtype=np.float32)
    expected = ACT2FN[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[name](jnp.asarray(x)), expected, rtol=1e-5, atol=2e-6)


def test_every_parameter_free_activation_of_transformers_is_here():
    free = {name for name in ACT2FN if not list(ACT2FN[name].parameters())}
    assert set(ACTIVATIONS) == free
