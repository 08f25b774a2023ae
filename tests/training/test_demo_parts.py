"""The demonstration's data and figures; the whole of it is a long test."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from deberta_jax.data.corpus import read_documents
from deberta_jax.data.tables import read_table
from deberta_jax.training import demo_text
from deberta_jax.training.demo import DemoResult, format_report, parameter_count, run_demo
from deberta_jax.training.demo_text import (
    TEST,
    TRAIN,
    VALIDATION,
    collect_docstrings,
    english_sentences,
    with_articles,
    without_articles,
    write_data,
)
from tests.made import weighted_model

FILES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


@pytest.fixture(scope="module")
def docstrings():
    return collect_docstrings()


@pytest.fixture(scope="module")
def data(docstrings, tmp_path_factory):
    directory = tmp_path_factory.mktemp("demo") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_text, "collect_docstrings", lambda: docstrings)  # which takes seconds
        write_data(directory)
    return directory


def originals(path):
    """The labelled sentences of a file as they were."""
    table = read_table(path)
    return [with_articles(*pair) for pair in zip(table.word_lists("words"), table.word_lists("tags"), strict=True)]


def test_docstrings_are_each_there_once_and_none_is_of_a_test(docstrings):
    texts = [text for _, text in docstrings]
    assert len(texts) == len(set(texts)) > 2000
    assert all(len(text.split()) >= 4 for text in texts)
    packages = {package for package, _ in docstrings}
    assert {"asyncio", "email"} <= packages
    assert not {"test", "site-packages", "idle_test"} & packages


def test_articles_are_left_out_and_put_back():
    sentence = "Return an item of the list, or a copy of it, unless the item is an error."
    words, tags = without_articles(sentence.split())
    assert " ".join(words) == "Return item of list, or copy of it, unless item is error."
    assert tags == ["O", "B-A", "O", "B-THE", "O", "B-A", "O", "O", "O", "B-THE", "O", "B-A"]
    assert with_articles(words, tags) == sentence
    assert without_articles(["the", "a", "word", "the"]) == (["word"], ["B-A"])


def test_sentences_are_of_words_and_of_a_moderate_length():
    text = "The first one has six words. Too short.\n\nThis\nhas (x + y) / 2 == z >= 0 in it. Here is one more of them!"
    assert english_sentences(text) == ["The first one has six words.", "Here is one more of them!"]
    assert english_sentences("word " * 33) == []


def test_labelled_sentences_are_in_no_other_file(data):
    sentences = {name: originals(data / f"{name}.jsonl") for name in FILES}
    everything = [sentence for part in sentences.values() for sentence in part]
    assert len(set(everything)) == len(everything)
    text = "\n".join([*read_documents(data / "pretrain.txt"), *read_documents(data / "pretrain_held_out.txt")])
    assert len(text) > 1_000_000
    # Where "a" stood before a vowel and was put back as "an", the sentence differs from the text that it is from.
    assert not [sentence for sentence in everything if sentence in text]


def test_the_task_has_its_sizes_and_its_tags(data):
    for name, size in FILES.items():
        table = read_table(data / f"{name}.jsonl")
        assert len(table) == size
        counts = Counter(tag for tags in table.word_lists("tags") for tag in tags)
        assert set(counts) == {"O", "B-A", "B-THE"}
        assert min(counts["B-A"], counts["B-THE"]) > 0.03 * counts.total()
        assert all(set(tags) != {"O"} for tags in table.word_lists("tags"))
        assert not {"a", "an", "the"} & {word for words in table.word_lists("words") for word in words}


@pytest.mark.slow
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


def test_the_report_shows_both_figures_of_each_seed_and_their_spread(data):
    result = DemoResult(
        parameters=1_000_000,
        pretraining_losses={0: 8.3, 700: 4.25},
        guesses={"A [MASK].": (["x", "y"], ["text", "word"])},
        f1_pretrained=[0.52, 0.53, 0.54],
        f1_from_scratch=[0.40, 0.42, 0.41],
        sentences=[("Return list.", "Return a list.", "Return the list.")],
        seconds=250.0,
    )
    report = format_report(result, data.parent)
    assert re.search(r"step +0 +700\n +loss +8\.30 +4\.25\n", report)
    assert re.search(r"A \[MASK\]\.\n +untrained +x, y\n +pre-trained +text, word\n", report)
    assert f"{TRAIN} sentences to learn from, {TEST} to test" in report
    assert re.search(r"seed +0 +1 +2 +mean\n +pre-trained +0\.520 +0\.530 +0\.540 +0\.530\n", report)
    assert re.search(r"not pre-trained +0\.400 +0\.420 +0\.410 +0\.410\n", report)
    assert "difference of the means +0.120, largest difference between seeds 0.020" in report
    assert re.search(r"Return list\.\n.* Return a list\.\n.* Return the list\.\n", report)
    assert f"--model {data.parent}/articles/pretrained/seed-2 " in report


@pytest.mark.slow
@pytest.mark.system
def test_a_short_demonstration_runs_and_goes_on(tmp_path):
    result = run_demo(tmp_path / "demo", pretraining_steps=2, epochs=1, seeds=1)
    assert list(result.pretraining_losses) == [0, 1, 2]
    assert len(result.f1_pretrained) == len(result.f1_from_scratch) == 1
    for name in ("pretrained", "from_scratch"):
        summary = json.loads((tmp_path / "demo" / "articles" / name / "seeds.json").read_text())
        chosen = json.loads((tmp_path / "demo" / "articles" / name / "seed-0" / "result.json").read_text())["metrics"]
        assert (summary["metric"], summary["median"]) == ("f1", chosen["f1"]), "the metric that chose the checkpoint"
    again = run_demo(tmp_path / "demo", pretraining_steps=2, epochs=1, seeds=1)
    assert again.f1_pretrained == result.f1_pretrained
    assert again.guesses == result.guesses
    assert again.seconds < result.seconds
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["f1_from_scratch"] == result.f1_from_scratch


@pytest.mark.long
def test_the_whole_demonstration(tmp_path):
    result = run_demo(tmp_path / "demo")
    assert result.pretraining_losses[700] < result.pretraining_losses[0] - 3
    spread = max(max(f1) - min(f1) for f1 in (result.f1_pretrained, result.f1_from_scratch))
    assert min(result.f1_pretrained) - max(result.f1_from_scratch) > spread
    for text, (before, after) in result.guesses.items():
        assert before != after, text
    model = tmp_path / "demo" / "articles" / "pretrained" / "seed-0"
    command = [
        sys.executable,
        "-m",
        "deberta_jax.cli.main",
        "evaluate",
        "--model",
        str(model),
        "--data",
        str(tmp_path / "demo" / "data" / "test.jsonl"),
    ]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(out)["f1"] == pytest.approx(result.f1_pretrained[0], abs=0.005)
