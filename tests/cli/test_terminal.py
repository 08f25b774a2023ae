"""Names in files cannot change the terminal: their control characters are escaped wherever they are printed."""

import contextlib
import json

import numpy as np
import pytest
import safetensors.numpy

from deberta_jax.cli.main import main
from deberta_jax.cli.text import print_text
from tests.weights.files import raw_config, state_of

# Clears the screen, sets the title, and hides what follows; and a character that turns the direction of the text.
EVIL = "\x1b[2J\x1b]0;title\x07\x1b[8m\r\x9b31m\u202e"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    state = state_of("v3", ("pooler", "classifier")) | {f"crf.{EVIL}": np.zeros(2, np.float32)}
    safetensors.numpy.save_file(state, directory / "model.safetensors")
    raw = raw_config("v3", num_labels=3) | {f"note_{EVIL}": 1}
    raw["id2label"] = {"0": EVIL, "1": "b", "2": "c"}
    raw["label2id"] = {EVIL: 0, "b": 1, "c": 2}
    (directory / "config.json").write_text(json.dumps(raw))
    return directory


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "SOURCE"],
        ["inspect", "SOURCE", "--ignore", "crf.*"],
        ["inspect", "SOURCE", "--json", "--ignore", "crf.*"],
        ["convert", "SOURCE", "OUT", "--to", "hf", "--head", "sequence-classification"],
        ["convert", "SOURCE", "OUT", "--to", "hf", "--head", "sequence-classification", "--ignore", "crf.*"],
        ["verify", "SOURCE", "--ignore", "crf.*"],
        ["predict", "SOURCE", "SOURCE/config.json"],
        ["evaluate", "SOURCE", "SOURCE/config.json"],
        ["verify", "SOURCE", "--against", EVIL],
        ["inspect", EVIL],
    ],
    ids=lambda arguments: "-".join(arguments[:1] + arguments[2:]).replace(EVIL, "evil"),
)
def test_no_control_character_reaches_the_terminal(arguments, source, tmp_path, capfd):
    names = {"SOURCE": str(source), "OUT": str(tmp_path / "out"), "SOURCE/config.json": str(source / "config.json")}
    with contextlib.suppress(SystemExit):
        main([names.get(argument, argument) for argument in arguments])
    out, err = capfd.readouterr()
    assert out + err
    for character in EVIL:
        assert character.isprintable() or character not in out.replace("\r\n", "\n") + err, (character, out, err)


def test_lines_stay_lines(capsys):
    print_text(f"a\tb{EVIL}\nc")
    assert capsys.readouterr().out == "a\tb" + EVIL.encode("unicode_escape").decode() + "\nc\n"
