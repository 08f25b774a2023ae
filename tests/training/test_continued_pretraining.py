"""Pre-training that continues an existing model begins with its weights: its loss is that of numpy from its logits."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from deberta_jax import DebertaForMaskedLM, from_pretrained, load_tokenizer
from deberta_jax.training import PretrainMLM
from deberta_jax.training.objective import prepare_step
from deberta_jax.training.pretrain_data import read_pretrain_data
from deberta_jax.training.pretraining import masking_of, plan_pretrain
from tests.made import TINY, pretraining_home, saved_model


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [True, pytest.param(False, marks=pytest.mark.system)])
def test_it_begins_with_the_weights_of_the_model(tmp_path, one_device, decoder):
    home = pretraining_home(tmp_path, 40)
    config = dataclasses.replace(TINY, mask_decoder=decoder)
    saved_model(tmp_path / "model", DebertaForMaskedLM(config), load_tokenizer(str(home / "blank")), seed=4)
    e = PretrainMLM(
        model=str(tmp_path / "model"),
        train=(str(home / "train.txt"),),
        eval=str(home / "eval.txt"),
        output=str(tmp_path / "run"),
        batch_size=8,
        max_length=32,
        steps=4,
    )
    job = plan_pretrain(e)
    params = job.objective.initial_params(prepare_step(job.objective, job.mesh, 4).shardings.params)
    found = job.evaluate(params, lambda: None)["loss"]

    model, own = from_pretrained(tmp_path / "model", "masked-lm")
    run = jax.jit(lambda p, i: model.apply({"params": p}, **i).logits)
    data = read_pretrain_data(e, tmp_path / "model", config.vocab_size, job.mesh, masking_of(e, e.shown))
    losses = []
    for i in range(len(data.held_out)):
        batch = data.held_out[i]
        inputs = {name: batch[name] for name in ("input_ids", "segment_ids", "positions")}
        logits = np.asarray(run(own, inputs), np.float64)
        targets = batch["labels"] >= 0
        losses += list(-log_softmax(logits, -1)[targets][np.arange(targets.sum()), batch["labels"][targets]])
    assert len(losses) > 100
    assert found == pytest.approx(np.mean(losses), rel=1e-4)
