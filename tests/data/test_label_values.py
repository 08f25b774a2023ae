"""One rule says which label a value means, wherever it stands: in training and evaluation files, csv or jsonl."""

import csv
import json
import math

import numpy as np
import pytest

from deberta_jax.data.labels import LabelIds, discover_labels, encode_labels, label_name, same_labels
from deberta_jax.errors import InputError
from deberta_jax.tasks import TaskOptions, without_unlabelled
from tests.data.reading import read_task, recognised


def column(directory, values, form):
    """A table of these labels, as this form of file has them."""
    path = directory / f"labels.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps({"text": "a", "label": value}) + "\n" for value in values))
    else:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows(["a", value] for value in values)
    return read_task("", [str(path)])


def both(directory, training, evaluation, form):
    """The names found in training values, and the ids of evaluation values."""
    spec = discover_labels(column(directory, training, form), "label")
    return spec, encode_labels(column(directory, evaluation, form), ("label",), spec).tolist()


forms = pytest.mark.parametrize("form", ["csv", "jsonl"])


@forms
def test_equal_numbers_are_one_label(tmp_path, form):
    spec, ids = both(tmp_path, ["1", "0", "1.0", "0.0", 1, 0.0], ["1", "0", "1.0", "0.0", 0, 1.0, "+1", "00"], form)
    assert spec.problem_type == "single_label_classification"
    assert spec.names == ("0", "1")
    assert ids == [1, 0, 1, 0, 0, 1, 1, 0]


@forms
def test_whole_numbers_then_decimals(tmp_path, form):
    spec, ids = both(tmp_path, ["0", "1", "0", "1"], [0.0, 1.0, "0.0", "1.0"], form)
    assert (spec.names, ids) == (("0", "1"), [0, 1, 0, 1])


@forms
@pytest.mark.parametrize("missing", ["", "nan", "NaN", None, "None", "null", math.nan, "  "])
def test_a_missing_value_names_its_row_and_never_makes_a_regression(tmp_path, caplog, form, missing):
    table = column(tmp_path, [0, 1, 0, missing, 1], form)
    with pytest.raises(InputError, match=r"line [45]: 'label' is .*; a label is needed: .*--skip-unlabelled"):
        recognised(table)
    options, task = recognised(table, skip_unlabelled=True)
    assert options.task == "text-classification"
    assert task.spec.names == ("0", "1")
    assert "1 of 5 rows have no usable label and are left out" in caplog.text
    kept = without_unlabelled(options, table)
    assert encode_labels(kept, ("label",), task.spec).tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match="no row has a usable label"):
        recognised(column(tmp_path, [missing], form), skip_unlabelled=True)


@forms
def test_nan_is_no_class(tmp_path, form):
    for word in ("nan", "None", "null"):
        with pytest.raises(InputError, match=rf"'label' is '{word}'; a label is needed"):
            recognised(column(tmp_path, ["pos", "neg", word, "pos", "neg"], form))
    assert discover_labels(column(tmp_path, ["none", "some"] * 2, form), "label").names == ("none", "some")
    assert LabelIds(("None", "some")).find("None") == 0, "a model may have a label of that name"


@forms
def test_missing_numbers_of_a_regression(tmp_path, form):
    table = column(tmp_path, [0.5, 1.5, "", 2], form)
    task = recognised(table, task="regression")[1]
    with pytest.raises(InputError, match=r"this model predicts a number .*--skip-unlabelled"):
        encode_labels(table, ("label",), task.spec)
    options, task = recognised(table, task="regression", skip_unlabelled=True)
    kept = without_unlabelled(options, table)
    np.testing.assert_array_equal(encode_labels(kept, ("label",), task.spec), np.float32([0.5, 1.5, 2]))


@forms
def test_true_and_false_then_1_and_0(tmp_path, form):
    for training, names in (([True, False] * 2, ("false", "true")), ([1, 0] * 2, ("0", "1"))):
        spec, ids = both(tmp_path, training, [1, 0, True, False, "TRUE", "false", 1.0, "0.0"], form)
        assert spec.names == names
        assert ids == [1, 0, 1, 0, 1, 0, 1, 0]
    assert discover_labels(column(tmp_path, [True, False, 1, 0], form), "label").names == ("0", "1")
    assert same_labels(("false", "true"), ("0", "1"))
    assert LabelIds(("False", "True")).find(True) == 1, "as models of earlier versions have them"


@forms
def test_composed_and_combining_accents(tmp_path, form):
    combining, composed = "cafe\u0301", "caf\u00e9"
    spec, ids = both(tmp_path, [combining, "tea"] * 2, [composed, combining, "tea"], form)
    assert spec.names == (composed, "tea")
    assert ids == [0, 0, 1]
    assert LabelIds((combining, "tea")).find(composed) == 0


@forms
def test_ids_of_a_model_whose_labels_nobody_named(tmp_path, form, caplog):
    caplog.set_level("INFO")
    spec = type(discover_labels(column(tmp_path, [0, 1] * 2, form), "label"))(
        "single_label_classification", ("LABEL_0", "LABEL_1")
    )
    assert encode_labels(column(tmp_path, [0, "1", 1.0], form), ("label",), spec).tolist() == [0, 1, 1]
    assert "labels are read as the model's: 0 as LABEL_0, 1 as LABEL_1" in caplog.text
    with pytest.raises(InputError, match="unknown label '2'"):
        encode_labels(column(tmp_path, [2], form), ("label",), spec)
    ids = LabelIds(("0", "1"))
    assert (ids.find("LABEL_1"), ids.find("label_0"), ids.find("LABEL_2")) == (1, 0, None)
    assert LabelIds(("neg", "pos")).find("0") is None, "named labels have no ids to be called by"
    assert not same_labels(("LABEL_0", "LABEL_1"), ("0", "1")), "a new model keeps the file's names"


def test_numbers_that_choices_are_labelled_with(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"question": "q", "choices": ["a", "b"], "label": value} for value in (1.0, "2", 2, "1.0")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_task("", [str(path)])
    _, task = recognised(table)
    assert task.first == 1
    assert task._labels(table, [2] * 4).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("1e2", "100"),
        ("0.50", "0.5"),
        (1e-05, "0.00001"),
        ("-0", "0"),
        (2**70, str(2**70)),
        ("1_0", "1_0"),
        ("0x1", "0x1"),
        ("1.2.3", "1.2.3"),
        ("inf", "inf"),
        (" A ", "A"),
        ("١", "١"),
        ("1e999", "1" + "0" * 999),
        ("1e9999", "1e9999"),
        ("TRUE", "true"),
        ("NA", "NA"),
        ("<NA>", None),
    ],
)
def test_names_of_values(value, name):
    assert label_name(value) == name


def test_options_of_named_tasks_know_no_missing_names(tmp_path):
    """-1 is what the hub's copies have where there is no label."""
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"sentence1": "a", "sentence2": "b", "label": i}) + "\n" for i in (0, -1, 1.0)))
    table = read_task("rte", [str(path)])
    assert table.columns["label"] == ["entailment", None, "not_entailment"]
    options = TaskOptions(task="rte", text=("sentence1", "sentence2"), label="label", skip_unlabelled=True)
    assert len(without_unlabelled(options, table)) == 2
