"""Models of named tasks by the command line: the labels of released checkpoints, the files of GLUE's test."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from deberta_jax.data.tables import Table
from deberta_jax.errors import InputError
from deberta_jax.presets import PRESETS
from deberta_jax.tasks import TaskOptions, kind_of_model, resolve_task
from deberta_jax.tasks.token_classification import discover_tags, encode_tags
from tests.made import TINY, WORDS, stdout_of, weighted_model


@pytest.fixture(scope="module")
def mnli(tmp_path_factory):
    """A model directory whose classifier has the labels of the released -mnli checkpoints."""
    config = dataclasses.replace(TINY, num_hidden_layers=1, id2label=PRESETS["deberta-large-mnli"].id2label)
    return weighted_model(tmp_path_factory.mktemp("mnli") / "model", config)


def nli_file(path, names=("entailment", "neutral", "contradiction")):
    """Twelve pairs as MultiNLI's tsv has them."""
    lines = ["index\tsentence1\tsentence2\tlabel1\tgold_label"]
    for i in range(12):
        first, second = WORDS["pos"][i % len(WORDS["pos"])], WORDS["neg"][i % 3]
        lines.append(f"{i}\t{first}\t{second}\tneutral\t{names[i % 3]}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_released_classifier_reads_the_tasks_labels_in_lower_case(mnli, tmp_path, capsys):
    path, shouted = (
        nli_file(tmp_path / "dev.tsv"),
        nli_file(tmp_path / "d.tsv", ("ENTAILMENT", "NEUTRAL", "CONTRADICTION")),
    )
    evaluate = ["evaluate", "--model", str(mnli), "--task", "mnli", "--data"]
    found = json.loads(stdout_of([*evaluate, path]))
    said = [line for line in capsys.readouterr().err.splitlines() if "labels are read as the model's" in line]
    assert len(said) == 1
    assert said[0].endswith("contradiction as CONTRADICTION, entailment as ENTAILMENT, neutral as NEUTRAL")
    assert found == json.loads(stdout_of([*evaluate, shouted]))
    assert "labels are read" not in capsys.readouterr().err
    # The order is the model's: the accuracy is that of its own answers.
    out = stdout_of(["predict", "--model", str(mnli), "--task", "mnli", "--input", path, "--output", "-"])
    answers = [json.loads(line)["label"].lower() for line in out.splitlines()]
    truth = [line.split("\t")[-1] for line in (tmp_path / "dev.tsv").read_text().splitlines()[1:]]
    assert found["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(answers, truth, strict=True)]))


@pytest.mark.slow
def test_a_released_classifier_is_not_initialised_again(mnli, tmp_path, one_device):
    path = nli_file(tmp_path / "train.tsv")
    stdout_of(
        [
            "finetune",
            "--model",
            str(mnli),
            "--task",
            "mnli",
            "--train",
            path,
            "--eval",
            path,
            "--output",
            str(tmp_path / "run"),
            "--epochs",
            "1",
            "--learning-rate",
            "1e-9",
            "--max-length",
            "16",
            "--batch-size",
            "8",
        ]
    )
    before, after = (load_file(place / "model.safetensors") for place in (mnli, tmp_path / "run"))
    np.testing.assert_allclose(after["classifier.weight"], before["classifier.weight"], atol=1e-6)
    labels = json.loads((tmp_path / "run" / "config.json").read_text())["id2label"]
    assert tuple(labels.values()) == PRESETS["deberta-large-mnli"].id2label


def test_the_texts_of_glues_test_are_answered(tmp_path):
    model = weighted_model(tmp_path / "model", dataclasses.replace(TINY, num_hidden_layers=1, id2label=("0", "1")))
    texts = [WORDS["pos"][0], " ".join(WORDS["neg"][:4]), WORDS["other"][0]]
    (tmp_path / "test.tsv").write_text("index\tsentence\n" + "".join(f"{i}\t{t}\n" for i, t in enumerate(texts)))
    (tmp_path / "same.jsonl").write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    answers = [
        stdout_of(
            ["predict", "--model", str(model), "--task", "sst2", "--input", str(tmp_path / name), "--output", "-"]
        )
        for name in ("test.tsv", "same.jsonl")
    ]
    assert answers[0] == answers[1]
    assert answers[0].count("\n") == 3


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"architectures": 3}'])
def test_a_broken_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        kind_of_model(tmp_path)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([["O", 1]], "are names, as 'O', and numbers, as 1"),
        ([["O", ["O"]]], r"line 1: 'tags' has \['O'\]"),
        ([[0, -1]], "line 1: 'tags' has -1"),
        ([["O", True]], "line 1: 'tags' has True"),
        ([["O", "O"], ["O", None]], "line 2: 'tags' has None"),
    ],
)
def test_tags_are_names_or_numbers(tags, message):
    table = Table("f.jsonl", {"words": [["a", "b"]] * len(tags), "tags": tags}, range(1, len(tags) + 1))
    with pytest.raises(InputError, match=message):
        discover_tags(table, "words", "tags")


def test_tags_of_another_case_and_by_number():
    table = Table("f.jsonl", {"words": [["a", "b", "c"]], "tags": [["o", "B-per", 2]]}, [1])
    assert encode_tags(table, "words", "tags", ("O", "B-PER", "I-PER")) == [[0, 1, 2]]
    with pytest.raises(InputError, match="line 1: unknown tag 2"):
        encode_tags(table, "words", "tags", ("O", "B-PER"))


@pytest.mark.parametrize("start", [None, "one", 1.5, True, -1])
def test_an_answer_starts_at_a_whole_number(start):
    answers = {"text": ["a"], "answer_start": [start]}
    table = Table("f.jsonl", {"question": ["q"], "context": ["ba"], "answers": [answers]}, [7])
    options = TaskOptions(task="squad", text=("question", "context"), label="answers")
    with pytest.raises(InputError, match=r"f\.jsonl, line 7: 'answers' is .*it must be"):
        resolve_task(options, table)
