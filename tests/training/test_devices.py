"""The same losses on any mesh, parameters really split, and a run that goes on with other devices than it began on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from deberta_jax import DebertaForSequenceClassification, init_params
from deberta_jax.data.batches import ExampleOrder, TrainingBatches
from deberta_jax.data.features import make_features
from deberta_jax.inference.predict import model_inputs
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.tasks.text_classification import sequence_loss
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.experiment import Optimization
from deberta_jax.training.optimizers import make_optimizer
from deberta_jax.training.state import make_state, parameters_of, state_shardings
from deberta_jax.training.step import compile_step, make_step
from tests.made import TINY, make_tokenizer, rows, without_dropout

STEPS = 6
ROWS = 12  # not a multiple of 8: the devices share rows of padding too


class Trial:
    """The parts of a run on one mesh, put together as the loop does."""

    def __init__(self, tokenizer, sizes, config=None):
        data, fsdp, tensor = sizes
        self.mesh = make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
        self.model = DebertaForSequenceClassification(config or without_dropout(TINY))
        examples = rows(30, seed=4)
        labels = np.array([label == "pos" for _, label in examples], np.int32)
        features = make_features(tokenizer, [text for text, _ in examples], None, max_length=16, labels=labels)
        order = ExampleOrder(batch_size=ROWS, seed=0, epochs=2)
        self.batches = TrainingBatches(features, order, 0, buckets=(16,), multiple=data * fsdp)
        optimizer = make_optimizer(Optimization(learning_rate=1e-3), STEPS)
        self.shardings = state_shardings(parameters_of(self.model), optimizer, self.mesh)
        key = jax.random.key(1)
        begin = lambda: make_state(init_params(self.model, key), optimizer, 0)
        self.begin = jax.jit(begin, out_shardings=self.shardings)
        self.state = self.begin()

        def loss(params, batch, key):
            inputs = model_inputs(batch)
            out = self.model.apply({"params": params}, **inputs, deterministic=False, rngs={"dropout": key})
            return {"task": sequence_loss(out.logits, batch["labels"], "single_label_classification")}

        (example,) = self.batches.examples()
        self.program = compile_step(make_step(loss, optimizer), self.state, self.shardings, example, self.mesh)

    def losses(self, start, stop):
        found = []
        for step in range(start, stop):
            batch = global_batch(self.batches[step], self.mesh)
            assert batch["input_ids"].shape[0] % self.mesh.size == 0 or self.mesh.shape["tensor"] > 1
            self.state, measured = self.program(self.state, batch)
            found.append(float(measured["loss"]))
        return found


@pytest.fixture(scope="module")
def trial_of(tmp_path_factory):
    """A trial at its first step, by the sizes of its mesh; each is compiled once."""
    tokenizer, made = make_tokenizer(tmp_path_factory.mktemp("tokenizer")), {}

    def trial_of(*sizes, config=None):
        if (sizes, config) not in made:
            made[sizes, config] = Trial(tokenizer, sizes, config)
        trial = made[sizes, config]
        trial.state = trial.begin()
        return trial

    return trial_of


@pytest.fixture(scope="module")
def single(trial_of):
    return trial_of(1, 1, 1).losses(0, STEPS)


LONG = [pytest.param(sizes, marks=pytest.mark.long) for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 4), (4, 1, 2))]


@pytest.mark.parametrize("sizes", [pytest.param((2, 2, 2), marks=pytest.mark.system), *LONG])
def test_every_mesh_has_the_losses_of_one_device(trial_of, single, sizes):
    trial = trial_of(*sizes)
    assert trial.mesh.size == np.prod(sizes)
    np.testing.assert_allclose(trial.losses(0, STEPS), single, rtol=1e-5)
    assert single[-1] < single[0]

    # The parameters and their moments are really split, not copied.
    _, fsdp, tensor = sizes
    layers = trial.state.params["deberta"]["encoder"]["layers"]
    query = layers["attention"]["self"]["query_proj"]["kernel"]
    assert query.sharding.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert query.addressable_shards[0].data.shape == (2, 32 // fsdp, 4 // tensor, 8)
    up = layers["intermediate"]["dense"]["kernel"]
    assert up.addressable_shards[0].data.shape == (2, 32 // fsdp, 64 // tensor)
    words = trial.state.params["deberta"]["embeddings"]["word_embeddings"]["embedding"]
    assert words.addressable_shards[0].data.shape == (408 // tensor, 32 // fsdp)
    adam = next(
        part
        for part in jax.tree.leaves(trial.state.opt_state, is_leaf=lambda n: hasattr(n, "mu"))
        if hasattr(part, "mu")
    )
    for moments in (adam.mu, adam.nu):
        assert jax.tree.map(lambda a: a.sharding, moments) == jax.tree.map(lambda a: a.sharding, trial.state.params)
    bytes_here = sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(trial.state.params))
    whole = sum(a.nbytes for a in jax.tree.leaves(trial.state.params))
    assert bytes_here < whole / (fsdp * tensor) * 1.25


def test_a_state_is_restored_on_other_devices(trial_of, single, tmp_path):
    first = trial_of(2, 2, 2)
    begun = first.losses(0, 3)
    checkpoints = Checkpoints(tmp_path / "state")
    checkpoints.save(3, first.state, {"note": [1.5, None]})
    # The write runs beside the training: what the buffers become must not reach the disk.
    first.losses(3, STEPS)
    checkpoints.close()
    second = trial_of(1, 1, 1)
    checkpoints = Checkpoints(tmp_path / "state")
    assert checkpoints.latest() == 3
    second.state, record = checkpoints.restore(3, second.state, second.shardings)
    checkpoints.close()
    assert record == {"note": [1.5, None]}
    assert int(second.state.step) == 3
    assert jax.tree.map(lambda a: a.sharding, second.state) == second.shardings
    np.testing.assert_allclose(begun + second.losses(3, STEPS), single, rtol=1e-5)


def test_a_saved_state_is_that_of_its_step_to_the_bit(trial_of, tmp_path):
    """Written beside a training that reuses the buffers."""
    trial = trial_of(1, 1, 1)
    checkpoints = Checkpoints(tmp_path / "state")
    trial.losses(0, 2)
    copy = jax.tree.map(np.array, trial.state)
    checkpoints.save(2, trial.state, {})
    trial.losses(2, 4)
    checkpoints.save(2, trial.state, {})  # the step is there already: nothing is written
    restored, _ = checkpoints.restore(2, trial.state, trial.shardings)
    checkpoints.close()
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), copy, restored)))


@pytest.mark.long
def test_dropout_follows_from_seed_and_step_and_is_the_same_on_every_mesh(trial_of):
    config = dataclasses.replace(TINY, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2, cls_dropout=0.2)
    found = []
    for sizes in ((1, 1, 1), (4, 1, 1)):
        trial = trial_of(*sizes, config=config)
        before = jax.tree.map(jnp.copy, trial.state)
        found.append(trial.losses(0, 2))
        trial.state = before
        assert trial.losses(0, 2) == found[-1]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
