"""Data sets of the hub and folders of ``save_to_disk``; ``datasets`` is an extra, and tests skip without it."""

import sys

import pytest

from deberta_jax.data.hub_datasets import digest, is_dataset
from deberta_jax.errors import InputError
from deberta_jax.tasks.named import read_task
from tests.data.reading import recognised


@pytest.fixture
def datasets():
    return pytest.importorskip("datasets", reason="the extra 'hub' (datasets) is not installed")


def two_splits(datasets):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": ["a", "b", "c"], "label": [1, 0, 1]}
    train = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict({"train": train, "test": train.select([1])})


def test_a_folder_of_save_to_disk(datasets, tmp_path):
    both = two_splits(datasets)
    both["train"] = both["train"].select([2, 1])  # an index, not the rows as they are stored
    both.save_to_disk(str(tmp_path / "set"))
    table = read_task("", [str(tmp_path / "set" / "train")])
    assert table.columns == {"text": ["c", "b"], "label": [1, 0]}
    assert table.class_names == {"label": ("neg", "pos")}
    assert recognised(table)[1].spec.names == ("neg", "pos")
    with pytest.raises(InputError, match=r"set: several splits; give one of train, test, as in .*set/NAME"):
        read_task("", [str(tmp_path / "set")])
    first = digest(str(tmp_path / "set" / "train"))
    assert first == digest(str(tmp_path / "set" / "train"))
    assert first != digest(str(tmp_path / "set" / "test"))


def test_a_damaged_folder_is_named(datasets, tmp_path):
    two_splits(datasets)["train"].save_to_disk(str(tmp_path / "set"))
    for file in sorted((tmp_path / "set").iterdir()):
        whole = file.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"\xff" * len(whole), b"[]"):
            file.write_bytes(content)
            try:
                found = f"{len(read_task('', [str(tmp_path / 'set')]))} rows"
            except InputError as error:
                found = str(error)
            assert found == "3 rows" or found.startswith(str(tmp_path / "set")), (file.name, content[:20], found)
        file.write_bytes(whole)


def test_words_and_tags_of_a_folder(datasets, tmp_path):
    names = ["O", "B-PER", "B-LOC"]
    tags = datasets.Sequence(datasets.ClassLabel(names=names))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("string")), "ner_tags": tags})
    rows = {"tokens": [["Anna", "sleeps"]], "ner_tags": [[1, 0]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    _, task = recognised(read_task("", [str(tmp_path / "set")]))
    assert task.names == tuple(names)


@pytest.mark.parametrize(
    ("path", "calls"),
    [
        ("hub:owner/name@train", [("owner/name",)]),
        ("hub:owner/name/config@train", [("owner/name", "config")]),
        ("hub:glue/sst2@train", [("glue/sst2",), ("glue", "sst2")]),
        ("hub:name@train", [("name",)]),
    ],
)
def test_names_of_the_hub(datasets, monkeypatch, path, calls):
    made = []

    def load_dataset(*arguments):
        made.append(arguments)
        if arguments == ("glue/sst2",):
            raise FileNotFoundError("no such data set")
        return two_splits(datasets)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_task("", [path]).columns["text"] == ["a", "b", "c"]
    assert made == calls
    with pytest.raises(InputError, match="several splits; give one of train, test, as in hub:"):
        read_task("", [path.partition("@")[0]])
    with pytest.raises(InputError, match="no split 'dev'"):
        read_task("", [path.replace("train", "dev")])
    assert digest(path) == digest(path) != digest(path.replace("train", "test"))


def test_what_cannot_be_loaded_is_said_in_a_line(datasets, monkeypatch, tmp_path):
    def load_dataset(*arguments):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in ("hub:name", "hub:a/b", "hub:a/b/c"):
        with pytest.raises(InputError, match=rf"{path}: cannot be loaded \(no network\)"):
            read_task("", [path])
    for path in ("hub:", "hub:a//b", "hub:a/b/c/d"):
        with pytest.raises(InputError, match="give hub:OWNER/NAME"):
            read_task("", [path])
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be loaded"):
        read_task("", [str(tmp_path)])


def test_without_the_library_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"hub:a/b: needs the library datasets; pip install 'deberta_jax\[hub\]'"):
        read_task("", ["hub:a/b"])
    assert not is_dataset(str(tmp_path))
