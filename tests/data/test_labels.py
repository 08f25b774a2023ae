"""Which problem a label column poses, and the ids of its labels."""

import numpy as np
import pytest

from deberta_jax.data.labels import LabelSpec, discover_labels, encode_labels, same_labels
from deberta_jax.data.tables import Table
from deberta_jax.errors import InputError


def table(*values):
    return Table("f.csv", {"y": list(values)}, list(range(2, 2 + len(values))))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["neg", "pos", "neg", "pos"], ("neg", "pos")),
        (["10", "9", "9", "10", "2", "2"], ("2", "9", "10")),
        ([1, 0, 1, 0], ("0", "1")),
        ([True, False, True, False], ("false", "true")),
        ([" a", "b ", "a", "b"], ("a", "b")),
        (["1", "b", "1", "b"], ("1", "b")),
    ],
)
def test_classes_are_found_and_sorted(values, names):
    spec = discover_labels(table(*values), "y")
    assert spec == LabelSpec("single_label_classification", names)
    expected = [names.index(str(v).strip().lower() if isinstance(v, bool) else str(v).strip()) for v in values]
    encoded = encode_labels(table(*values), ("y",), spec)
    assert encoded.dtype == np.int32
    assert encoded.tolist() == expected


@pytest.mark.parametrize("values", [["0.5", "1", "2"], [0.25, 3], [str(i) for i in range(60)]])
def test_numbers_that_are_no_names_make_a_regression(values):
    spec = discover_labels(table(*values), "y")
    assert spec == LabelSpec("regression", ("LABEL_0",))
    encoded = encode_labels(table(*values), ("y",), spec)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.array([float(v) for v in values], np.float32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", "a"], "every row of 'y' is 'a'"),
        (["0.5", "0.5"], "every row of 'y' is '0.5'"),
        (["a", "", "b"], "line 3: 'y' is ''"),
        (["a", None, "b"], "line 3: 'y' is None"),
        (["a", ["b"], "b"], "line 2: 'y' is 'a'; a list of labels is needed"),
        (list("abcdefgh"), "8 different labels in 8 rows"),
    ],
)
def test_a_column_that_is_no_label_is_refused(values, message):
    with pytest.raises(InputError, match=message.replace("[", r"\[")):
        discover_labels(table(*values), "y")


def test_labels_that_a_model_lacks_are_named_with_their_line():
    spec = LabelSpec("single_label_classification", ("a", "b"))
    with pytest.raises(InputError, match=r"f.csv, line 3: unknown label 'c' in 'y'; known labels: 'a', 'b'"):
        encode_labels(table("a", "c"), ("y",), spec)
    for value in ("c", "nan", "inf"):
        with pytest.raises(InputError, match=r"line 3: .* this model predicts a number"):
            encode_labels(table("0.5", value), ("y",), LabelSpec("regression", ("LABEL_0",)))


def test_case_does_not_tell_labels_apart_unless_the_model_has_both():
    spec = LabelSpec("single_label_classification", ("NO", "Yes"))
    assert encode_labels(table("yes", "no", "Yes", "NO"), ("y",), spec).tolist() == [1, 0, 1, 0]
    both = LabelSpec("single_label_classification", ("b", "B", "c"))
    assert encode_labels(table("B", "b", "c"), ("y",), both).tolist() == [1, 0, 2]
    with pytest.raises(InputError, match="unknown label 'C'"):
        encode_labels(table("C"), ("y",), both)
    assert same_labels(("A", "B"), ("b", "a"))
    assert same_labels(("a", "A"), ("A", "a"))
    assert not same_labels(("a", "A"), ("a", "b"))
    assert not same_labels(("a", "A"), ("a", "a"))
    assert not same_labels(("a", "b", "c"), ("a", "b"))


def test_several_labels_a_text_are_lists_of_names_or_columns_of_0_and_1():
    lists = table(["b", "a"], [], ["c"])
    spec = discover_labels(lists, "y")
    assert spec == LabelSpec("multi_label_classification", ("a", "b", "c"))
    expected = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert encode_labels(lists, ("y",), spec).tolist() == expected
    columns = {"a": ["1", "0", "0"], "b": [True, False, False], "c": [0, 0, 1]}
    wide = Table("f.csv", columns, [2, 3, 4])
    found = encode_labels(wide, ("a", "b", "c"), spec)
    assert found.dtype == np.float32
    assert found.tolist() == expected
    with pytest.raises(InputError, match=r"f.csv, line 3: unknown label 'd' in 'y'"):
        encode_labels(table(["a"], ["d"]), ("y",), spec)
    with pytest.raises(InputError, match=r"line 2: 'a' is '2'; several label columns hold 0 or 1"):
        encode_labels(Table("f.csv", {**columns, "a": ["2", "0", "0"]}, [2, 3, 4]), ("a", "b", "c"), spec)
