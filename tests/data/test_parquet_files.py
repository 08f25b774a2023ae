"""Parquet as the hub's ``datasets`` writes it: names of classes stand in the schema's metadata."""

import json

import pytest

from deberta_jax.data.labels import LabelSpec, encode_labels
from deberta_jax.errors import InputError
from deberta_jax.tasks.named import read_task
from deberta_jax.tasks.token_classification import encode_tags
from tests.data.reading import recognised

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def written(path, columns, **features):
    """A file with the metadata that ``datasets`` writes."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return read_task("", [str(path)])


def label(names):
    return {"names": names, "_type": "ClassLabel"}


TEXT = {"dtype": "string", "_type": "Value"}


def test_cls(tmp_path):
    rows = {"text": ["a good day", "a bad day"] * 3, "label": [1, 0] * 3}
    table = written(tmp_path / "cls.parquet", rows, text=TEXT, label=label(["neg", "pos"]))
    _, task = recognised(table)
    assert task.spec == LabelSpec("single_label_classification", ("neg", "pos"))
    assert encode_labels(table, ("label",), task.spec).tolist() == [1, 0] * 3
    other = LabelSpec("single_label_classification", ("POS", "NEG"))
    assert encode_labels(table, ("label",), other).tolist() == [0, 1] * 3, "by name, not by number"
    for nameless in (("LABEL_0", "LABEL_1"), ("0", "1")):
        spec = LabelSpec("single_label_classification", nameless)
        assert encode_labels(table, ("label",), spec).tolist() == [1, 0] * 3, "by number where the model has no names"
    hidden = written(tmp_path / "b.parquet", {"text": ["a"] * 3, "label": [1, 0, -1]}, label=label(["neg", "pos"]))
    with pytest.raises(InputError, match="line 3: 'label' is None; a label is needed"):
        recognised(hidden)
    beyond = written(tmp_path / "c.parquet", {"text": ["a"] * 3, "label": [1, 0, 2]}, label=label(["neg", "pos"]))
    with pytest.raises(InputError, match="line 3: 'label' is 2, but the file names 2 classes"):
        recognised(beyond)


@pytest.mark.parametrize(
    "wrap",
    [lambda f: {"feature": f, "_type": "Sequence"}, lambda f: {"feature": f, "_type": "List"}, lambda f: [f]],
)
def test_ner(tmp_path, wrap):
    rows = {"tokens": [["Anna", "Berg", "is", "in", "Oslo"]] * 2, "ner_tags": [[1, 2, 0, 0, 3]] * 2}
    table = written(tmp_path / "ner.parquet", rows, tokens=wrap(TEXT), ner_tags=wrap(label(NAMES)))
    _, task = recognised(table)
    assert task.names == tuple(NAMES), "also the one that no row uses"
    assert task.metric == "f1"
    assert task.spans
    assert encode_tags(table, "tokens", "ner_tags", task.names) == [[1, 2, 0, 0, 3]] * 2
    swapped = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert encode_tags(table, "tokens", "ner_tags", swapped)[0] == [3, 4, 0, 0, 1]


def test_float_label(tmp_path):
    rows = pa.table({"text": pa.array(["a", "b"] * 4, pa.large_string()), "label": pa.array([1.0, 0.0] * 4)})
    _, task = recognised(written(tmp_path / "float_label.parquet", rows))
    assert task.spec == LabelSpec("single_label_classification", ("0", "1"))


def test_null_text(tmp_path):
    table = written(tmp_path / "null_text.parquet", {"text": ["a", "b", None, "d"], "label": [1, 0, 1, 0]})
    with pytest.raises(InputError, match=r"null_text\.parquet, line 3: 'text' is None; a text is needed"):
        table.texts("text")


def test_several_files_name_their_classes_alike(tmp_path):
    for name, classes in (("a", ["x", "y"]), ("b", ["y", "x"])):
        written(tmp_path / f"{name}.parquet", {"text": ["t"], "label": [0]}, label=label(classes))
    with pytest.raises(InputError, match=r"b\.parquet: names the classes of 'label' otherwise"):
        read_task("", [str(tmp_path / "*.parquet")])


def test_a_named_task_says_itself_what_its_numbers_mean(tmp_path):
    rows = {"sentence": ["a", "b"], "label": [1, 0]}
    written(tmp_path / "validation.parquet", rows, label=label(["negative", "positive"]))
    table = read_task("sst2", [str(tmp_path / "validation.parquet")])
    spec = LabelSpec("single_label_classification", ("0", "1"))
    assert encode_labels(table, ("label",), spec).tolist() == [1, 0]


@pytest.mark.parametrize(
    "metadata", ["", "{", '{"info": 3}', '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}']
)
def test_metadata_that_cannot_be_read_names_nothing(tmp_path, metadata):
    table = pa.table({"text": ["a", "b"] * 2, "label": [1, 0] * 2}).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, tmp_path / "a.parquet")
    assert recognised(read_task("", [str(tmp_path / "a.parquet")]))[1].spec.names == ("0", "1")


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([0]), pa.array([1])], names=["text", "label", "label"])
    with pytest.raises(InputError, match="names a column twice"):
        written(tmp_path / "a.parquet", table)
