"""A damaged state is never restored: the older one is, where two are kept, or one line says what to delete."""

import dataclasses
import json
import logging
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from deberta_jax.errors import InputError
from deberta_jax.training.checkpoints import Checkpoints
from deberta_jax.training.state import make_state


def state_at(step, *, width=3, dtype=jnp.float32):
    params = {"a": {"w": jnp.arange(2.0 * width, dtype=dtype).reshape(2, width) + step}, "b": jnp.ones(4, dtype)}
    return dataclasses.replace(make_state(params, optax.adam(1e-3), 5), step=jnp.int32(step))


def shardings_of(state):
    return jax.tree.map(lambda array: array.sharding, state)


def equal(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """States of the steps 6 and 9."""
    directory = tmp_path_factory.mktemp("states") / "state"
    checkpoints = Checkpoints(directory, keep=2)
    for step in (3, 6, 9):
        checkpoints.save(step, state_at(step), {"run": "x", "position": step})
    checkpoints.close()
    assert sorted(path.name for path in directory.iterdir()) == ["6", "9"]
    return directory


@pytest.fixture
def states(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "state", copy_function=shutil.copy)


def restored(directory, like=None):
    """The step that is restored, after a comparison with what was saved."""
    like = like or state_at(0)
    checkpoints = Checkpoints(directory, keep=2)
    try:
        found = checkpoints.restore_latest(like, shardings_of(like), lambda r: None if "run" in r else "no run")
    finally:
        checkpoints.close()
    if found is None:
        return None
    step, state, record = found
    assert equal(state, state_at(step))
    assert record == {"run": "x", "position": step}
    return step


def arrays(step):
    return max((path for path in (step / "state").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def replaced(path, content):
    assert path.is_file()
    path.write_text(content)


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def emptied(step):
    shutil.rmtree(step)
    step.mkdir()


def piped(path):
    path.unlink()
    os.mkfifo(path)


DAMAGE = {
    "an item is missing": lambda step: shutil.rmtree(step / "state"),
    "the record is missing": lambda step: shutil.rmtree(step / "record"),
    "an item is a file": lambda step: (shutil.rmtree(step / "state"), (step / "state").write_text("x")),
    "the metadata is missing": lambda step: (step / "state" / "_METADATA").unlink(),
    "the metadata is no JSON": lambda step: replaced(step / "state" / "_METADATA", "{x"),
    "the metadata is empty": lambda step: replaced(step / "state" / "_METADATA", "{}"),
    "an array is cut": lambda step: os.truncate(arrays(step), arrays(step).stat().st_size // 2),
    "an array is missing": lambda step: arrays(step).unlink(),
    "an array has another bit": lambda step: flipped(arrays(step)),
    "the manifest has another bit": lambda step: flipped(step / "state" / "manifest.ocdbt"),
    "the manifest is a pipe": lambda step: piped(step / "state" / "manifest.ocdbt"),
    "the record is no JSON": lambda step: replaced(step / "record" / "metadata", "{x"),
    "the record is a list": lambda step: replaced(step / "record" / "metadata", "[1]"),
    "the record has other keys": lambda step: replaced(step / "record" / "metadata", "{}"),
    "the directory is empty": emptied,
    "the metadata of the step is missing": lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
    "the list of digests has another bit": lambda step: flipped(step / "checksums.json"),
}
# What cannot be noticed, or harms nothing, in a state without a list.
ONLY_WITH_A_LIST = {
    "an array has another bit",
    "the manifest is a pipe",
    "the metadata of the step is missing",
    "the list of digests has another bit",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_older_state_is_used_and_a_line_says_so(damage, states, caplog, capfd):
    DAMAGE[damage](states / "9")
    assert restored(states) == 6
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith(f"{states / '9'}: damaged (")
    assert "going on from the older state of step 6" in line
    assert "\n" not in line
    assert sorted(path.name for path in states.iterdir()) == ["6", "9.damaged"]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE)
def test_without_an_older_state_one_line_says_what_to_delete(damage, states, capfd):
    shutil.rmtree(states / "6")
    DAMAGE[damage](states / "9")
    with pytest.raises(InputError) as raised:
        restored(states)
    line = str(raised.value)
    assert line.startswith(f"{states}: the state of step 9 is damaged, and there is no older one (step 9: ")
    assert f"Delete {states} to train from the first step again" in line
    assert len(line) < 1000
    assert [path.name for path in states.iterdir()] == ["9"], "nothing is destroyed"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - ONLY_WITH_A_LIST))
def test_damage_is_one_line_for_a_state_without_a_list_too(damage, states, caplog, capfd):
    """As earlier versions wrote them."""
    for step in ("6", "9"):
        (states / step / "checksums.json").unlink()
    DAMAGE[damage](states / "9")
    assert restored(states) == 6
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    assert "Traceback" not in capfd.readouterr().err


def test_metadata_that_orbax_cannot_open(states, caplog):
    metadata = states / "9" / "_CHECKPOINT_METADATA"
    metadata.write_text(json.dumps({"commit_timestamp_nsecs": 10**40}))
    copy = shutil.copytree(states, states.with_name("copy"))
    assert restored(states) == 6
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "damaged (_CHECKPOINT_METADATA is of another size)" in line
    shutil.rmtree(copy / "6")
    with pytest.raises(InputError, match=r"\(step 9: _CHECKPOINT_METADATA is of another size\); delete that state"):
        restored(copy)
    (copy / "9" / "checksums.json").unlink()
    with pytest.raises(InputError, match=r"the metadata of a state is damaged \(.*\); delete that state"):
        restored(copy)


def test_both_damaged(states):
    for step in ("6", "9"):
        flipped(arrays(states / step))
    with pytest.raises(InputError, match=r"the older ones are so too \(step 9: .*; step 6: "):
        restored(states)


@pytest.mark.parametrize("like", [{"width": 4}, {"dtype": jnp.bfloat16}])
def test_arrays_of_another_run_are_refused(like, states):
    with pytest.raises(InputError, match=r"step 9: opt_state/0/mu/a/w is float32 \[2, 3\], this run has "):
        restored(states, state_at(0, **like))


@pytest.mark.parametrize(
    "name", ["notes.txt", "12", "abc/x", "-5/x", "0012/x", "x_12/x", "12.orbax-checkpoint-tmp/x", "3.damaged/x"]
)
def test_foreign_files_and_directories_do_no_harm(name, states):
    (states / name).parent.mkdir(exist_ok=True)
    (states / name).write_text("x")
    assert restored(states) == 9


def test_training_goes_on_after_a_damaged_state(states):
    flipped(arrays(states / "9"))
    checkpoints = Checkpoints(states, keep=2)
    step, *_ = checkpoints.restore_latest(state_at(0), shardings_of(state_at(0)), lambda record: None)
    assert step == 6
    checkpoints.save(9, state_at(9), {"run": "x", "position": 9})
    checkpoints.close()
    assert sorted(path.name for path in states.iterdir()) == ["6", "9", "9.damaged"]
    assert restored(states) == 9


def test_orbax_alone_restores_a_state_with_its_list(states):
    assert json.loads((states / "9" / "checksums.json").read_text())["files"]
    with ocp.CheckpointManager(states) as manager:
        assert manager.latest_step() == 9
        found = manager.restore(9, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
        assert manager.restore(9, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]["position"] == 9
    np.testing.assert_array_equal(found["state"]["params"]["a"]["w"], state_at(9).params["a"]["w"])
    with ocp.StandardCheckpointer() as checkpointer:
        np.testing.assert_array_equal(checkpointer.restore(states / "9" / "state")["step"], 9)


def test_a_disk_that_is_full_is_one_line_without_tracebacks(states, capfd):
    checkpoints = Checkpoints(states, keep=2)
    large = state_at(12)
    # Random values do not compress.
    large = dataclasses.replace(large, params={"w": jax.random.normal(jax.random.key(0), (500, 100))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        checkpoints.save(12, large, {"run": "x", "position": 12})
        with pytest.raises(InputError, match=r"could not be written .* the last complete one is of step 9"):
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Traceback" not in capfd.readouterr().err
    assert restored(states) == 9
