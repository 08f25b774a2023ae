"""The building blocks of a training loop of one's own: optimizer, sharded states, batches, checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax import DebertaForSequenceClassification, init_params, losses, sharding, training
from deberta_jax.data.features import Features, make_features
from deberta_jax.errors import InputError
from tests.made import LABELS, TINY, make_tokenizer, rows

KEY = jax.random.key(0)


def test_a_mask_by_rank_decays_stacked_biases_and_ours_does_not():
    """With zero gradients only the decay moves a parameter; optax's usual ``ndim > 1`` moves the layers' biases."""
    ones = jax.tree.map(
        lambda s: jnp.ones(s.shape), jax.eval_shape(lambda: init_params(DebertaForSequenceClassification(TINY), KEY))
    )
    zeros = jax.tree.map(jnp.zeros_like, ones)

    def moved(optimizer):
        updates = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(zeros, ones)
        found = {
            jax.tree_util.keystr(k, simple=True, separator="/"): u
            for k, u in jax.tree_util.tree_flatten_with_path(updates)[0]
        }
        return {path for path, update in found.items() if np.abs(update).max() > 0}

    by_rank = moved(optax.adamw(1.0, weight_decay=0.1, mask=lambda tree: jax.tree.map(lambda a: a.ndim > 1, tree)))
    ours = moved(training.adamw(1.0, weight_decay=0.1))
    name = "deberta/encoder/layers/attention/output/LayerNorm/scale"
    biases = {path for path in by_rank if path.endswith(("/bias", "/scale"))}
    assert name in biases
    assert len(biases) == 10, "all of a layer"
    assert ours == by_rank - biases


@pytest.fixture
def made(tmp_path_factory):
    """A tokenizer and the features of 24 labelled texts."""
    tokenizer = make_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    texts, labels = zip(*rows(24, seed=4), strict=True)
    numbers = np.asarray([LABELS.index(label) for label in labels], np.int32)
    return tokenizer, make_features(tokenizer, texts, None, max_length=16, labels=numbers)


class Loop:
    """A loop on the mesh in use, or on one device without one."""

    def __init__(self, made):
        tokenizer, features = made
        model = DebertaForSequenceClassification(TINY)

        def loss(params, batch, key):
            inputs = training.model_inputs(batch)
            out = model.apply({"params": params}, **inputs, deterministic=False, rngs={"dropout": key})
            return {"task": losses.cross_entropy(out.logits, batch["labels"])}

        params = jax.jit(lambda: init_params(model, KEY))()
        if sharding.current_mesh() is not None:
            params = jax.device_put(params, training.parameter_shardings(model))
        self.data = training.batches(features, tokenizer.pad_id, batch_size=8, epochs=2, row_length=64)
        optimizer = training.adamw(training.learning_rate_schedule(1e-2, len(self.data)), layer_decay=0.9)
        self.state, self.step = training.init_state(params, optimizer), training.train_step(loss, optimizer)

    def take(self, first, last):
        """The losses of the steps from ``first`` to before ``last``."""
        found = []
        for i in range(first, last):
            self.state, metrics = self.step(self.state, self.data[i])
            found.append(float(metrics["loss"]))
        return found


@pytest.mark.slow
def test_losses_are_the_same_on_a_mesh_and_from_a_state_of_another_number_of_devices(made, tmp_path):
    one = Loop(made)
    alone = one.take(0, 2)
    with training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, one.state, {"position": one.data.position(2)})
        alone += one.take(2, 6)
    assert np.ptp(alone) > 1e-3, "the updates change them"

    with sharding.use(sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])):
        four = Loop(made)
        np.testing.assert_allclose(four.take(0, 6), alone, rtol=1e-5)
        with training.Checkpoints(str(tmp_path)) as checkpoints:
            saved = checkpoints.restore_latest(four.state)
        assert saved is not None
        step, state, record = saved
        assert (step, record) == (2, {"position": 16})
        assert jax.tree.map(lambda a: a.sharding, state) == jax.tree.map(lambda a: a.sharding, four.state)
        four.state = state
        np.testing.assert_allclose(four.take(2, 6), alone[2:], rtol=1e-5)

    kernel = lambda tree: tree["deberta"]["encoder"]["layers"]["intermediate"]["dense"]["kernel"]
    moments = next(part for part in four.state.opt_state if hasattr(part, "mu"))
    for tree in (four.state.params, moments.mu, moments.nu):
        whole, shard = kernel(tree).shape, kernel(tree).addressable_shards[0].data.shape
        assert shard == (whole[0], whole[1] // 2, whole[2] // 2), "embed over fsdp, mlp over tensor"


def test_the_state_of_an_optimizer_is_sharded_as_the_parameters():
    mesh = sharding.make_mesh(fsdp=4)
    model = DebertaForSequenceClassification(TINY)
    optimizer = training.adamw(1e-3)
    with sharding.use(mesh):
        placed = training.parameter_shardings(model)
        params = jax.jit(lambda: init_params(model, KEY), out_shardings=placed)()
        moments = training.init_optimizer(optimizer, params)[1]
    assert jax.tree.map(lambda a: a.sharding, moments.mu) == placed
    assert jax.tree.map(lambda a: a.sharding, moments.nu) == placed
    held = lambda tree: sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))
    total = sum(a.nbytes for a in jax.tree.leaves(moments.mu))
    assert held(moments.mu) < 0.3 * total


def test_wrong_uses_are_refused():
    with pytest.raises(InputError, match="there is no mesh"):
        training.parameter_shardings(DebertaForSequenceClassification(TINY))
    odd = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(InputError, match="the mesh has the axes"), sharding.use(odd):
        pass
    optimizer = training.adamw(1e-3)
    params = {"dense": {"kernel": np.ones((2, 2), np.float32)}}
    step = training.train_step(lambda p, batch, key: batch["x"].sum(), optimizer)  # pyright: ignore
    with pytest.raises(InputError, match="must return a dict"):
        step(training.init_state(params, optimizer), {"x": np.ones((2, 2), np.float32)})


def test_every_public_name_exists():
    assert training.__all__ == sorted(training.__all__)
    for name in training.__all__:
        assert getattr(training, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = training.nothing  # pyright: ignore


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate=0: must be at least 1"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"epochs": 0}, "epochs=0: must be at least 1"),
    ],
)
def test_batches_that_cannot_be(options, message):
    features = Features(ids=np.ones(3, np.int32), types=np.zeros(3, np.int8), starts=np.arange(4))
    with pytest.raises(InputError, match=message):
        training.batches(features, 0, **options)
