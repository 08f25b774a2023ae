"""Every kind of task by the command line, from its files to its metrics and its predictions."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import deberta_jax
from deberta_jax.sharding import make_mesh
from deberta_jax.training import finetune_data
from tests.made import LABELS, TINY, WORDS, blank_model, stdout_of, write_table

SMALL = dataclasses.replace(TINY, num_hidden_layers=1)


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    return blank_model(tmp_path_factory.mktemp("blank"), SMALL)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(finetune_data, "mesh_of", lambda runtime: make_mesh(devices=jax.devices()[:1]))


def learn(blank, tmp_path, train, held_out, *more):
    """The printed metrics, the run's directory, and what ``evaluate`` says of it without being told any column."""
    run = tmp_path / "run"
    printed = json.loads(
        stdout_of(
            [
                "finetune",
                "--model",
                str(blank),
                "--from-scratch",
                "--train",
                str(train),
                "--eval",
                str(held_out),
                "--output",
                str(run),
                "--batch-size",
                "16",
                "--learning-rate",
                "1e-2",
                "--max-length",
                "32",
                "--log-every",
                "9",
                *more,
            ]
        )
    )
    metrics = json.loads(stdout_of(["evaluate", "--model", str(run), "--data", str(held_out)]))
    assert {name: pytest.approx(printed[name], abs=1e-4) for name in metrics} == metrics
    report = (run / "report.html").read_text()
    assert report.count("<html") == 1
    assert "data:image/png;base64" in report
    assert "http" not in report.replace("http-equiv", ""), "one file, without a network"
    return printed, run


def predicted(run, data):
    out = stdout_of(["predict", "--model", str(run), "--input", str(data), "--output", "-"])
    return [json.loads(line) for line in out.splitlines()]


def word_rows(count, seed):
    """Sentences whose words of one list are tagged with a span's tags."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        words, tags, before = [], [], ""
        for _ in range(int(rng.integers(2, 5))):
            # Two spans of one kind side by side could not be told from one.
            kind = before = str(rng.choice([label for label in LABELS if label != before]))
            for i in range(int(rng.integers(1, 3))):
                words.append(str(rng.choice(WORDS[kind])))
                tags.append("O" if kind == "other" else f"{'I' if i else 'B'}-{kind.upper()}")
        yield words, tags


@pytest.mark.slow
def test_tags_of_words_from_conll(blank, tmp_path):
    paths = []
    for name, count in (("train.conll", 120), ("eval.conll", 40)):
        text = "\n".join("".join(f"{w} {t}\n" for w, t in zip(*row, strict=True)) for row in word_rows(count, count))
        paths.append(tmp_path / name)
        paths[-1].write_text(text)
    printed, run = learn(blank, tmp_path, *paths, "--epochs", "14")
    assert printed.keys() == {"output", "step", "precision", "recall", "f1", "accuracy", "loss"}
    assert printed["accuracy"] > 0.8, "the most frequent tag has less than 0.4"
    assert printed["f1"] > 0.5
    config = json.loads((run / "config.json").read_text())
    assert config["architectures"] == ["DebertaV2ForTokenClassification"]
    assert config["id2label"] == {"0": "O", "1": "B-NEG", "2": "I-NEG", "3": "B-POS", "4": "I-POS"}
    answers, truth = predicted(run, paths[1]), list(word_rows(40, 40))
    hits = [
        a == b for row, (_, tags) in zip(answers, truth, strict=True) for a, b in zip(row["tags"], tags, strict=True)
    ]
    assert np.mean(hits) == pytest.approx(printed["accuracy"], abs=1e-6)
    pipe = deberta_jax.pipeline("token-classification", run, is_split_into_words=True, ignore_labels=[])
    for (words, _), tokens, answer in zip(truth, pipe([words for words, _ in truth]), answers, strict=True):
        starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
        assert answer["tags"] == [next(t["entity"] for t in tokens if t["start"] >= start) for start in starts]
    for span in answers[0]["spans"]:
        assert span["text"] == " ".join(truth[0][0][span["start"] : span["end"]])


@pytest.mark.slow
def test_spans_of_characters_from_doccano(blank, tmp_path):
    """Trained on, evaluated and given back by characters; rows that nobody annotated are left out where asked."""
    paths, texts = [], []
    for name, count in (("train.jsonl", 120), ("eval.jsonl", 40)):
        rows = []
        for words, tags in word_rows(count, count):
            starts = [sum(len(word) + 1 for word in words[:i]) for i in range(len(words))]
            spans = [
                [starts[i], starts[j] + len(words[j]), tags[i][2:]]
                for i, tag in enumerate(tags)
                if tag[0] == "B"
                for j in [i + (i + 1 < len(tags) and tags[i + 1][0] == "I")]
            ]
            rows.append({"text": " ".join(words), "label": spans})
        texts = [(row["text"], {tuple(span) for span in row["label"]}) for row in rows]
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "ban", "label": None}]))
    run = tmp_path / "run"
    command = ["finetune", "--model", str(blank), "--from-scratch", "--train", str(paths[0]), "--eval", str(paths[1])]
    sizes = ["--batch-size", "16", "--learning-rate", "1e-2", "--max-length", "32", "--epochs", "14"]
    printed = json.loads(stdout_of([*command, "--output", str(run), *sizes, "--skip-unlabelled"]))
    assert printed["accuracy"] > 0.8, "the most frequent tag has less than 0.4"
    assert printed["f1"] > 0.5
    config = json.loads((run / "config.json").read_text())
    assert config["id2label"] == {"0": "O", "1": "B-NEG", "2": "I-NEG", "3": "B-POS", "4": "I-POS"}
    answers = predicted(run, paths[1])[: len(texts)]
    guess = [{(s["start"], s["end"], s["label"]) for s in answer["spans"]} for answer in answers]
    right = sum(len(ours & gold) for ours, (_, gold) in zip(guess, texts, strict=True))
    assert printed["recall"] == pytest.approx(right / sum(len(gold) for _, gold in texts))
    assert printed["precision"] == pytest.approx(right / sum(map(len, guess)))


def questions(path, count, seed):
    """Whose word of the named list is it? One question in six has no answer."""
    rng, articles = np.random.default_rng(seed), []
    for i in range(count):
        kind = str(rng.choice(["pos", "neg"]))
        words = [str(rng.choice(WORDS["other"])) for _ in range(int(rng.integers(4, 12)))]
        answers = []
        if i % 6:
            at = int(rng.integers(len(words)))
            words[at] = str(rng.choice(WORDS[kind]))
            answers = [{"text": words[at], "answer_start": len(" ".join(words[:at])) + (at > 0)}]
        qa = {"id": str(i), "question": WORDS[kind][0], "answers": answers, "is_impossible": not answers}
        articles.append({"title": "", "paragraphs": [{"context": " ".join(words), "qas": [qa]}]})
    path.write_text(json.dumps({"data": articles}))
    return path


@pytest.mark.slow
def test_answers_from_squads_json(blank, tmp_path):
    train, held_out = questions(tmp_path / "train.json", 300, 1), questions(tmp_path / "eval.json", 48, 2)
    printed, run = learn(blank, tmp_path, train, held_out, "--epochs", "10", "--max-length", "24", "--doc-stride", "8")
    assert printed["f1"] > 60, "always the same place has less than 15, never an answer 17"
    assert {"exact_match", "has_answer_f1", "no_answer_f1"} <= printed.keys()
    answers = predicted(run, held_out)
    assert [row["id"] for row in answers] == [str(i) for i in range(48)]
    truth = json.loads(held_out.read_text())["data"]
    right = 0
    for row, article in zip(answers, truth, strict=True):
        (paragraph,) = article["paragraphs"]
        texts = [answer["text"] for answer in paragraph["qas"][0]["answers"]]
        assert paragraph["context"][row["start"] : row["end"]] == row["answer"]
        right += row["answer"] in (texts or [""])
    assert right / 48 * 100 == pytest.approx(printed["exact_match"])
    pipe = deberta_jax.pipeline("question-answering", run)
    (paragraph,) = truth[1]["paragraphs"]
    one = pipe(question=paragraph["qas"][0]["question"], context=paragraph["context"])
    assert one["answer"] == answers[1]["answer"]
    assert paragraph["context"][one["start"] : one["end"]] == one["answer"]


@pytest.mark.slow
def test_multiple_choice_of_two_and_three(blank, tmp_path):
    rng, body = np.random.default_rng(3), []
    for i in range(200):
        right = i % 3 if i % 4 else i % 2
        choices = [str(rng.choice(WORDS["neg"])) for _ in range(3 if i % 4 else 2)]
        choices[right] = str(rng.choice(WORDS["pos"]))
        body.append((str(rng.choice(WORDS["other"])), choices, right))
    header = ("question", "choices", "label")
    train = write_table(tmp_path / "train.jsonl", header, body)
    held_out = write_table(tmp_path / "eval.jsonl", header, body[:40])
    printed, run = learn(blank, tmp_path, train, held_out, "--epochs", "4")
    assert printed["accuracy"] > 0.7, "guessing has 0.38"
    answers = predicted(run, held_out)
    hits = [row["choice"] == right for row, (_, _, right) in zip(answers, body, strict=False)]
    assert np.mean(hits) == pytest.approx(printed["accuracy"])
    assert [len(row["probabilities"]) for row in answers] == [len(choices) for _, choices, _ in body[:40]]
    pipe = deberta_jax.pipeline("multiple-choice", run)
    assert pipe({"text": body[0][0], "choices": body[0][1]})["text"] == answers[0]["text"]


@pytest.mark.slow
def test_several_labels_a_text(blank, tmp_path):
    rng, body = np.random.default_rng(4), []
    for _ in range(160):
        kinds = [kind for kind in LABELS if rng.random() < 0.5]
        words = [str(rng.choice(WORDS[kind])) for kind in kinds for _ in range(2)] or ["zzz"]
        body.append((" ".join(rng.permutation(words)), kinds))
    train = write_table(tmp_path / "train.jsonl", ("text", "labels"), body)
    held_out = write_table(tmp_path / "eval.jsonl", ("text", "labels"), body[:40])
    printed, run = learn(blank, tmp_path, train, held_out, "--epochs", "20")
    assert printed["f1"] > 0.85
    assert json.loads((run / "config.json").read_text())["problem_type"] == "multi_label_classification"
    answers = predicted(run, held_out)
    assert np.mean(
        [sorted(row["labels"]) == sorted(kinds) for row, (_, kinds) in zip(answers, body, strict=False)]
    ) == (pytest.approx(printed["accuracy"]))
    scores = deberta_jax.pipeline("text-classification", run)(body[0][0], top_k=None)
    assert {a["label"]: pytest.approx(a["score"], abs=1e-6) for a in scores} == answers[0]["probabilities"]


def test_options_of_the_step_together(task, tmp_path):
    """SiFT, micro-batches, a running mean, slower lower layers, Microsoft's Adam, a profile and TensorBoard."""
    pytest.importorskip("tensorboardX")
    run = tmp_path / "run"
    printed = json.loads(
        stdout_of(
            task.arguments(
                run,
                "--epochs",
                "3",
                "--log-every",
                "3",
                "--sift",
                "5",
                "--tensorboard",
                "--profile",
                "2",
                "4",
                "--ema",
                "0.5",
                "--accumulate",
                "2",
                "--attention",
                "xla",
                "--layer-decay",
                "0.9",
                "--no-bias-correction",
                "--schedule",
                "original",
                "--learning-rate",
                "1e-3",
            )
        )
    )
    assert printed["accuracy"] > 0.8, "the majority has 0.5"
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for entry in (entry for entry in entries if "loss" in entry):
        assert entry["loss"] == pytest.approx(entry["task"] + 5 * entry["sift"], rel=1e-5)
        # Two cross-entropies between answers: at least the two entropies, at most those of a coin.
        assert 0 < entry["sift"] < 2 * np.log(2) + 0.1
    assert list((run / "tensorboard").iterdir())
    assert list((run / "profile").rglob("*.xplane.pb"))
