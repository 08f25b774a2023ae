"""Tables in files and in parts: the features of every kind of task are those of the table in memory, bit for bit."""

import dataclasses
import json
import random

import numpy as np
import pytest

from deberta_jax.data import stored_tables
from deberta_jax.data.columns import Blocks, LazyColumn
from deberta_jax.errors import InputError
from deberta_jax.tasks import resolve_task
from deberta_jax.text import load_tokenizer
from deberta_jax.training import finetune_data
from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetune_data import features_of
from deberta_jax.training.resolve import resolve_config, resolve_experiment
from tests.made import WORDS, blank_model, write_table

ROWS = 130
VOCABULARY = [word for group in WORDS.values() for word in group]


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    return blank_model(tmp_path_factory.mktemp("blank") / "model")


def body_of(kind: str) -> tuple[tuple[str, ...], list[tuple]]:
    """Columns and rows of a training table for a kind of task."""
    draw = random.Random(3)
    words = lambda least=2, most=30: draw.choices(VOCABULARY, k=draw.randint(least, most))
    text = lambda: " ".join(words())
    if kind == "classes":
        return ("sentence", "label"), [(text(), draw.choice("abc")) for _ in range(ROWS)]
    if kind == "some without labels":
        return ("sentence", "label"), [(text(), draw.choice(["a", "b", ""])) for _ in range(ROWS)]
    if kind == "pairs with numbers":
        return ("sentence1", "sentence2", "label"), [(text(), text(), i / 7) for i in range(ROWS)]
    if kind == "several labels":
        return ("text", "labels"), [(text(), draw.sample("abcd", draw.randint(0, 3))) for _ in range(ROWS)]
    if kind == "relevance":
        return ("query", "passage", "label"), [(text(), text(), i % 2) for i in range(ROWS)]
    if kind == "words":
        rows = [words() for _ in range(ROWS)]
        return ("tokens", "tags"), [(row, [draw.choice(["O", "B-X", "I-X"]) for _ in row]) for row in rows]
    if kind == "spans":
        rows = [text() for _ in range(ROWS)]
        return ("text", "label"), [(row, [[0, row.index(" "), draw.choice(["X", "Y"])]]) for row in rows]
    if kind == "answers":
        rows = [(VOCABULARY[i % 9], text()) for i in range(ROWS)]
        answer = lambda row, i: {
            "text": [row.split()[1]] * (i % 5 > 0),
            "answer_start": [row.index(" ") + 1] * (i % 5 > 0),
        }
        return ("question", "context", "answers"), [(q, c, answer(c, i)) for i, (q, c) in enumerate(rows)]
    # Only the last rows have four choices, so that no part but the last does.
    choices = [words(2 + (i % 2) + (i > 120), 2 + (i % 2) + (i > 120)) for i in range(ROWS)]
    return ("question", "choices", "label"), [(text(), row, draw.randrange(len(row))) for row in choices]


KINDS = {
    "classes": (".csv", {}),
    "some without labels": (".csv", {"skip_unlabelled": True}),
    "pairs with numbers": (".tsv", {}),
    "several labels": (".jsonl", {}),
    "relevance": (".csv", {"task": "reranking"}),
    "words": (".jsonl", {}),
    "spans": (".jsonl", {"task": "token-classification"}),
    "answers": (".jsonl", {"doc_stride": 4}),
    "choices": (".jsonl", {}),
}


def read(blank, path, monkeypatch, home, *, stored: bool, **settings):
    """The resolved experiment, its task, and the features of its training table, with an empty cache in ``home``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(stored_tables, "LARGE_TABLE", 0 if stored else 1 << 60)
    monkeypatch.setattr(finetune_data, "PART_ROWS", 20 if stored else 1 << 14)
    files = {"model": str(blank), "train": str(path), "eval": str(path), "output": str(home / "run")}
    resolved = resolve_experiment(Finetune(**files, from_scratch=True, max_length=16, **settings))
    task, tokenizer = resolve_task(resolved.experiment, resolved.train), load_tokenizer(blank)
    features = features_of(resolved, task, tokenizer, resolved.train, resolve_config(resolved.experiment))
    return resolved, task, features


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_features_of_a_stored_table_in_parts(blank, tmp_path, monkeypatch, kind):
    ending, settings = KINDS[kind]
    path = write_table(tmp_path / f"train{ending}", *body_of(kind))
    _, task, whole = read(blank, path, monkeypatch, tmp_path / "a", stored=False, **settings)
    resolved, task_of_stored, features = read(blank, path, monkeypatch, tmp_path / "b", stored=True, **settings)
    assert isinstance(next(iter(resolved.train.columns.values())), LazyColumn)
    assert task_of_stored == task
    for field in dataclasses.fields(whole):
        ours, theirs = getattr(features, field.name), getattr(whole, field.name)
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
        assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)
    if kind == "choices":
        assert features.choices == 4
    keys = lambda home: {entry.name for entry in (tmp_path / home / "deberta_jax" / "tokens").iterdir()}
    assert keys("a") == keys("b"), "one way reads what the other has cached"
    files = lambda home: {
        file.name: file.read_bytes()
        for file in (tmp_path / home / "deberta_jax" / "tokens").glob("*/*")
        if file.name != "checksums.json"
    }
    assert files("a") == files("b")


def test_a_pattern_of_files(blank, tmp_path, monkeypatch):
    header, rows = body_of("classes")
    write_table(tmp_path / "train-1.csv", header, rows[:50])
    write_table(tmp_path / "train-2.jsonl", header, rows[50:])
    pattern = tmp_path / "train-*"
    _, _, whole = read(blank, pattern, monkeypatch, tmp_path / "a", stored=False)
    resolved, _, features = read(blank, pattern, monkeypatch, tmp_path / "b", stored=True)
    np.testing.assert_array_equal(features.ids, whole.ids)
    np.testing.assert_array_equal(features.labels, whole.labels)
    assert resolved.train.where(50) == f"{tmp_path}/train-2.jsonl, line 1"
    assert sorted(resolved.record["data"]) == [f"{tmp_path}/train-1.csv", f"{tmp_path}/train-2.jsonl"]


def test_a_published_file_with_other_names_and_numbers(blank, tmp_path, monkeypatch):
    """The columns and labels of MNLI's copy on the hub, by the names that its own file has."""
    _, rows = body_of("pairs with numbers")
    body = [(a, b, i % 3) for i, (a, b, _) in enumerate(rows)]
    path = write_table(tmp_path / "train.jsonl", ("premise", "hypothesis", "label"), body)
    _, task, whole = read(blank, path, monkeypatch, tmp_path / "a", stored=False, task="mnli")
    resolved, _, features = read(blank, path, monkeypatch, tmp_path / "b", stored=True, task="mnli")
    assert isinstance(resolved.train.column("premise"), Blocks)
    assert task.spec.names == ("contradiction", "neutral", "entailment")
    assert features.labels.tolist() == whole.labels.tolist() == [(2, 1, 0)[i % 3] for i in range(ROWS)]


@pytest.mark.parametrize("stored", [False, True])
def test_a_bad_row_has_one_message(blank, tmp_path, monkeypatch, stored):
    header, rows = body_of("answers")
    rows[77] = ("ban " * 30, *rows[77][1:])
    path = write_table(tmp_path / "train.jsonl", header, rows)
    told = r"train.jsonl, line 78: the question has \d+ tokens; --max-length 16 with --doc-stride 4 leaves 8"
    with pytest.raises(InputError, match=told):
        read(blank, path, monkeypatch, tmp_path / "a", stored=stored, doc_stride=4)


def test_labels_that_are_many_numbers_are_a_regression(blank, tmp_path, monkeypatch):
    """Found without keeping all of them; a name among them makes classes of all, which are then too many."""
    monkeypatch.setattr("deberta_jax.data.labels._MOST_NUMBERS", 60)
    rows = [{"sentence": "ban tell", "label": str(i)} for i in range(ROWS)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, task, _ = read(blank, path, monkeypatch, tmp_path / "a", stored=True)
    assert task.spec.problem_type == "regression"
    path.write_text("".join(json.dumps({**row, "label": f"{row['label']}.5"}) + "\n" for row in rows))
    _, task, _ = read(blank, path, monkeypatch, tmp_path / "a", stored=True)
    assert task.spec.problem_type == "regression"
    path.write_text("".join(json.dumps({**row, "label": "x" if i == 125 else i}) + "\n" for i, row in enumerate(rows)))
    with pytest.raises(InputError, match=f"'label' has {ROWS} different labels in {ROWS} rows"):
        read(blank, path, monkeypatch, tmp_path / "a", stored=True)
