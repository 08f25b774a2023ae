"""The GPU kit's PyTorch rows on this CPU: they are timed, and compute what this project's attention computes."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from deberta_jax.benchmarking.cases import make_batch
from deberta_jax.ops.attention import disentangled_attention
from deberta_jax.ops.attention.relative_position import make_relative_index
from tests.gpu_kit import FOLDERS, run_kit

sys.path += [folder for folder in FOLDERS if folder not in sys.path]

# isort: split
import model_times
import torch_attention
import torch_model_times
from worker import Request

pytestmark = pytest.mark.parity


def test_rows_at_tiny_size(tmp_path):
    output = tmp_path / "kit.json"
    made, results = run_kit(output, "--only", "attention-torch", "model-torch", "--output", str(output))
    assert made.returncode == 0, made.stdout + made.stderr
    assert results["parts"]["machine"]["rows"]["torch"]["torch"] == torch.__version__
    rows = results["parts"]["attention-torch"]["rows"]
    for name, row in rows.items():
        if name.startswith(("plain, torch", "transformers")):
            assert row["status"] == "ok"
            assert row["milliseconds"] > 0
            assert row["over plain"] > 0
        else:
            assert row["status"] == "skipped"
            assert "is not importable: No module named" in row["reason"]
    assert rows["transformers, 2x16 forward"]["error"] < 1e-2
    models = results["parts"]["model-torch"]["rows"]
    assert list(models) == ["forward 2x32 fixed", "train 2x32 mixed"]
    for row in models.values():
        assert row["status"] == "ok"
        assert row["tokens_per_second"] > 0
        assert row["device_peak_bytes"] is None
    assert models["forward 2x32 fixed"]["padding"] == 0
    assert models["train 2x32 mixed"]["padding"] > 0


@pytest.mark.parametrize("length", [5, 16])
def test_transformers_module_computes_our_attention_of_the_same_arrays(length):
    """Context and five gradients, in float32; the module's own projections are replaced."""
    heads, size, span = 3, 8, 8
    arrays = {
        name: a.detach().float().requires_grad_()
        for name, a in torch_attention.make_arrays((2, length, heads, size), span).items()
    }
    context = torch_attention.attention("transformers", arrays, tiny=True)()
    cotangent = torch.randn(context.shape, generator=torch.Generator().manual_seed(1))
    theirs = [context, *torch.autograd.grad(context, list(arrays.values()), cotangent)]
    relative_index = make_relative_index(length, span, buckets=span, max_distance=2 * span, clamp=False)

    def attend(*given):
        out = disentangled_attention(*given, relative_index, scale=(3 * size) ** -0.5, implementation="reference")[0]
        return out.reshape(2, length, -1)

    ours, pull = jax.vjp(attend, *(jnp.asarray(a.detach().numpy()) for a in arrays.values()))
    for name, a, b in zip(("context", *arrays), theirs, [ours, *pull(jnp.asarray(cotangent.numpy()))], strict=True):
        expected = a.detach().numpy()
        np.testing.assert_allclose(b, expected, rtol=0, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_padded_batches_hold_the_texts_of_the_packed_ones():
    case = next(case for case in model_times.settings(Request(tiny=False)) if case.texts == "mixed")
    packed, padded = make_batch(case), torch_model_times.padded_batches(case)
    assert len(padded) > 1
    assert all(batch["attention_mask"].any(0)[-1] for batch in padded), "padded to the longest, no further"
    texts = [
        (tuple(ids[: mask.sum()]), int(label))
        for batch in padded
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    ]
    expected = []
    for row, starts in enumerate(packed["positions"]):
        starts = starts[starts >= 0]
        ends = [*starts[1:], (packed["segment_ids"][row] > 0).sum()]
        expected += [
            (tuple(packed["input_ids"][row, start:end]), int(packed["labels"][row, slot]))
            for slot, (start, end) in enumerate(zip(starts, ends, strict=True))
        ]
    assert sorted(texts) == sorted(expected)
    assert sum(len(ids) for ids, _ in texts) == (packed["segment_ids"] > 0).sum()
