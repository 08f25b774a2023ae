"""Pre-training by the commands themselves: both kinds, on any devices and processes, killed and gone on with."""

import json
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.training.experiment import PretrainRTD
from tests.made import binary_files, log_of, pretraining_home, start, stdout_of
from tests.training.processes import curve, finish, port, steps_logged, wait

STEPS = 30
MESH = ("data", "fsdp", "tensor")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return pretraining_home(tmp_path_factory.mktemp("text"), 600)


def arguments(home: Path, kind: str, output: Path, *more: str) -> list[str]:
    return [
        "pretrain",
        kind,
        "--model",
        str(home / "blank"),
        "--from-scratch",
        "--train",
        str(home / "train.txt"),
        "--eval",
        str(home / "eval.txt"),
        "--output",
        str(output),
        "--steps",
        str(STEPS),
        "--batch-size",
        "16",
        "--max-length",
        "32",
        "--learning-rate",
        "3e-3",
        "--eval-every",
        "15",
        "--log-every",
        "1",
        "--checkpoint-every",
        "7",
        *(("--head", "mask-decoder") if kind == "mlm" else ()),
        *more,
    ]


def on(home, kind, output, environment, mesh, *more, processes=1, devices=1):
    sizes = [word for name, size in zip(MESH, mesh, strict=True) for word in (f"--mesh-{name}", str(size))]
    words = [*arguments(home, kind, output, *more), *sizes]
    if processes == 1:
        return [start(words, devices=devices, **environment)]
    told = ["--coordinator", f"localhost:{port()}", "--processes", str(processes), "--heartbeat", "10"]
    return [start([*words, *told, "--process", str(i)], devices=devices, **environment) for i in range(processes)]


@pytest.mark.long
def test_both_kinds_learn_and_leave_what_the_package_loads(home, tmp_path):
    printed = json.loads(stdout_of(arguments(home, "mlm", tmp_path / "mlm")))
    assert printed["loss"] < printed["uniform_loss"] - 1
    assert printed["perplexity"] == pytest.approx(np.exp(printed["loss"]))
    assert printed["masked_positions"] == 1.0
    assert "perplexity" in (tmp_path / "mlm" / "report.html").read_text()
    model, params = deberta_jax.from_pretrained(tmp_path / "mlm", head="masked-lm")
    assert model.config.mask_decoder
    ids = np.asarray(deberta_jax.load_tokenizer(str(tmp_path / "mlm"))(["ban [MASK] rist"]).input_ids)
    assert np.isfinite(model.apply({"params": params}, jnp.asarray(ids)).logits).all()

    # The mask decoder is of the masked-LM head alone: fine-tuning leaves its absolute positions behind.
    binary_files(tmp_path)
    files = ["--train", str(tmp_path / "train.csv"), "--eval", str(tmp_path / "eval.csv")]
    main(
        [
            "finetune",
            "--model",
            str(tmp_path / "mlm"),
            *files,
            "--text",
            "sentence",
            "--label",
            "kind",
            "--epochs",
            "1",
            "--max-length",
            "16",
            "--output",
            str(tmp_path / "classifier"),
        ]
    )
    assert (tmp_path / "classifier" / "model.safetensors").is_file()

    run = tmp_path / "rtd"
    printed = json.loads(stdout_of(arguments(home, "rtd", run, "--update", "joint")))
    rate = printed["replaced_rate"]
    assert printed["prior_entropy"] == pytest.approx(-rate * np.log(rate) - (1 - rate) * np.log(1 - rate))
    assert printed["gain"] == pytest.approx(printed["prior_entropy"] - printed["discriminator_loss"])
    assert printed["difference_rms"] > 0
    assert "roc_auc" in (run / "report.html").read_text()
    generator, own = deberta_jax.from_pretrained(run / "generator", head="masked-lm")
    assert generator.config.mask_decoder
    assert generator.config.num_hidden_layers == 1
    _, params = deberta_jax.from_pretrained(run / "discriminator", head="replaced-token-detection")
    words = lambda p: np.asarray(p["deberta"]["embeddings"]["word_embeddings"]["embedding"])
    difference = words(params) - words(own)
    assert np.sqrt((difference**2).mean()) == pytest.approx(printed["difference_rms"], rel=1e-4)
    with pytest.raises(InputError, match="a discriminator"):
        deberta_jax.from_pretrained(run / "discriminator", head="masked-lm")

    # Gone on with from what was saved: the differences are recovered, so the figures are those that it ended with.
    more = arguments(home, "rtd", tmp_path / "more", "--generator", str(run / "generator"), "--steps", "1")
    more = [word for word in more if word != "--from-scratch"]
    more[more.index("--model") + 1] = str(run / "discriminator")
    main(more)
    first = next(entry["eval"] for entry in log_of(tmp_path / "more") if "eval" in entry)
    for name, value in printed.items():
        if name in first:
            assert first[name] == pytest.approx(value, rel=1e-5), name


@pytest.fixture(scope="module")
def single(home, cache, tmp_path_factory):
    """Runs of one device, by kind."""
    folder = tmp_path_factory.mktemp("single")
    for kind in ("mlm", "rtd"):
        finish(on(home, kind, folder / kind, cache, (1, 1, 1)))
    return folder


CASES = [(1, 8, (8, 1, 1)), (1, 8, (2, 2, 2)), (1, 4, (1, 1, 4)), (2, 1, (2, 1, 1)), (2, 2, (1, 2, 2))]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mlm", "rtd"])
@pytest.mark.parametrize(("processes", "devices", "mesh"), CASES)
def test_the_losses_of_one_device(home, cache, single, tmp_path, kind, processes, devices, mesh):
    finish(on(home, kind, tmp_path / "run", cache, mesh, processes=processes, devices=devices))
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(single / kind), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "number"), [("mlm", signal.SIGKILL), ("rtd", signal.SIGKILL), ("rtd", signal.SIGTERM)]
)
def test_a_run_ended_by_a_signal_goes_on_to_the_same_bits(home, cache, single, tmp_path, kind, number):
    output = tmp_path / "run"
    (process,) = on(home, kind, output, cache, (1, 1, 1))
    wait(lambda: steps_logged(output, 20), [process])
    process.send_signal(number)
    process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert not (output / "result.json").exists()
    told = finish(on(home, kind, output, cache, (1, 1, 1)))
    assert "going on from step" in told[0]
    assert log_of(output) == log_of(single / kind)
    names = [""] if kind == "mlm" else ["generator", "discriminator"]
    for name in names:
        ours, theirs = ((run / name / "model.safetensors").read_bytes() for run in (output, single / kind))
        assert ours == theirs


@pytest.mark.long
@pytest.mark.parametrize("kind", ["mlm", "rtd"])
def test_micro_batches_give_the_same_curve(home, cache, single, tmp_path, kind):
    finish(on(home, kind, tmp_path / "run", cache, (1, 1, 1), "--accumulate", "4"))
    np.testing.assert_allclose(curve(tmp_path / "run"), curve(single / kind), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sharing": "es", "from_scratch": True}, "goes with --update joint"),
        ({}, "--generator is missing"),
        ({"from_scratch": True, "generator": "x"}, "leave one of them out"),
        ({"update": "joint", "discriminator_learning_rate": 1e-4, "from_scratch": True}, "one optimizer"),
        ({"generator": "x", "generator_layers": 2}, "goes with --from-scratch"),
        ({"from_scratch": True, "discriminator_weight": 0.0}, "must be above 0"),
    ],
)
def test_what_does_not_go_together_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        PretrainRTD(**fields).check()


def test_the_command_asks_which_kind(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--model", "x"])
    assert stopped.value.code == 2
    assert "pretrain mlm" in capsys.readouterr().err
