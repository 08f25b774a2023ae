"""Settings of every test: eight simulated CPU devices, a cache of programs, strict shapes, where the real data lies."""

import json
import logging
import os
from pathlib import Path

# Read when jax is imported, so it stands before every import that could do so. Compiling takes most of the tests' time:
# LLVM's optimizations are off, and programs are kept for the next process and the next run.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
    )
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).resolve().parents[1] / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Tests read the names of operations in compiled programs, which are metadata.
os.environ.setdefault("JAX_COMPILATION_CACHE_INCLUDE_METADATA_IN_KEY", "true")
# What XLA itself would keep differs between machines.
os.environ.setdefault("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "none")

import jax
import jaxtyping
import pytest

from deberta_jax.sharding import make_mesh
from deberta_jax.training import finetune_data, pretraining
from tests.made import Task, Trained, alone, binary_files, blank_model, stdout_of

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--first-cases", action="store_true", help="run the first case of each test, and all marked every_case"
    )


def pytest_collection_modifyitems(config, items) -> None:
    if not config.getoption("--first-cases"):
        return
    firsts = {item.nodeid.partition("[")[0]: item for item in reversed(items)}
    is_left = lambda item: (
        firsts[item.nodeid.partition("[")[0]] is not item and not item.get_closest_marker("every_case")
    )
    left = [item for item in items if is_left(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]


@pytest.fixture
def unchecked(monkeypatch) -> None:
    """Calls as users make them: without the tests' check of annotated types, which would refuse first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True)
def messages_as_before():
    """The command line sends messages to standard error; the tests after it find them where pytest looks."""
    log = logging.getLogger("deberta_jax")
    level, propagate, handlers = log.level, log.propagate, log.handlers[:]
    yield
    log.setLevel(level)
    log.propagate, log.handlers = propagate, handlers


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real test data: ``DEBERTA_JAX_TEST_DATA``, else ``../shared/data`` beside the repository."""
    named = os.environ.get("DEBERTA_JAX_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real test data: {folder} does not exist; set DEBERTA_JAX_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def session_directory(tmp_path_factory) -> Path:
    """A directory that all processes of this test session share."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def task(session_directory) -> Task:
    """The binary task, made by the first process that asks."""
    home = session_directory / "task"
    with alone(session_directory):
        if not home.is_dir():
            home.mkdir()
            blank_model(home / "blank")
            binary_files(home)
    return Task(home)


@pytest.fixture(scope="session")
def trained(session_directory, task) -> Trained:
    """A run of the task to its end, by the first process that asks."""
    directory, printed = session_directory / "trained", session_directory / "printed.json"
    with alone(session_directory):
        if not printed.is_file():
            printed.write_text(stdout_of(task.arguments(directory)))
    return Trained(task, directory, json.loads(printed.read_text()))


@pytest.fixture
def one_device(monkeypatch):
    """Runs train on one device: without partitions and shards their programs compile in half the time."""
    for module in (finetune_data, pretraining):
        monkeypatch.setattr(module, "mesh_of", lambda runtime: make_mesh(devices=jax.devices()[:1]))
