"""Where results go: pipes, links, devices, disks that refuse, homes that are missing, and two runs at once."""

import ctypes
import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deberta_jax import storage
from deberta_jax.cli.main import main
from tests.made import start, stdout_of, write_table

TEXTS = [("ban bast – Zoë", "pos"), ("ten 東京 lork", "neg")]


@pytest.fixture
def texts(tmp_path) -> Path:
    return write_table(tmp_path / "texts.jsonl", ("sentence", "kind"), TEXTS)


def predict(model, texts, output) -> list[str]:
    return ["predict", "--model", str(model), "--input", str(texts), "--output", str(output), "--text", "sentence"]


def refusal(arguments, capsys) -> str:
    """The one line of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_output_to_a_pipe_a_link_and_a_device(trained, texts, tmp_path):
    expected = stdout_of(predict(trained.directory, texts, "-"))
    assert [json.loads(line)["label"] in ("pos", "neg") for line in expected.splitlines()] == [True, True]

    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    assert stdout_of(predict(trained.directory, texts, pipe)) == ""
    reader.join(20)
    assert received == [expected]
    assert stat.S_ISFIFO(pipe.stat().st_mode)

    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "real.jsonl")
    stdout_of(predict(trained.directory, texts, link))
    assert link.is_symlink()
    assert (tmp_path / "real.jsonl").read_text(encoding="utf-8") == expected

    ours, theirs = os.openpty()  # a device of our own, as /dev/null is one
    try:
        stdout_of(predict(trained.directory, texts, os.ttyname(theirs)))
        assert os.read(ours, 1 << 16).decode().replace("\r\n", "\n") == expected
        assert stat.S_ISCHR(os.stat(os.ttyname(theirs)).st_mode)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.system
@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_input_from_dev_stdin_and_utf_8_in_any_locale(trained, texts, encoding):
    arguments = predict(trained.directory, "/dev/stdin", "/dev/stdout")
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": encoding, "LC_ALL": "C", "PYTHONUTF8": "0"}
    with texts.open("rb") as file:
        command = [sys.executable, "-m", "deberta_jax.cli.main", *arguments[:-3], "-", *arguments[-2:]]
        to_dash = subprocess.run(command, stdin=file, capture_output=True, check=True, env=env).stdout
    with texts.open("rb") as file:
        command = [sys.executable, "-m", "deberta_jax.cli.main", *arguments]
        by_name = subprocess.run(command, stdin=file, capture_output=True, check=True, env=env).stdout
    assert to_dash == by_name
    assert [json.loads(line)["label"] in ("pos", "neg") for line in to_dash.decode("utf-8").splitlines()] == [
        True,
        True,
    ]


def test_words_beyond_ascii_are_bytes_of_utf_8(tmp_path):
    """What a command prints, whatever the locale says that its standard output takes."""
    table = write_table(tmp_path / "a.csv", ("text", "Größe"), [("x", "1")])
    code = (
        "import sys; from deberta_jax.cli import main, predict\n"
        "predict.run = lambda args: print(args.input)\n"
        "main.main(['predict', '--model', 'm', '--input', sys.argv[1], '--output', '-'])"
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(storage.__file__).parents[2])}
    named = str(table) + "Größe"
    out = subprocess.run([sys.executable, "-c", code, named], capture_output=True, check=True, env=env).stdout
    assert out == named.encode("utf-8") + b"\n"


def without_override() -> None:
    """Makes permissions count for the administrator too, in the process that is about to start."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    drop, override, read_search = 24, 1, 2
    for capability in (override, read_search):
        prctl(drop, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_directory_that_cannot_be_written_is_refused_before_the_model_is_read(texts, tmp_path, what):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    output = closed / "out"
    arguments = {
        "file": predict(tmp_path / "no-model", texts, output),
        "directory": ["convert", str(tmp_path / "no-model"), str(output), "--to", "hf"],
    }[what]
    env = os.environ | {"PYTHONPATH": str(Path(storage.__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "deberta_jax.cli.main", *arguments]
    done = subprocess.run(command, env=env, preexec_fn=without_override, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert f"nothing can be written in {closed}" in line
    assert "Permission denied" in line
    assert "change its permissions" in line


def test_the_output_is_refused_before_the_model_is_read(texts, tmp_path, capsys):
    missing = tmp_path / "no-model"
    for output, expected in (
        (tmp_path / "none" / "out.jsonl", "its directory does not exist; make it first"),
        (tmp_path, "is a directory; give a file"),
        (texts / "out.jsonl", "its directory does not exist"),
        (tmp_path / ("x" * 300), "File name too long; give a shorter name"),
    ):
        line = refusal(predict(missing, texts, output), capsys)
        assert line.startswith("error: --output ")
        assert expected in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl"]


def test_a_failed_prediction_leaves_the_file_of_the_one_before(texts, tmp_path, capsys):
    output = tmp_path / "out.jsonl"
    output.write_text("before")
    assert "no-model" in refusal(predict(tmp_path / "no-model", texts, output), capsys)
    assert output.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "texts.jsonl"]


def test_an_output_that_is_an_input_is_refused(trained, texts, tmp_path, capsys):
    before = texts.read_bytes()
    (tmp_path / "other-name.jsonl").symlink_to(texts)
    for output in (texts, tmp_path / "other-name.jsonl"):
        assert "is the input; give another file" in refusal(predict(trained.directory, texts, output), capsys)
    config = (trained.directory / "config.json").read_bytes()
    line = refusal(predict(trained.directory, texts, trained.directory / "config.json"), capsys)
    assert "is a file of the model; give another file" in line
    assert texts.read_bytes() == before
    assert (trained.directory / "config.json").read_bytes() == config


def test_closed_standard_streams(texts, tmp_path):
    """Each as a shell closes it: ``<&-``, ``>&-``, ``2>&-``."""
    env = os.environ | {"PYTHONPATH": str(Path(storage.__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "deberta_jax.cli.main", *predict(tmp_path / "no-model", texts, "-")]

    def run(number: int) -> subprocess.CompletedProcess[str]:
        close = lambda: os.close(number)
        return subprocess.run(command, env=env, preexec_fn=close, capture_output=True, text=True, check=False)

    done = run(1)
    assert (done.returncode, done.stderr.splitlines()) == (
        2,
        ["error: standard output is closed; results could not be written"],
    )
    done = run(2)
    assert (done.returncode, done.stdout) == (2, ""), "messages are not results"


@pytest.mark.slow
@pytest.mark.parametrize("home", ["missing", "file"])
def test_without_a_home_a_run_goes_on_without_its_cache_and_says_so(task, tmp_path, monkeypatch, capsys, home):
    """A read-only home refuses in the same way; for the administrator, who runs the tests of many, nothing is."""
    place = tmp_path / "home"
    if home == "file":
        place.mkdir()
        (place / ".cache").write_text("no directory")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(place))
    main(task.arguments(tmp_path / "run", "--epochs", "1"))
    out, err = capsys.readouterr()
    assert json.loads(out)["accuracy"] >= 0
    told = [line for line in err.splitlines() if "not kept for the next run" in line]
    assert told
    assert home == "missing" or str(place / ".cache") in told[0]
    assert not (place / ".cache" / "deberta_jax").exists()


@pytest.mark.slow
def test_a_damaged_cache_is_not_used(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    main(task.arguments(tmp_path / "first", "--epochs", "1"))
    expected = json.loads(capsys.readouterr().out)
    entries = list((tmp_path / "cache").rglob("*.npy"))
    assert entries
    for path in entries:
        path.write_bytes(path.read_bytes()[:50])
    main(task.arguments(tmp_path / "second", "--epochs", "1"))
    out, err = capsys.readouterr()
    assert json.loads(out) | {"output": ""} == expected | {"output": ""}
    assert err.count("it is made anew") == 2, "of the data to train on and of those held out"


def test_a_run_directory_that_another_process_holds(task, tmp_path, capsys):
    run = tmp_path / "run"
    with storage.locked_directory("--output", run):
        line = refusal(task.arguments(run, "--epochs", "1"), capsys)
    assert line == f"error: --output {run}: another process is writing there; wait for its end"
    assert not run.exists()


@pytest.mark.slow
@pytest.mark.system
def test_of_two_runs_at_once_the_second_is_refused_and_the_first_ends_well(task, tmp_path):
    run = tmp_path / "run"
    first = start(task.arguments(run, "--epochs", "60"))
    until = time.monotonic() + 120
    while not (run / "log.jsonl").is_file():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    second = start(task.arguments(run, "--epochs", "60"))
    out, err = second.communicate(timeout=120)
    assert second.returncode == 2, err
    assert out == ""
    assert err.splitlines()[-1] == f"error: --output {run}: another process is writing there; wait for its end"
    out, err = first.communicate(timeout=300)
    assert first.returncode == 0, err
    assert json.loads(out)["accuracy"] > 0.8
    assert not (run / storage.LOCK).exists()
