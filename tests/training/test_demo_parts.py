"""The demonstration's data and figures; the whole of it is a long test."""

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from deberta_jax.data.corpus import read_documents
from deberta_jax.data.tables import read_table
from deberta_jax.training import demo
from deberta_jax.training.demo import CLASSES, collect_docstrings, parameter_count, run_demo, write_data
from tests.made import weighted_model


@pytest.fixture(scope="module")
def docstrings():
    return collect_docstrings()


@pytest.fixture(scope="module")
def data(docstrings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "collect_docstrings", lambda: docstrings)  # which takes seconds
        write_data(directory)
    return directory


def test_docstrings_are_each_there_once_and_none_is_of_a_test(docstrings):
    texts = [text for _, text in docstrings]
    assert len(texts) == len(set(texts)) > 2000
    assert all(len(text.split()) >= 4 for text in texts)
    packages = {package for package, _ in docstrings}
    assert {"asyncio", "email"} <= packages
    assert not {"test", "site-packages", "idle_test"} & packages


def test_held_out_docstrings_are_in_no_other_file(data):
    train, held_out = read_table(data / "train.csv"), read_table(data / "held_out.csv")
    unseen = set(held_out.column("docstring"))
    assert not unseen & set(train.column("docstring"))
    assert len(unseen) == len(held_out)
    lines = {*read_documents(data / "pretrain.txt"), *read_documents(data / "pretrain_held_out.txt")}
    # A sentence that is one docstring may be a paragraph of another; no more than that.
    again = [text for text in unseen if " ".join(text.split()) in lines]
    assert len(again) < 0.02 * len(unseen), again


def test_the_task_has_its_classes_and_the_split_its_sizes(data):
    train, held_out = read_table(data / "train.csv"), read_table(data / "held_out.csv")
    counts = Counter(train.column("package")) + Counter(held_out.column("package"))
    assert len(counts) == CLASSES
    assert max(counts.values()) <= 2 * min(counts.values()), "no class is most of the task"
    assert set(held_out.column("package")) == set(train.column("package"))
    assert min(len(train), len(held_out)) > 300


def test_the_data_is_made_once_and_the_same(data, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in data.iterdir()}
    write_data(data)
    assert {path.name: path.stat().st_mtime_ns for path in data.iterdir()} == before
    write_data(tmp_path / "again")
    for path in data.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_parameters_are_counted_from_the_file(tmp_path):
    model = weighted_model(tmp_path / "model")
    size = int.from_bytes((model / "model.safetensors").read_bytes()[:8], "little")
    header = json.loads((model / "model.safetensors").read_bytes()[8 : 8 + size])
    data_bytes = (model / "model.safetensors").stat().st_size - 8 - size
    assert header
    assert parameter_count(model) == data_bytes // np.dtype(np.float32).itemsize


@pytest.mark.long
def test_the_whole_demonstration(tmp_path):
    result = run_demo(tmp_path / "demo")
    assert result.accuracy > result.majority_accuracy + 0.2
    assert result.accuracy > result.accuracy_without_pretraining
    assert result.pretraining_loss_after < result.pretraining_loss_before - 1
    model, file = tmp_path / "demo" / "classifier", tmp_path / "demo" / "data" / "held_out.csv"
    command = [
        sys.executable,
        "-m",
        "deberta_jax.cli.main",
        "evaluate",
        "--model",
        str(model),
        "--data",
        str(file),
        "--text",
        "docstring",
        "--label",
        "package",
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(out)["accuracy"] == pytest.approx(result.accuracy, abs=0.005)
