"""LoRA's adapter in the ``peft`` library: its unmerged forward gives what our merged model gives."""

import jax
import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import deberta_jax
from deberta_jax.sharding import make_mesh
from deberta_jax.training import finetune_data
from tests.made import rows, stdout_of, weighted_model, write_table

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")  # between peft and transformers
def test_peft_runs_the_adapter_beside_the_base_to_the_merged_models_outputs(tmp_path, monkeypatch):
    base = weighted_model(tmp_path / "base")
    train = write_table(tmp_path / "train.csv", ("text", "label"), rows(96, seed=1))
    monkeypatch.setattr(finetune_data, "mesh_of", lambda runtime: make_mesh(devices=jax.devices()[:1]))
    stdout_of(
        [
            "finetune",
            "--model",
            str(base),
            "--train",
            str(train),
            "--eval",
            str(train),
            "--output",
            str(tmp_path / "run"),
            "--lora",
            "3",
            "--lora-alpha",
            "6",
            "--epochs",
            "4",
            "--batch-size",
            "16",
            "--learning-rate",
            "1e-2",
            "--max-length",
            "16",
        ]
    )
    pipe = deberta_jax.pipeline("text-classification", tmp_path / "run")
    texts = [text for text, _ in rows(30, seed=31)]
    encoded = pipe.tokenizer(texts, max_length=16, padding="longest")
    inputs = {name: torch.tensor(np.asarray(encoded[name])).long() for name in ("input_ids", "attention_mask")}

    plain = AutoModelForSequenceClassification.from_pretrained(base).float().eval()
    with torch.no_grad():
        before = plain(**inputs).logits.numpy()
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    assert any("lora_A" in name for name, _ in adapted.named_parameters())
    with torch.no_grad():
        unmerged = adapted(**inputs).logits.numpy()
    ours = pipe.logits(texts)
    scale = np.abs(unmerged).max()
    assert np.abs(unmerged - before).max() > 0.1 * scale, "the adapter does something"
    np.testing.assert_allclose(ours, unmerged, atol=1e-5 * scale)
