"""convert, inspect and verify as a user runs them."""

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.weights import convert, from_pretrained, load, verify
from tests.weights.files import discriminator, positions, raw_config, state_of

PARTS = ("pooler", "classifier")


@pytest.fixture
def source(write):
    directory = write("source", state_of("v3", PARTS), raw_config("v3", num_labels=3))
    (directory / "spm.model").write_bytes(b"words")
    return directory


def exit_code(*arguments) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_convert_says_what_became_of_every_tensor(source, tmp_path, capsys):
    main(
        [
            "convert",
            str(source),
            str(tmp_path / "out"),
            "--to",
            "hf",
            "--dtype",
            "bf16",
            "--head",
            "encoder",
            "--report",
            str(tmp_path / "report.json"),
        ]
    )
    out = capsys.readouterr().out
    assert "4 dropped" in out
    assert "dropped pooler.dense.weight: belongs to another head (pooler)" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["tensors"]) == len(state_of("v3", PARTS))
    assert {row["fate"] for row in report["tensors"]} == {"loaded", "dropped"}
    assert (tmp_path / "out" / "spm.model").read_bytes() == b"words"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_head_that_the_file_lacks_is_new_only_where_asked_for(to, source, tmp_path, capsys):
    """And then it is what ``from_pretrained`` draws with the same key, in the file's dtype."""
    out, head = tmp_path / "out", "token-classification"
    wanted = ["--head", head, "--labels", "O", "B-X", "I-X", "B-Y"]
    assert exit_code("convert", source, out, "--to", to, *wanted) == 2
    assert "--new-head 0" in capsys.readouterr().err
    assert not out.exists()
    main(["convert", str(source), str(out), "--to", to, *wanted, "--new-head", "5"])
    assert "initialised classifier/kernel: the file's classifier reads a pooled text" in capsys.readouterr().out
    model, found, report = load(out, head)
    assert model.config.id2label == ("O", "B-X", "I-X", "B-Y")
    assert report.initialised == ()
    drawn = from_pretrained(source, head, id2label=model.config.id2label, new_head=jax.random.key(5))[1]
    assert jax.tree.all(jax.tree.map(np.array_equal, found, drawn))
    assert found["classifier"]["kernel"].std() > 0.001


def test_a_new_head_keeps_the_dtype_of_the_file(source, tmp_path):
    convert(source, tmp_path / "half", to="hf", dtype="f16")
    convert(tmp_path / "half", tmp_path / "out", to="hf", head="question-answering", new_head=jax.random.key(0))
    saved = safetensors.numpy.load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {np.dtype(np.float16)}
    assert saved["qa_outputs.weight"].shape == (2, 8)


def test_options_of_a_head_need_a_head_that_has_them(source, tmp_path, capsys):
    assert exit_code("convert", source, tmp_path / "out", "--to", "hf", "--new-head", "0") == 2
    assert "of which head? Name it" in capsys.readouterr().err
    asked = ("--head", "masked-lm", "--new-head", "0", "--labels", "a", "b")
    assert exit_code("convert", source, tmp_path / "out", "--to", "hf", *asked) == 2
    assert "labels: masked-lm has none" in capsys.readouterr().err


def test_convert_keeps_every_head_and_says_that_the_tokenizer_is_missing(write, tmp_path, capsys):
    main(["convert", str(write("d", discriminator(), raw_config("v3"))), str(tmp_path / "out"), "--to", "orbax"])
    out = capsys.readouterr().out
    assert f"{len(discriminator())} loaded, 0 folded, 0 dropped" in out
    assert "the source has no tokenizer files" in out


def test_bad_input_is_one_line_and_exit_code_2(source, tmp_path, capsys):
    (source / "model.safetensors").write_bytes(b"\x10")
    assert exit_code("convert", source, tmp_path / "out", "--to", "hf") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert exit_code("inspect", tmp_path / "nowhere") == 2


def test_inspect_lists_the_heads_that_a_file_serves(write, capsys):
    directory = write("d", discriminator("xl"), raw_config("xl"))
    main(["inspect", str(directory)])
    text = capsys.readouterr().out
    assert "DeBERTa v2" in text
    assert "ready for   encoder, replaced-token-detection" in text
    assert "not for     masked-lm" in text
    assert "pytorch_model.generator.bin" in text
    main(["inspect", str(directory), "--json"])
    found = json.loads(capsys.readouterr().out)
    state = discriminator("xl")
    tables = sum(v.size for name, v in state.items() if name.endswith("_embeddings.weight") and "rel" not in name)
    assert found["embeddings"] == tables
    assert found["total"] == sum(v.size for v in state.values())
    assert found["dtypes"] == {"f32": len(state)}
    assert found["uses"]["encoder"] == "ready"


@pytest.mark.slow
def test_verify_passes_copies_and_fails_others(source, tmp_path, capsys):
    main(["verify", str(source), "--record", str(tmp_path / "golden.npz")])
    text = capsys.readouterr().out
    assert "layer 2" in text
    assert "sequence-classification logits  max difference 0 " in text
    convert(source, tmp_path / "copy", to="orbax")
    main(["verify", str(tmp_path / "copy"), "--against", str(tmp_path / "golden.npz")])
    capsys.readouterr()
    convert(source, tmp_path / "narrow", to="hf", dtype="bf16")
    assert exit_code("verify", tmp_path / "narrow", "--against", source, "--tolerance", "1e-6") == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.slow
def test_verify_finds_the_layer_that_differs(write):
    state = state_of("v3")
    one = write("one", state, raw_config("v3"))
    name = "deberta.encoder.layer.1.output.dense.weight"
    two = write("two", state | {name: state[name] * np.float32(1.5)}, raw_config("v3"))
    result = verify(one, two)
    assert not result.passed
    assert result.differences["layer 1"] == 0
    assert result.differences["layer 2"] > 1e-3
    deeper = write("deeper", state_of("v3", num_hidden_layers=3), raw_config("v3", num_hidden_layers=3))
    with pytest.raises(InputError, match="one architecture"):
        verify(one, deeper)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("bf16", 0.1), ("f16", 0.01)])
def test_a_copy_of_half_the_size_is_compared_with_the_tolerance_of_its_dtype(dtype, tolerance, source, tmp_path):
    half = tmp_path / "half"
    convert(source, half, to="hf", dtype=dtype)
    compared = verify(half, source)
    assert compared.passed
    assert (compared.tolerance, verify(source, half).tolerance) == (tolerance, tolerance)
    assert max(compared.differences.values()) > 1e-4, "the tolerance of float32 would not do"
    assert f"tolerance {tolerance:g} (that of {dtype}" in compared.text()
    assert verify(half).tolerance == verify(half, half).tolerance == 1e-4, "the same weights differ in nothing"
    verify(source, record=tmp_path / "v.npz")
    assert verify(half, tmp_path / "v.npz").tolerance == tolerance


def test_verify_refuses_weights_that_are_no_numbers(write):
    state = state_of("v3", ("lm_predictions",)) | positions()
    state["deberta.encoder.layer.0.output.dense.bias"][0] = np.inf
    with pytest.raises(InputError, match="not finite: layer 1"):
        verify(write("m", state, raw_config("v3")))


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_progress_counts_every_tensor_once(to, source, tmp_path):
    seen: list[tuple[int, int]] = []
    report = convert(source, tmp_path / "out", to=to, progress=lambda done, total: seen.append((done, total)))
    total = len(report.tensors) if to == "hf" else len(report.targets)
    assert seen == [(i, total) for i in range(1, total + 1)]


def test_a_terminal_shows_a_bar_and_a_file_does_not(source, tmp_path):
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    os.set_blocking(ours, False)
    root = Path(__file__).resolve().parents[2]
    for name, stream in (("one", theirs), ("two", subprocess.PIPE)):
        command = [sys.executable, "-m", "convert", str(source), str(tmp_path / name), "--to", "hf"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stream, text=True, cwd=root)
        assert done.returncode == 0
        shown = os.read(ours, 1 << 16).decode() if stream == theirs else done.stderr
        assert (" tensors/s]" in shown) == (stream == theirs)
    os.close(ours)
    os.close(theirs)


def test_front_door(source, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "convert", str(source), str(tmp_path / "out"), "--to", "hf"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "0 dropped" in done.stdout


@pytest.mark.slow
def test_verify_compares_with_the_recording_that_it_then_replaces(write, tmp_path):
    state = state_of("v3")
    first = write("one", state, raw_config("v3"))
    name = "deberta.encoder.layer.1.output.dense.weight"
    second = write("two", state | {name: state[name] * np.float32(1.5)}, raw_config("v3"))
    record = tmp_path / "v.npz"
    assert verify(first, record=record).passed
    before = record.read_bytes()
    assert not verify(second, record, record=record).passed
    assert record.read_bytes() != before
    assert verify(second, record).passed


def test_a_model_that_takes_the_place_of_another_keeps_none_of_its_files(write, tmp_path):
    """A vocabulary of another model would give other ids to the same text."""
    first, second = write("one", state_of("v3"), raw_config("v3")), write("two", state_of("v3"), raw_config("v3"))
    target = tmp_path / "target"
    (first / "spm.model").write_bytes(b"the first one's")
    convert(first, target, to="orbax")
    assert {path.name for path in target.iterdir()} == {"checksums.json", "config.json", "params", "spm.model"}
    (target / "notes.txt").write_text("mine")
    convert(second, target, to="hf")
    assert {path.name for path in target.iterdir()} == {
        "checksums.json",
        "config.json",
        "model.safetensors",
        "notes.txt",
    }
