"""What ``capture`` reads and ``patch`` changes in a model, against torch's forward hooks on transformers' modules."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deberta_jax.models import capture, patch, summary
from tests.cases import Case, execute, to_tree
from tests.parity import hugging_face

pytestmark = pytest.mark.parity

CASES = [
    Case("hooks-v1", "v1", "sequence-classification", {"num_hidden_layers": 3}, padding="none"),
    Case("hooks-v3", "v3", "sequence-classification", {"num_hidden_layers": 3}, padding="none"),
    Case("hooks-xl", "xl", "token-classification", {"num_hidden_layers": 3}, padding="none"),
]
# Our path below layers/N -> transformers' module below encoder.layer.N, and whether its output is an array per head.
MODULES = {
    "attention/self": "attention.self",
    "attention/output/dense": "attention.output.dense",
    "attention": "attention",
    "intermediate": "intermediate",
    "output/dense": "output.dense",
    "output": "output",
}


def first(value):
    return value[0] if isinstance(value, tuple) else value


def module_of(model, layer, name):
    return model.get_submodule(f"deberta.encoder.layer.{layer}.{name}")


def run_with_hooks(model, batch, hooks):
    """The logits with forward hooks on modules."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    with torch.no_grad():
        logits = model(torch.from_numpy(batch["input_ids"]).long()).logits.numpy()
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_summary_counts_the_parameters_of_transformers(case):
    torch_model, _ = hugging_face.build(case)
    total = sum(parameter.numel() for parameter in torch_model.parameters())
    layer = sum(parameter.numel() for parameter in torch_model.deberta.encoder.layer[0].parameters())
    found = summary(case.model())
    assert f"{total:,} parameters" in found
    assert f"3 layers of {layer:,}" in found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("scan", [True, False])
def test_captured_values_are_those_of_transformers(case, scan):
    torch_model, state = hugging_face.build(case)
    batch, model = case.batch(), case.model(scan=scan)
    kept = {}
    keep = lambda path: lambda module, given, result: kept.__setitem__(path, first(result).numpy())
    hooks = [
        (module_of(torch_model, layer, name), keep(f"deberta/encoder/layers/{layer}/{path}"))
        for layer in range(3)
        for path, name in MODULES.items()
    ]
    hooks += [(torch_model.deberta.embeddings, keep("deberta/embeddings"))]
    expected = run_with_hooks(torch_model, batch, hooks)

    at = [*(f"layers/*/{path}" for path in MODULES), "embeddings"]
    run = lambda params, ids: (lambda out, values: (out.logits, values))(*capture(model, params, ids, at=at))
    logits, values = execute(run, to_tree(case.config, state), jnp.asarray(batch["input_ids"]))
    assert values.keys() == kept.keys()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    for path, value in values.items():
        np.testing.assert_allclose(value.reshape(kept[path].shape), kept[path], atol=2e-5, err_msg=path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("scan", [True, False])
def test_patched_modules_change_the_logits_as_torch_hooks_do(case, scan):
    torch_model, state = hugging_face.build(case)
    batch, model, params = case.batch(), case.model(scan=scan), to_tree(case.config, state)
    heads, size = case.config.num_attention_heads, case.config.head_size
    ids = jnp.asarray(batch["input_ids"])
    plain = run_with_hooks(torch_model, batch, [])

    def without_head_2(module, given, result):
        value = first(result).clone().reshape(*first(result).shape[:2], heads, size)
        value[:, :, 2] = 0
        return (value.reshape(first(result).shape), *result[1:]) if isinstance(result, tuple) else value.flatten(2)

    def scaled(module, given, result):
        return result * torch.linspace(0.5, 1.5, result.shape[-1])

    edits = {
        "layers/1/attention/self": lambda x, *, layer: x.at[:, :, 2].set(0),
        "layers/*/intermediate": lambda x, *, layer: x * jnp.linspace(0.5, 1.5, x.shape[-1])[None, None],
    }
    hooks = [(module_of(torch_model, 1, "attention.self"), without_head_2)]
    expected = {"layers/1/attention/self": run_with_hooks(torch_model, batch, hooks)}
    hooks = [(module_of(torch_model, layer, "intermediate"), scaled) for layer in range(3)]
    expected["layers/*/intermediate"] = run_with_hooks(torch_model, batch, hooks)
    for pattern, edit in edits.items():
        run = lambda params, ids: patch(model, params, ids, edits={pattern: edit}).logits  # noqa: B023
        found = execute(run, params, ids)
        assert np.abs(expected[pattern] - plain).max() > 1e-2
        np.testing.assert_allclose(found, expected[pattern], atol=1e-5, err_msg=pattern)
