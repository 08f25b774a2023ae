"""Scores that are not finite: the row is named, or answered with null, and all other rows are as they would be."""

import dataclasses
import json

import numpy as np
import pytest

from deberta_jax import InputError, pipeline
from deberta_jax.cli.output import json_text
from deberta_jax.data.features import SPAN, TOKEN, Features
from deberta_jax.inference.predict import Predictor
from deberta_jax.tasks.finite import rows_not_finite
from tests.made import refused, stdout_of


@pytest.fixture
def broken(monkeypatch):
    """Makes the logits of some rows NaN or infinite, as a text that overflows does."""
    logits_of = Predictor.logits

    def switch(*rows, value=np.nan):
        def logits(self, params, features, progress=None):
            found = logits_of(self, params, features, progress).copy()
            found[list(rows), -1] = value
            return found

        monkeypatch.setattr(Predictor, "logits", logits)

    return switch


def arguments(trained, output, *more):
    data = trained.task.home / "eval.csv"
    return ["predict", "--model", str(trained.directory), "--input", str(data), "--output", str(output), *more]


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_predict_names_the_row_or_writes_null(trained, tmp_path, capsys, broken, value):
    right = stdout_of(arguments(trained, "-")).splitlines()
    broken(2, 7, value=value)
    line = refused(arguments(trained, tmp_path / "out.jsonl"), capsys)
    assert f"{trained.task.home / 'eval.csv'}, line 4: the model's scores are NaN or infinite, as for 2 of 40" in line
    assert not (tmp_path / "out.jsonl").exists()
    main_out = stdout_of(arguments(trained, "-", "--non-finite", "null")).splitlines()
    assert [json.loads(row) for row in (main_out[2], main_out[7])] == [{"label": None, "probabilities": None}] * 2
    others = [row for row in range(40) if row not in (2, 7)]
    assert [main_out[row] for row in others] == [right[row] for row in others]


def test_evaluate_names_the_row(trained, capsys, broken):
    broken(5)
    line = refused(["evaluate", "--model", trained.directory, "--data", trained.task.home / "eval.csv"], capsys)
    assert "line 7: the model's scores are NaN or infinite, as for 1 of 40" in line


def test_a_pipeline_refuses_or_answers_none(trained, broken):
    pipe = pipeline("text-classification", trained.directory)
    texts = ["ban tell", "ko mu", "sa lo"]
    right = pipe(texts)
    broken(1)
    with pytest.raises(InputError, match=r"inputs\[1\]: the model's scores"):
        pipe(texts)
    found = dataclasses.replace(pipe, non_finite="null")(texts)
    assert found == [right[0], {"label": None, "score": None}, right[2]]


def test_the_rows_of_windows_tokens_and_choices():
    starts, ids = np.array([0, 2, 3, 6]), np.zeros(6, np.int32)
    one = {"ids": ids, "types": ids.astype(np.int8), "starts": starts}
    tokens = np.zeros((6, 2))
    tokens[2, 0] = np.inf
    windows = Features(**one, level=SPAN, row=np.array([0, 1, 1], np.int32))
    assert rows_not_finite(tokens, windows, 2).tolist() == [False, True]
    tokens[0] = np.nan
    assert rows_not_finite(tokens, Features(**one, level=TOKEN, row=np.array([0, 0, 1])), 2).tolist() == [True, False]
    texts = np.zeros((6, 1))
    texts[4] = -np.inf
    choices = Features(ids=ids, types=one["types"], starts=np.array([0, 1, 2, 3, 3, 3, 6]), choices=3)
    assert rows_not_finite(texts, choices, 2).tolist() == [False, True]


def test_no_result_is_written_with_a_number_that_json_has_not():
    assert json_text({"a": None, "b": 0.5}) == '{"a": null, "b": 0.5}'
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="not finite"):
            json_text({"a": [float(value)]})
