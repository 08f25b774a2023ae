"""``deberta-jax plan``: what cannot be planned is told in one line that says what to type instead."""

import importlib.metadata
import importlib.util

import pytest

from deberta_jax.cli.main import main
from deberta_jax.planning import compiling
from deberta_jax.planning.targets import target_of


@pytest.mark.parametrize(
    ("topology", "size", "chips"),
    [("v5e:4x4", "v5e:4x4", 16), ("v5e-256", "v5e:16x16", 256), ("v5p-128", "v5p:4x4x4", 64), ("cpu:8", "cpu:8", 8)],
)
def test_slices_by_shape_and_as_they_are_rented(topology, size, chips):
    target = target_of(topology)
    assert (target.topology, target.chips) == (size, chips)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--topology", "v5e:3x7"], "there is no such slice; v5e comes as 1x1, 2x2"),
        (["--topology", "v9:4x4"], "give a TPU slice such as v5e:4x4"),
        (["--topology", "cuda:none"], "give a number of devices, such as cuda:8"),
        (["--topology", "cpu:4", "--mesh", "rows=4"], "such as --mesh fsdp=4"),
        (["--topology", "cpu:4", "--mesh", "fsdp=3"], "cpu:4 has 4; give for example --mesh fsdp=4"),
        (
            ["--topology", "cpu:5", "--mesh", "tensor=5"],
            "--mesh tensor=5: does not divide the model's attention heads of 12; give --mesh tensor=1",
        ),
        (["--topology", "cpu:4", "--mesh", "fsdp=4", "--batch", "6"], "give --batch 8"),
        (["--topology", "cpu:4", "--html", "/nowhere/plan.html"], "its directory does not exist"),
        (["--topology", "cpu:4", "--html", "/"], "is a directory"),
        (["--topology", "cpu:4", "--batch", "-8"], "--batch -8: must be at least 0"),
        (["--topology", "cpu:4", "--length", "5"], "--length 5: must be at least 8"),
        (["--topology", "cpu:4", "--length", "1000000"], "--length 1000000: must be at most 65536"),
        (["--topology", "cpu:4", "--job", "rtd", "--length", "513"], "--length 513: the model has absolute positions"),
        (["--topology", "cpu:4", "--attention", "pallas"], "--attention pallas: has no kernel for CPUs"),
        (["--topology", "cpu:4", "--tokens", "nan"], "--tokens nan: must be at least 0"),
        (["--topology", "cpu:4", "--price-per-chip-hour", "2"], "--price-per-chip-hour: goes with --tokens"),
        (["--topology", "v5e:4x4", "--device-memory", "2"], "--device-memory: is for cuda and cpu; a chip of v5e:4x4"),
        (["--topology", "cpu:4", "--batch", "16", "--accumulate", "3"], "give a multiple of 12, chips x --accumulate"),
        (["--topology", "cpu:4", "--batch", "6", "--accumulate", "2", "--mesh", "data=4"], "give --batch 8"),
        (["--topology", "cpu:4", "--job", "predict", "--accumulate", "2"], "--accumulate: goes with training"),
        (["--topology", "cpu:4", "--sweep", "--candidates", "0"], "--candidates 0: must be at least 1"),
        (["--topology", "cpu:4", "--xla-flags", "fast"], "--xla-flags fast: fast is not of the form xla_name=value"),
        (
            ["--topology", "cpu:4", "--xla-flags", "xla_a=1", "--xla-flags", "b=1"],
            "--xla-flags b=1: b=1 is not of the form xla_name=value",
        ),
        (["--topology", "cpu:4", "--xla-flags", "xla_a=1", "--sweep"], "--xla-flags: compares one program"),
        (["--topology", "cuda:4", "--xla-flags", "xla_a=1"], "--xla-flags: nothing is compiled for cuda:4"),
        (["--topology", "cpu:4", "--xla-flags", " "], "--xla-flags: give options such as xla_name=value"),
        (
            ["--topology", "cpu:4", "--dtype", "float32", "--gradient-dtype", "bfloat16"],
            "--gradient-dtype bfloat16: goes with --dtype bfloat16",
        ),
    ],
)
def test_one_line_and_code_2(arguments, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--model", "deberta-v3-base", *arguments])
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert told in err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_the_compiler_says_how_to_get_it(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--model", "deberta-v3-base", "--topology", "v5e:4x4"])
    assert ended.value.code == 2
    assert "pip install 'jax[tpu]'" in capsys.readouterr().err


def test_a_libtpu_of_another_release_is_named_with_the_one_to_install(monkeypatch):
    """jax 0.10.2 asks for libtpu 0.0.42; of 0.0.52's programs for v5p-128 its jaxlib could not read most."""
    asked = ["numpy>=2.0", 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    installed = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.52", "flax": "", "optax": ""}
    monkeypatch.setattr(compiling, "versions", lambda: installed)
    assert compiling.wrong_libtpu().endswith("asks for libtpu==0.0.42.*: `pip install 'libtpu==0.0.42.*'`")
    for fits in ("0.0.42", "0.0.42.1"):
        monkeypatch.setattr(compiling, "versions", lambda v=fits: installed | {"libtpu": v})
        assert compiling.wrong_libtpu() == ""
    monkeypatch.setattr(compiling, "versions", lambda: installed | {"libtpu": "0.0.420"})
    assert compiling.wrong_libtpu() != ""


def test_the_installed_jax_says_which_libtpu_it_asks_for():
    """Else the message would go silent with a change of jax's metadata."""
    assert any(line.startswith("libtpu==") for line in importlib.metadata.requires("jax") or ())
