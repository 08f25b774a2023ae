"""A directory of ours into which transformers saves again loads as transformers has it; the stale list is one line."""

import logging

import jax
import numpy as np
import pytest
import torch
import transformers

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, init_params
from deberta_jax.weights import from_pretrained, save_pretrained, verify
from tests.weights.files import raw_config

pytestmark = [pytest.mark.parity, pytest.mark.slow]

HEAD = "sequence-classification"


@pytest.fixture
def directory(tmp_path):
    model = DebertaForSequenceClassification(DebertaConfig.from_hf(raw_config("v3", num_labels=3)))
    save_pretrained(tmp_path / "model", model, init_params(model, jax.random.key(0)))
    return tmp_path / "model"


def warnings_in(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("deberta_jax") and r.levelno >= logging.WARNING]


@pytest.mark.parametrize("changed", ["all", "the head", "nothing"])
def test_saved_again_by_transformers(directory, changed, caplog):
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if changed == "all" or (changed == "the head" and name == "classifier.bias"):
                parameter += 0.5
    theirs.save_pretrained(directory)
    for check in ("sampled", "full"):
        caplog.clear()
        _, params = from_pretrained(directory, HEAD, check=check)
        np.testing.assert_array_equal(params["classifier"]["bias"], theirs.classifier.bias.detach().numpy())
        (line,) = warnings_in(caplog)
        assert str(directory / "checksums.json") in line
    result = verify(directory)
    assert result.passed
    assert "another program has changed files since" in result.text()
