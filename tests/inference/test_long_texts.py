"""Texts longer than the model reads: which tokens are kept, and how the scores of windows become one."""

import json

import numpy as np
import pytest

import deberta_jax
from deberta_jax.data.features import Features
from deberta_jax.data.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpec
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.long_texts import joined_logits, long_features
from deberta_jax.tasks.text_classification import TextTask
from tests.made import TINY, make_tokenizer, stdout_of, weighted_model, write_table

CLASSES = TextTask(("text",), ("label",), LabelSpec(SINGLE_LABEL, ("safe", "unsafe")))
TEXTS = ["ban", "ban kost rill " * 5, "tell sark lon nist " * 9]


def test_kept_tokens(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    table = Table("rows.csv", {"text": TEXTS}, [2, 3, 4])
    whole = [ids.tolist() for ids, _ in tokenizer.encode_ragged(TEXTS)]
    assert [len(ids) > 16 for ids in whole] == [False, True, True]
    kept = long_features(CLASSES, table, tokenizer, 16, "head-tail", labelled=False)
    for i, ids in enumerate(whole):
        expected = ids if len(ids) <= 16 else [*ids[:8], *ids[-8:]]
        assert kept.ids[kept.starts[i] : kept.starts[i + 1]].tolist() == expected
    windows = long_features(CLASSES, table, tokenizer, 16, "windows", labelled=False)
    assert windows.lengths.max() == 16
    for row, ids in enumerate(whole):
        own = [
            windows.ids[windows.starts[i] : windows.starts[i + 1]].tolist() for i in np.flatnonzero(windows.row == row)
        ]
        assert all((part[0], part[-1]) == (ids[0], ids[-1]) for part in own)
        inner, at = ids[1:-1], 0
        for part in own:  # every window goes on where tokens are not read yet, or before
            starts = [i for i in range(at + 1) if inner[i : i + len(part) - 2] == part[1:-1]]
            assert starts
            at = max(at, starts[-1] + len(part) - 2)
        assert at == len(inner), "no token is left out"
    pair = TextTask(("text", "text"), ("label",), CLASSES.spec)
    with pytest.raises(InputError, match="--long-text windows: is for classification and regression of single texts"):
        long_features(pair, table, tokenizer, 16, "windows", labelled=False)


@pytest.mark.parametrize("score", ["max", "mean"])
def test_scores_of_windows(score):
    logits = np.array([[1, 0], [2, -1], [-3, 0.5]], np.float32)
    windows = Features(
        ids=np.zeros(3, np.int32), types=np.zeros(3, np.int8), starts=np.arange(4), row=np.array([0, 1, 1], np.int32)
    )
    reduce = np.max if score == "max" else np.mean
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = reduce(softmax[1:], axis=0)
    found = joined_logits(logits, windows, SINGLE_LABEL, score)
    assert found[0].tolist() == [1, 0]
    np.testing.assert_allclose(np.exp(found[1]) / np.exp(found[1]).sum(), expected / expected.sum(), rtol=1e-5)
    found = joined_logits(logits, windows, MULTI_LABEL, score)
    np.testing.assert_allclose(1 / (1 + np.exp(-found[1])), reduce(1 / (1 + np.exp(-logits[1:])), axis=0), rtol=1e-5)
    assert joined_logits(logits[:, :1], windows, REGRESSION, score)[1, 0] == reduce([2, -3])
    extreme = np.array([[0, 0], [90, -90], [90, -90]], np.float32)
    for problem in (SINGLE_LABEL, MULTI_LABEL):
        assert np.isfinite(joined_logits(extreme, windows, problem, score)).all()


@pytest.mark.slow
def test_the_commands_say_how_long_texts_were_read(tmp_path):
    model = weighted_model(tmp_path / "model", TINY.replace(num_hidden_layers=1, initializer_range=0.3))
    rows = [(text, f"LABEL_{i % 2}") for i, text in enumerate(TEXTS)]
    data = write_table(tmp_path / "rows.jsonl", ("text", "label"), rows)
    options = ["--model", str(model), "--max-length", "16", "--long-text", "windows", "--window-score", "mean"]
    out = stdout_of(["predict", *options, "--input", str(data), "--output", "-"])
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["windows"] > 1 for answer in answers] == [False, True, True]
    pipe = deberta_jax.pipeline("text-classification", model, max_length=64)
    assert answers[0]["label"] == pipe(TEXTS[0])[0]["label"]
    pipe = deberta_jax.pipeline("text-classification", model, max_length=16, long_text="windows", window_score="mean")
    for one, whole in zip(pipe(TEXTS), answers, strict=True):
        assert one["label"] == whole["label"]
        assert one["score"] == pytest.approx(max(whole["probabilities"].values()), abs=1e-6)
    with pytest.raises(InputError, match=r"inputs\[1\]: is a pair of texts; long_text='windows' is for single texts"):
        pipe([TEXTS[0], (TEXTS[0], TEXTS[1])])
    with pytest.raises(InputError, match="long_text"):
        pipe(TEXTS, long_text="window")  # pyright: ignore[reportCallIssue, reportArgumentType]
    right = np.mean([answer["label"] == label for answer, (_, label) in zip(answers, rows, strict=True)])
    assert json.loads(stdout_of(["evaluate", *options, "--data", str(data)]))["accuracy"] == pytest.approx(right)
