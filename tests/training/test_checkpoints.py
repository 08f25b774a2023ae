"""States on disk: those that earlier versions wrote are restored, and ours have the same names."""

import asyncio
import dataclasses
import gc
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

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


def leave_writes_behind(directory):
    """Closes an event loop while TensorStore still writes for it, as Orbax does when one of several writes fails."""

    async def write_and_fail():
        metadata = {"shape": [400, 400], "chunks": [20, 20], "dtype": "<f4"}
        spec = {"driver": "zarr", "kvstore": f"file://{directory}/array", "metadata": metadata}
        array = await ts.open(spec, create=True)  # pyright: ignore[reportGeneralTypeIssues]
        left = asyncio.ensure_future(write(array))
        await asyncio.sleep(0)
        raise OSError(f"another write than {left} failed")

    async def write(array):
        await array.write(np.ones((400, 400), np.float32))

    loop = asyncio.new_event_loop()
    with pytest.raises(OSError, match="another write"):
        loop.run_until_complete(write_and_fail())
    loop.close()
    gc.collect()


@pytest.mark.parametrize("hidden", [False, True])
def test_writes_that_end_after_a_failed_one_print_nothing(tmp_path, monkeypatch, hidden):
    printed = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: printed.append(error[1]))
    monkeypatch.setattr(sys, "unraisablehook", lambda error: printed.append(error.exc_value))
    checkpoints = Checkpoints(tmp_path / "states") if hidden else None
    leave_writes_behind(tmp_path)
    deadline = time.monotonic() + (2 if hidden else 30)
    while not printed and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [str(error) for error in printed] == ([] if hidden else ["Event loop is closed"])
    if checkpoints is not None:
        checkpoints.close()
