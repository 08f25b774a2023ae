"""Experiments as Python files, and the front of the command line."""

import dataclasses
from pathlib import Path

import pytest

import deberta_jax
from deberta_jax.cli.configfile import experiment_arguments, load_config_file
from deberta_jax.cli.main import COMMANDS, main
from deberta_jax.errors import InputError
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import Finetune, PretrainMLM, PretrainRTD

FILE = (
    "from deberta_jax.training.experiment import Finetune\ndef get_config():\n    return Finetune(epochs=7, seed=5)\n"
)


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
@pytest.mark.parametrize("first", [True, False])
def test_arguments_override_the_file(tmp_path, form, first):
    path = tmp_path / "experiment.py"
    path.write_text(FILE)
    config, more = [word.format(path) for word in form], ["--epochs", "2", "--learning-rate", "0.5"]
    found = experiment_arguments(Finetune, ["finetune", *(config + more if first else more + config)])
    assert (found.epochs, found.seed, found.optimization.learning_rate) == (2, 5, 0.5)
    assert experiment_arguments(Finetune, ["finetune", *config]) == Finetune(epochs=7, seed=5)
    assert experiment_arguments(Finetune, ["finetune"]) == Finetune()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.py", None, "no such file"),
        ("a.txt", FILE, "give a Python file"),
        ("a.py", "x = 1\n", r"has no function get_config\(\)"),
        ("a.py", "import no_such_module\n", r"a\.py: ModuleNotFoundError: No module named 'no_such_module'"),
        ("a.py", "def get_config(:\n", r"a\.py: SyntaxError: "),
        ("a.py", "def get_config():\n    return {}['x']\n", r"a\.py: KeyError: 'x'"),
        ("a.py", "def get_config():\n    return {}\n", "gives dict, expected Finetune"),
    ],
)
def test_files_that_are_no_experiments(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load_config_file(str(tmp_path / name), Finetune)


def test_another_kind_of_experiment(tmp_path):
    (tmp_path / "a.py").write_text(FILE)
    with pytest.raises(InputError, match="gives Finetune, expected PretrainMLM"):
        load_config_file(str(tmp_path / "a.py"), PretrainMLM)


def test_the_experiments_of_the_repository_load():
    every = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
    files = [path for path in every if not path.name.startswith("pretrain")]
    assert files
    for path in files:
        load_config_file(str(path), Finetune).check()
    experiment = load_config_file(str(files[0].parent / "mnli.py:v3-xsmall-sift"), Finetune)
    assert (experiment.sift, experiment.optimization.learning_rate, experiment.batch_size) == (3, 5e-5, 64)
    assert experiment.model == "microsoft/deberta-v3-xsmall"
    rte = load_config_file(str(files[0].parent / "rte.py:large"), Finetune)
    assert rte.model == "microsoft/deberta-large-mnli", "begins where MNLI ended"
    with pytest.raises(InputError, match="no published recipe for tiny"):
        load_config_file(str(files[0].parent / "rte.py:tiny"), Finetune)


def test_the_pretrainings_of_the_repository_load():
    folder = Path(__file__).parents[2] / "configs"
    for kind, experiment, sizes in (
        ("mlm", PretrainMLM, "base large xlarge v2-xlarge v2-xxlarge"),
        ("rtd", PretrainRTD, "xsmall small base large mdeberta continue"),
    ):
        for size in sizes.split():
            found = load_config_file(str(folder / f"pretrain_{kind}.py:{size}"), experiment)
            dataclasses.replace(found, **({"generator": "DIR"} if size == "continue" else {})).check()
            assert size == "continue" or found.model in PRESETS
        load_config_file(str(folder / f"pretrain_laptop.py:{kind}"), experiment).check()
    with pytest.raises(InputError, match="no published recipe for tiny"):
        load_config_file(str(folder / "pretrain_rtd.py:tiny"), PretrainRTD)


def test_help_and_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in COMMANDS)
    main(["--version"])
    assert capsys.readouterr().out.strip() == deberta_jax.__version__
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_lists_its_arguments(verb, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: deberta-jax {verb}" in out
    if verb == "finetune":
        assert "--config" in out
