"""Programs are kept on disk for later processes, in one directory that a setting of JAX moves or turns off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deberta_jax.compilation import use_compilation_cache
from deberta_jax.errors import InputError
from tests.weights import bucket

COUNT = """
import json, sys
import jax
misses = []
jax.monitoring.register_event_listener(lambda name, **_: misses.append(name.endswith("/cache_misses")))
{before}
from deberta_jax.compilation import use_compilation_cache
used = use_compilation_cache({given!r})
jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(7)).block_until_ready()
print(json.dumps([str(used), sum(misses)]))
"""


def run(home: Path, before: str = "", says: str = "", given: str = "", **environment: str) -> tuple[str, int]:
    """What the function returns in a new process, and how many programs were compiled for the cache."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XDG_"))}
    found = subprocess.run(
        [sys.executable, "-c", COUNT.format(before=before, given=given)],
        env=clean | {"HOME": str(home), "JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == says
    directory, misses = json.loads(found.stdout)
    return directory, misses


def test_a_second_process_compiles_nothing(tmp_path):
    directory, misses = run(tmp_path)
    assert Path(directory).parent == tmp_path / ".cache" / "deberta_jax" / "programs"
    assert misses > 0
    assert run(tmp_path) == (directory, 0)


def test_programs_are_kept_after_others_were_compiled(tmp_path):
    _, misses = run(tmp_path, "jax.numpy.zeros(3).block_until_ready()")
    assert misses > 0


@pytest.mark.parametrize("setting", ["", "elsewhere"])
def test_the_setting_of_jax_decides(tmp_path, setting):
    named = str(tmp_path / setting) if setting else ""
    directory, _ = run(tmp_path, JAX_COMPILATION_CACHE_DIR=named, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert directory == "None"
    assert not (tmp_path / ".cache").exists()
    assert bool(setting) == any(tmp_path.rglob("*-cache"))


def test_a_directory_of_a_setting_that_cannot_be_written_is_named_once(tmp_path):
    (tmp_path / "file").write_text("a file where the directory belongs")
    given = str(tmp_path / "file")
    says = f"JAX's compilation cache {given} cannot be written; compiled programs are not kept\n"
    assert run(tmp_path, says=says, JAX_COMPILATION_CACHE_DIR=given)[0] == "None"


def test_a_directory_of_the_program_is_kept(tmp_path):
    directory, _ = run(tmp_path, f"jax.config.update('jax_compilation_cache_dir', {str(tmp_path / 'own')!r})")
    assert directory == "None"
    assert not (tmp_path / ".cache").exists()


def test_a_directory_that_others_can_write_is_not_used(tmp_path):
    directory, _ = run(tmp_path)
    assert Path(directory).stat().st_mode & 0o777 == 0o700
    Path(directory).chmod(0o770)
    assert run(tmp_path) == ("None", 0)


@pytest.mark.parametrize("blocked", [".cache", ".cache/deberta_jax"])
def test_a_home_that_cannot_be_written_changes_nothing(tmp_path, blocked):
    (tmp_path / blocked).parent.mkdir(exist_ok=True)
    (tmp_path / blocked).write_text("a file where the directory belongs")
    assert run(tmp_path) == ("None", 0)


def test_a_directory_that_is_given_goes_before_all_settings(tmp_path):
    given = str(tmp_path / "given")
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "named"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert run(tmp_path, given=given, **environment)[1] > 0
    assert run(tmp_path, given=given, **environment)[1] == 0
    assert list((tmp_path / "given").glob("*-cache"))
    assert not (tmp_path / "named").exists()


@pytest.mark.slow
def test_hosts_share_programs_in_a_bucket(tmp_path):
    pytest.importorskip("gcsfs")
    with bucket.running() as served:
        environment = bucket.environment(served) | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        homes = [tmp_path / name for name in "ab"]
        misses = []
        for home in homes:
            home.mkdir()
            misses.append(run(home, given="gs://bucket/programs", **environment)[1])
            assert not list(home.iterdir())
        names = served.names()
    assert misses[0] > 0
    assert misses[1] == 0
    assert names
    assert all(name.startswith("bucket/programs/jit_") and name.endswith("-cache") for name in names)


@pytest.mark.parametrize(
    ("given", "message"),
    [("file/x", "--compile-cache {}: {} is a file"), ("gs:/bucket/x", "--compile-cache {}: pathlib has cut")],
)
def test_a_cache_that_cannot_be_used_is_refused(tmp_path, monkeypatch, given, message):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        use_compilation_cache(given)
    assert str(refused.value).startswith(message.format(given, tmp_path / "file")[:40])


@pytest.mark.system
def test_a_second_predict_compiles_nothing(tmp_path, trained, task):
    script = COUNT.split("{before}")[0] + (
        "from deberta_jax.cli.main import main\n"
        f"main(['predict', '--model', {str(trained.directory)!r}, '--input', {str(task.home / 'eval.csv')!r}, "
        "'--output', '-'])\n"
        "print(sum(misses), file=sys.stderr)\n"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XDG_", "XLA_"))}
    given = {"env": clean | {"HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}, "capture_output": True, "text": True}
    first, second = (subprocess.run([sys.executable, "-c", script], **given) for _ in range(2))
    assert first.returncode == second.returncode == 0, second.stderr
    assert first.stdout == second.stdout != ""
    assert int(first.stderr.splitlines()[-1]) > 0
    assert int(second.stderr.splitlines()[-1]) == 0
