"""Models whose weights are divided over devices, for which no device has the memory."""

import pickle
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import deberta_jax
from deberta_jax import InputError
from deberta_jax.serving.models import devices_needed
from tests.made import TINY, make_tokenizer, rows, saved_model

TEXTS = [text for text, _ in rows(5, seed=5)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    home = tmp_path_factory.mktemp("divided")
    model = deberta_jax.DebertaForSequenceClassification(TINY)
    return saved_model(home / "model", model, make_tokenizer(home / "tokenizer"), seed=3)


@pytest.fixture(scope="module")
def whole(directory):
    return deberta_jax.pipeline("text-classification", directory, device="cpu:0").logits(TEXTS)


def largest(params):
    """Bytes of the largest array, and the most bytes of it on a device."""
    array = max(jax.tree.leaves(params), key=lambda leaf: leaf.nbytes)
    return array.nbytes, max(shard.data.nbytes for shard in array.addressable_shards)


def test_a_device_holds_a_part_and_answers_are_the_same(directory, whole):
    pipe = deberta_jax.pipeline("text-classification", directory, mesh_fsdp=4)
    size, part = largest(pipe.params)
    assert part == size / 4
    np.testing.assert_allclose(pipe.logits(TEXTS), whole, atol=1e-5)
    moved = pickle.loads(pickle.dumps(pipe))
    assert largest(moved.params) == (size, part)
    np.testing.assert_allclose(moved.logits(TEXTS), whole, atol=1e-5)


@pytest.mark.slow
def test_embeddings_are_the_same(directory):
    vectors = deberta_jax.Embedder(directory).encode(TEXTS)
    embedder = deberta_jax.Embedder(directory, mesh_fsdp=2)
    size, part = largest(embedder.params)
    assert part == size / 2
    np.testing.assert_allclose(embedder.encode(TEXTS), vectors, atol=1e-5)


@pytest.mark.parametrize(("number", "message"), [(3, "does not fit 8 devices"), (0, "does not fit 8 devices")])
def test_a_number_that_does_not_divide_is_refused(directory, number, message):
    with pytest.raises(InputError, match=re.escape(message)):
        deberta_jax.pipeline("text-classification", directory, mesh_fsdp=number)


class Card:
    """A device with a memory."""

    def __init__(self, size):
        self.size = size

    def memory_stats(self):
        return {"bytes_limit": self.size} if self.size else None


def test_the_server_divides_what_does_not_fit_a_device(directory):
    weights = sum(array.size * 4 for array in load_file(directory / "model.safetensors").values())
    assert devices_needed(str(directory), [Card(2 * weights)] * 8) == 1
    assert devices_needed(str(directory), [Card(weights)] * 8) == 2
    assert devices_needed(str(directory), [Card(weights // 3)] * 6) == 6
    assert devices_needed(str(directory), [Card(weights // 100)] * 8) == 8
    assert devices_needed(str(directory), [Card(None)] * 8) == 1
