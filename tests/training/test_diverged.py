"""What is not finite is never called good: no best model, no state, no result, and exit code 2."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.cli.main import main
from deberta_jax.sharding import make_mesh
from deberta_jax.training.experiment import Optimization, PretrainMLM, PretrainRTD
from deberta_jax.training.finite import NotFinite, ParameterCheck, check_metrics
from deberta_jax.training.language_metrics import detection_metrics
from deberta_jax.training.pretraining import pretrain
from tests.made import pretraining_home


def last_words(arguments, capsys, code):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == code
    assert out == ""
    assert "Traceback" not in err
    return err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "what"),
    [("3e38", "the parameter .* is not finite after step 1"), ("1e30", "the scores of the evaluation")],
)
def test_a_last_step_that_breaks_the_model_is_no_result(task, tmp_path, capsys, one_device, rate, what):
    """The loss of the only step is finite; only what it leaves is not."""
    run = tmp_path / "run"
    more = ["--epochs", "1", "--batch-size", "96", "--learning-rate", rate, "--warmup", "0", "--no-bias-correction"]
    line = last_words(task.arguments(run, *more), capsys, 2)
    assert line.startswith("error: ")
    assert re.search(what, line)
    assert "the run has diverged; lower --learning-rate" in line
    names = {path.name for path in run.iterdir()}
    assert not names & {"model.safetensors", "result.json", "evaluation.json", "report.html"}
    assert not list(run.glob("state/*/state"))
    assert "NaN" not in (run / "log.jsonl").read_text()
    assert list(run.glob("not_finite_step_1.npz"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlm", pytest.param("rtd", marks=pytest.mark.system)])
def test_a_pre_training_that_breaks_in_its_last_step(tmp_path, one_device, kind):
    home, run = pretraining_home(tmp_path, 60), tmp_path / "run"
    experiment = (PretrainMLM if kind == "mlm" else PretrainRTD)(
        model=str(home / "blank"),
        from_scratch=True,
        train=(str(home / "train.txt"),),
        eval=str(home / "eval.txt"),
        output=str(run),
        steps=1,
        batch_size=8,
        max_length=16,
        optimization=Optimization(learning_rate=3e38, warmup=0, bias_correction=False),
    )
    # The generator's update already shows in the discriminator's loss of the same step.
    first = {"mlm": "the parameter .* is not finite after step 1", "rtd": "the discriminator is nan by step 1"}[kind]
    with pytest.raises(FloatingPointError, match=f"{first}: the run has diverged"):
        pretrain(experiment)
    assert not (run / "result.json").exists()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "eval" in entry] == [0], "the evaluation before the first step"
    assert all(np.isfinite(value) for value in log[0]["eval"].values())


def test_the_first_parameter_that_is_not_finite_is_named():
    params = {"a": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}, "b": jnp.ones(4, jnp.bfloat16)}
    check = ParameterCheck(make_mesh(devices=jax.devices()[:1]))
    check(params, 5)
    for value in (np.nan, np.inf, -np.inf):
        broken = params | {"b": params["b"].at[2].set(value)}
        with pytest.raises(NotFinite, match=r"the parameter b is not finite after step 5") as raised:
            check(broken, 5)
        assert raised.value.step == 4
    sharded = jax.device_put(params, jax.NamedSharding(make_mesh(), jax.P()))
    ParameterCheck(make_mesh())(sharded, 0)


def test_metrics_are_finite_or_none():
    check_metrics({"pearson": None, "loss": 0.5}, 3)
    for value in (np.nan, np.inf):
        with pytest.raises(NotFinite, match=r"the roc auc of the evaluation is .* after step 3"):
            check_metrics({"loss": 0.5, "roc_auc": value}, 3)
    assert detection_metrics(np.array([0.5, 1.0]), np.array([0, 1]))["roc_auc"] == 1.0
