"""Single flipped bits in what this package writes: a full check notices each, or it changes nothing that is read.

Twenty with a fixed seed; ``-m long`` tries 150 of each kind and writes ``benchmarks/results/flipped_bits.json``.
"""

import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest

from deberta_jax import DebertaConfig, DebertaForSequenceClassification, init_params
from deberta_jax.errors import InputError
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.weights import convert, from_pretrained, save_pretrained
from tests.training.test_damaged_states import equal, shardings_of, state_at
from tests.weights.files import raw_config

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "flipped_bits.json"
HEAD = "sequence-classification"


class Words:
    def save(self, directory):
        (directory / "merges.txt").write_text("".join(f"{i} {i + 1}\n" for i in range(400)))


def model_directory(parent):
    directory = parent / "model"
    model = DebertaForSequenceClassification(DebertaConfig.from_hf(raw_config("v3")))
    save_pretrained(directory, model, init_params(model, jax.random.key(0)), Words())
    return directory


def orbax_checkpoint(parent):
    convert(model_directory(parent), parent / "orbax", to="orbax")
    return parent / "orbax"


def training_state(parent):
    checkpoints = Checkpoints(parent / "state")
    checkpoints.save(9, state_at(9), {"run": "x"})
    checkpoints.close()
    return parent / "state"


def loaded(directory):
    """What a user gets from a model directory: config, parameters and the files of the tokenizer."""
    model, params = from_pretrained(directory, HEAD, check="full")
    return model.config, params, (directory / "merges.txt").read_bytes()


def restored(directory):
    checkpoints = Checkpoints(directory)
    try:
        like = state_at(0)
        step, state, record = checkpoints.restore_latest(like, shardings_of(like), lambda record: None)
    finally:
        checkpoints.close()
    return step, state, record


def same(a, b):
    return a[0] == b[0] and equal(a[1], b[1]) and a[2] == b[2]


KINDS = {
    "safetensors model directory": (model_directory, loaded),
    "Orbax checkpoint": (orbax_checkpoint, loaded),
    "training state": (training_state, restored),
}


def flips(kind, directory, count, seed):
    """Flips one bit at a time, each as likely as another; returns how many were noticed, and how many had no effect."""
    make, read = KINDS[kind]
    made = make(directory)
    before = read(made)
    files = sorted(path for path in made.rglob("*") if path.is_file())
    sizes = np.array([path.stat().st_size for path in files])
    rng = np.random.default_rng(seed)
    messages, harmless = [], 0
    for i in range(count):
        # Every third in any file, so that small files are met as well.
        weights = sizes / sizes.sum() if i % 3 else (sizes > 0) / (sizes > 0).sum()
        file = files[rng.choice(len(files), p=weights)]
        content = file.read_bytes()
        data = bytearray(content)
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(data)
        try:
            found = read(made)
        except InputError as error:
            messages.append(str(error))
        else:
            assert same(found, before), f"number {i} of seed {seed}: a flipped bit in {file} was not noticed"
            harmless += 1
        file.write_bytes(content)
    assert same(read(made), before)
    assert all(str(directory) in message for message in messages)
    return len(messages), harmless


@pytest.fixture(autouse=True)
def no_log():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_noticed_or_changes_nothing(kind, tmp_path):
    noticed, _ = flips(kind, tmp_path, 20, seed=1)
    assert noticed >= 17


@pytest.mark.long
def test_many_flipped_bits(tmp_path):
    result = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        noticed, harmless = flips(kind, tmp_path / kind, 150, seed=2)
        result[kind] = {"flipped bits": 150, "noticed": noticed, "without effect": harmless, "other values": 0}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
