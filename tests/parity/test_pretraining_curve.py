"""Masked-LM pre-training beside transformers: the same weights, batches and masks give the same curve."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers

from deberta_jax import DebertaForMaskedLM, init_params, save_pretrained
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.training.experiment import Optimization, PretrainMLM
from deberta_jax.training.objective import prepare_step
from deberta_jax.training.pretrain_objectives import masked_lm_config, mlm_objective
from deberta_jax.training.state import make_state
from deberta_jax.training.step import compile_step
from tests.made import TINY

pytestmark = [pytest.mark.parity, pytest.mark.slow]

STEPS, PEAK, WARMUP, DECAY = 200, 2e-3, 20, 0.01
WORDS, ROWS, LENGTH, TARGETS = 96, 8, 24, 4
CONFIG = dataclasses.replace(TINY, vocab_size=WORDS)


def batches():
    """Sentences of a small grammar: each word follows from the one before, so that there is something to learn."""
    rng = np.random.default_rng(0)
    follows = rng.permutation(WORDS - 5) + 4
    for _ in range(STEPS):
        ids = np.empty((ROWS, LENGTH), np.int32)
        ids[:, 0] = rng.integers(4, WORDS - 1, ROWS)
        for t in range(1, LENGTH):
            ids[:, t] = follows[ids[:, t - 1] - 4]
        lengths = rng.integers(LENGTH // 2, LENGTH + 1, ROWS)
        mask = np.arange(LENGTH)[None] < lengths[:, None]
        positions = np.sort(np.stack([rng.permutation(n)[:TARGETS] for n in lengths]), axis=1).astype(np.int32)
        labels = np.take_along_axis(ids, positions, axis=1)
        ids = np.where(mask, ids, 0)
        np.put_along_axis(ids, positions, WORDS - 1, axis=1)
        yield {"input_ids": ids, "attention_mask": mask, "positions": positions, "labels": labels}


def torch_losses(directory):
    model = transformers.DebertaV2ForMaskedLM.from_pretrained(directory).float().train()
    plain = lambda name: "bias" in name or "LayerNorm.weight" in name
    groups = [
        {"params": [p for n, p in model.named_parameters() if not plain(n)], "weight_decay": DECAY},
        {"params": [p for n, p in model.named_parameters() if plain(n)], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.999), eps=1e-6)
    rate = lambda step: step / WARMUP if step < WARMUP else (STEPS - step) / (STEPS - WARMUP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    for batch in batches():
        labels = np.full(batch["input_ids"].shape, -100)
        np.put_along_axis(labels, batch["positions"], batch["labels"], axis=1)
        loss = model(
            input_ids=torch.tensor(batch["input_ids"]).long(),
            attention_mask=torch.tensor(batch["attention_mask"]),
            labels=torch.tensor(labels).long(),
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def test_two_hundred_steps_have_the_losses_of_transformers(tmp_path):
    model = DebertaForMaskedLM(CONFIG)
    params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
    save_pretrained(tmp_path / "model", model, params)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["legacy"] is False
    theirs = torch_losses(tmp_path / "model")

    e = PretrainMLM(
        model=str(tmp_path / "model"), optimization=Optimization(learning_rate=PEAK, warmup=WARMUP, weight_decay=DECAY)
    )
    _, objective = mlm_objective(e, masked_lm_config(e))
    mesh = make_mesh(devices=jax.devices()[:1])
    prepared = prepare_step(objective, mesh, STEPS)
    params = objective.initial_params(prepared.shardings.params)
    state = jax.jit(lambda p: make_state(p, prepared.optimizer, 0), out_shardings=prepared.shardings)(params)
    program = compile_step(prepared.step, prepared.state, prepared.shardings, next(batches()), mesh)
    ours = []
    for batch in batches():
        state, measured = program(state, global_batch(batch, mesh))
        ours.append(float(measured["loss"]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert np.mean(ours[-20:]) < np.mean(ours[:20]) - 0.5, "it has learned something"
    print("largest relative difference", np.max(np.abs(np.array(ours) / theirs - 1)))
