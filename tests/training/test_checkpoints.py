"""States on disk: those that earlier versions wrote are restored, and ours have the same names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.state import TrainState, make_state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Earlier:
    """The state as version 0.1 declared it."""

    step: Any
    params: Any
    opt_state: Any
    rng: Any
    mean: Any


def manager(directory):
    return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(create=True))


def states():
    params = {"a": {"w": jnp.arange(6.0).reshape(2, 3)}, "b": jnp.ones(4)}
    state = make_state(params, optax.adam(1e-3), 5, ema=0.9)
    state = dataclasses.replace(state, ema_params=jax.tree.map(lambda p: p + 7, params))
    return state, Earlier(*(getattr(state, field.name) for field in dataclasses.fields(state)))


def test_a_state_of_an_earlier_version_is_restored(tmp_path):
    state, earlier = states()
    with manager(tmp_path / "state") as writer:
        items = ocp.args.Composite(state=ocp.args.StandardSave(earlier), record=ocp.args.JsonSave({"run": "x"}))
        writer.save(3, args=items)
    checkpoints = Checkpoints(tmp_path / "state")
    assert checkpoints.latest() == 3
    found, record = checkpoints.restore(3, state, jax.tree.map(lambda a: a.sharding, state))
    checkpoints.close()
    assert record == {"run": "x"}
    assert isinstance(found, TrainState)
    jax.tree.map(np.testing.assert_array_equal, found, state)


def test_a_state_has_the_names_of_earlier_versions_on_disk(tmp_path):
    state, earlier = states()
    checkpoints = Checkpoints(tmp_path / "ours")
    checkpoints.save(3, state, {})
    checkpoints.close()
    with manager(tmp_path / "theirs") as writer:
        writer.save(3, args=ocp.args.Composite(state=ocp.args.StandardSave(earlier)))
    names = [(tmp_path / name / "3" / "state" / "_METADATA").read_text() for name in ("ours", "theirs")]
    assert names[0] == names[1]
    assert '"mean"' in names[0]
