"""Runs in progress, models, caches and prepared text that an older commit wrote still load and go on.

``tests/golden/older/make_older.py`` made them with the code of that commit, and recorded what it computed from them.
"""

import json
import re
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.data.cache import cached_features
from tests.made import log_of, stdout_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "older"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
RUNS = EXPECTED["runs"]
# Sums in float32 differ in their last bits between versions of XLA, and a few steps of training add to that.
CLOSE = {"rel": 1e-5, "abs": 1e-5}

pytestmark = pytest.mark.usefixtures("older", "one_device")


@pytest.fixture
def older(tmp_path, monkeypatch) -> Path:
    """The artefacts in a working directory of their own; their cache of tokens is the user's cache."""
    with tarfile.open(GOLDEN / "artefacts.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def assert_close(found, expected, where=""):
    """Equal but for the rounding of numbers, at every level of lists and objects."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            assert_close(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            assert_close(found[i], value, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, **CLOSE), where
    else:
        assert found == expected, where


def command_of(name: str) -> list[str]:
    """A run's command. Its implementation of attention, ``shift`` in the run's record, is now called ``xla``."""
    return ["xla" if word == "shift" else word for word in RUNS[name]["command"]]


def continue_run(name: str, err_of) -> None:
    """Runs the command of an interrupted run again, to the end that the older code came to."""
    run, output = RUNS[name], Path("stopped", name)
    printed = json.loads(stdout_of([*command_of(name), "--output", str(output)]))
    steps = run["log"][-1]["step"]
    assert re.search(rf"step {run['stopped_at']} of {steps}\b", err_of())
    session = json.loads((output / "sessions.jsonl").read_text().splitlines()[-1])
    assert (session["from_step"], session["to_step"]) == (run["stopped_at"], steps)
    assert printed.pop("output") == str(output)
    assert_close(printed, run["printed"])
    assert_close(log_of(output), run["log"])
    assert (output / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", pytest.param("lora", marks=pytest.mark.system)])
def test_a_fine_tuning_in_progress_goes_on(name, older, capsys):
    before = contents(older / "cache")
    record = json.loads((older / "stopped" / name / "experiment.json").read_text())
    assert record["runtime"]["attention"] == {"classification": "shift", "lora": "auto"}[name]
    continue_run(name, lambda: capsys.readouterr().err)
    after = contents(older / "cache")
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("name", EXPECTED["tokens"])
def test_cached_tokens_are_read_and_not_made_again(name, older):
    """Under the identity of that time; of a task whose fields have changed since, tokens are made once more."""

    def refuse():
        raise AssertionError("the texts are tokenized again")

    features = cached_features(EXPECTED["tokens"][name], refuse, older / "cache" / "deberta_jax")
    arrays = {path.stem: np.load(path) for path in (older / "cache" / "deberta_jax" / "tokens" / name).glob("*.npy")}
    assert {"ids", "types", "starts", "labels"} <= arrays.keys()
    for field, array in arrays.items():
        np.testing.assert_array_equal(getattr(features, field), array)


@pytest.mark.slow
def test_a_pretraining_in_progress_goes_on_from_its_prepared_text(capsys):
    continue_run("rtd", lambda: capsys.readouterr().err)


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_run_is_finished(name, capsys):
    before = contents(Path("finished", name))
    main([*command_of(name), "--output", f"finished/{name}"])
    out, err = capsys.readouterr()
    assert "finished" in err
    assert json.loads(out) == {"output": f"finished/{name}", **RUNS[name]["printed"]}
    assert contents(Path("finished", name)) == before


@pytest.mark.parametrize("model", EXPECTED["answers"])
def test_a_finished_model_gives_the_same_answers(model):
    data = "eval.conll" if "tokens" in model else "eval.csv"
    lines = stdout_of(["predict", "--model", model, "--input", data, "--output", "-"]).splitlines()
    assert_close([json.loads(line) for line in lines], EXPECTED["answers"][model])


def test_an_orbax_model_gives_the_same_answers():
    expected = EXPECTED["answers"]["finished/classification"]
    texts = [line.split(",")[0] for line in Path("eval.csv").read_text().splitlines()[1:]]
    answers = deberta_jax.pipeline("text-classification", "orbax")(texts)
    assert [answer["label"] for answer in answers] == [row["label"] for row in expected]
    scores = [row["probabilities"][row["label"]] for row in expected]
    np.testing.assert_allclose([answer["score"] for answer in answers], scores, atol=1e-5)


HEADS = {
    "stopped/classification/state": "sequence-classification",
    "finished/rtd/generator": "masked-lm",
    "finished/rtd/discriminator": "replaced-token-detection",
}


@pytest.mark.parametrize("model", EXPECTED["parameters"])
def test_the_same_parameters_are_read_under_the_same_paths(model):
    _, params = deberta_jax.from_pretrained(model, head=HEADS[model])
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    found = {"/".join(k.key for k in path): float(np.sum(np.float64(leaf) ** 2)) for path, leaf in leaves}
    assert found == pytest.approx(EXPECTED["parameters"][model], rel=1e-9)


def test_prepared_text_is_complete_for_the_same_command():
    before = contents(Path("prepared"))
    assert stdout_of(EXPECTED["prepare"]["command"]) == EXPECTED["prepare"]["printed"]
    assert contents(Path("prepared")) == before
