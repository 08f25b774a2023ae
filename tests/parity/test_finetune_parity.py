"""A fine-tuned directory in transformers, and twenty steps of training beside PyTorch's own loop."""

import json

import jax
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import deberta_jax
from deberta_jax.inference.predict import model_inputs
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.tasks.text_classification import sequence_loss
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import make_optimizer
from deberta_jax.training.state import make_state, parameters_of, state_shardings
from deberta_jax.training.step import compile_step, make_step
from tests.made import rows, weighted_model, without_dropout

pytestmark = [pytest.mark.parity, pytest.mark.slow]

STEPS, PEAK, WARMUP, DECAY = 20, 2e-3, 5.0, 0.05


def torch_model(directory):
    model, info = AutoModelForSequenceClassification.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    return model.float()


def test_transformers_loads_what_finetune_leaves(trained):
    model = torch_model(trained.directory).eval()
    assert model.config.id2label == {0: "neg", 1: "pos"}
    pipe = deberta_jax.pipeline("text-classification", trained.directory)
    texts = [text for text, _ in rows(30, seed=31)]
    encoded = pipe.tokenizer(texts, max_length=16, padding="longest")
    batch = {
        "input_ids": torch.tensor(np.asarray(encoded.input_ids)).long(),
        "attention_mask": torch.tensor(np.asarray(encoded.attention_mask)).long(),
    }
    with torch.no_grad():
        theirs = model(**batch).logits.numpy()
    np.testing.assert_allclose(pipe.logits(texts), theirs, atol=2e-5)


def batches():
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        lengths = rng.integers(4, 13, 8)
        mask = np.arange(12)[None] < lengths[:, None]
        ids = np.where(mask, rng.integers(4, 300, (8, 12)), 0).astype(np.int32)
        yield {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "labels": (ids[:, 1] % 2).astype(np.int32),
        }


def torch_losses(directory):
    """The usual loop: clip, AdamW without decay for biases and LayerNorms, linear schedule stepped after the step."""
    model = torch_model(directory).train()
    plain = lambda name: "bias" in name or "LayerNorm.weight" in name
    groups = [
        {"params": [p for n, p in model.named_parameters() if not plain(n)], "weight_decay": DECAY},
        {"params": [p for n, p in model.named_parameters() if plain(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-6)
    rate = lambda step: step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses, norms = [], []
    for batch in batches():
        inputs = {name: torch.tensor(array).long() for name, array in batch.items()}
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, norms, model


def test_twenty_steps_have_the_losses_of_a_torch_loop(tmp_path):
    directory = weighted_model(tmp_path / "model", without_dropout())
    assert json.loads((directory / "config.json").read_text())["hidden_dropout_prob"] == 0.0
    theirs, norms, trained = torch_losses(directory)

    model, params = deberta_jax.from_pretrained(directory, head="sequence-classification")
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(Optimization(learning_rate=PEAK, warmup=WARMUP, weight_decay=DECAY), STEPS)
    shardings = state_shardings(parameters_of(model), optimizer, mesh)
    state = jax.jit(lambda p: make_state(p, optimizer, 0), out_shardings=shardings)(params)

    def loss(params, batch, key):
        out = model.apply({"params": params}, **model_inputs(batch), deterministic=False, rngs={"dropout": key})
        return {"task": sequence_loss(out.logits, batch["labels"], "single_label_classification")}

    program = compile_step(make_step(loss, optimizer), state, shardings, next(batches()), mesh)
    ours, our_norms = [], []
    for batch in batches():
        state, measured = program(state, global_batch(batch, mesh))
        ours.append(float(measured["loss"]))
        our_norms.append(float(measured["gradient_norm"]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    np.testing.assert_allclose(our_norms, norms, rtol=2e-3)
    assert ours[-1] != pytest.approx(ours[0], rel=0.01), "it has learned something"
    words = trained.deberta.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_allclose(state.params["deberta"]["embeddings"]["word_embeddings"]["embedding"], words, atol=1e-4)
