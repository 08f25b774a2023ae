"""Rerankers from their files to their metrics and their scores, in Python and by the command line."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, ndcg_score

import deberta_jax
from deberta_jax import DebertaConfig
from deberta_jax.data.features import Features
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.sharding import make_mesh
from deberta_jax.tasks import TaskOptions
from deberta_jax.tasks.resolve import resolve_options, resolve_task, task_of_model
from deberta_jax.training import Finetune, finetune, finetune_data
from tests.made import TINY, WORDS, blank_model, stdout_of, write_table

HEADER = ("query", "passage", "label")


def passages(queries, seed):
    """For each query six passages, of which one or two have words of its list."""
    rng, body = np.random.default_rng(seed), []
    for i in range(queries):
        kind = ("pos", "neg")[i % 2]
        query = f"{WORDS[kind][i // 2 % 16]} {WORDS['other'][i // 32]}"
        relevant = set(rng.permutation(6)[: 1 + i % 2].tolist())
        for k in range(6):
            words = WORDS[kind if k in relevant else "other"]
            body.append((query, " ".join(str(rng.choice(words)) for _ in range(4)), int(k in relevant)))
    return body


@pytest.mark.slow
def test_a_reranker_learns_and_is_served(tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_data, "mesh_of", lambda runtime: make_mesh(devices=jax.devices()[:1]))
    blank = blank_model(tmp_path / "blank", dataclasses.replace(TINY, num_hidden_layers=1))
    held_out = passages(16, 2)
    train = write_table(tmp_path / "train.csv", HEADER, passages(48, 1))
    dev = write_table(tmp_path / "dev.jsonl", HEADER, held_out)
    run = tmp_path / "run"
    settings = {"batch_size": 32, "epochs": 5, "max_length": 32}
    result = finetune(
        Finetune(
            model=str(blank),
            from_scratch=True,
            task="reranking",
            train=str(train),
            eval=str(dev),
            output=str(run),
            optimization=deberta_jax.training.Optimization(learning_rate=1e-2),
            **settings,
        )
    )
    assert list(result.metrics) == ["ndcg@10", "mrr@10", "map", "loss"]
    assert result.metrics["map"] > 0.9, "constant scores have less than 0.3"
    report = (run / "report.html").read_text()
    assert "ndcg@10" in report

    ranker = deberta_jax.CrossEncoder(run)
    assert ranker.max_length == 32
    scores = ranker.predict([row[:2] for row in held_out])
    labels = np.array([row[2] for row in held_out])
    average = [average_precision_score(labels[i : i + 6], scores[i : i + 6]) for i in range(0, len(labels), 6)]
    ndcg = [ndcg_score([labels[i : i + 6]], [scores[i : i + 6]], k=10) for i in range(0, len(labels), 6)]
    assert result.metrics["map"] == pytest.approx(np.mean(average))
    assert result.metrics["ndcg@10"] == pytest.approx(np.mean(ndcg))
    entropy = -np.where(labels, np.log(scores), np.log1p(-scores)).mean()
    assert result.metrics["loss"] == pytest.approx(entropy, rel=1e-4), "scores are probabilities of the trained loss"
    best = ranker.rank(held_out[0][0], [row[1] for row in held_out[:6]], top_k=1)[0]
    assert held_out[best["corpus_id"]][2] == 1

    evaluated = json.loads(stdout_of(["evaluate", "--model", str(run), "--data", str(dev)]))
    assert evaluated == pytest.approx(dict(result.metrics), abs=1e-5)
    out = stdout_of(["predict", "--model", str(run), "--input", str(dev), "--output", "-"])
    np.testing.assert_allclose([json.loads(line)["score"] for line in out.splitlines()], scores, atol=1e-6)


def table(labels, name="rows.csv"):
    columns = {"query": ["q"] * len(labels), "passage": [f"p{i}" for i in range(len(labels))], "label": list(labels)}
    return Table(name, columns, range(2, 2 + len(labels)))


def resolved(rows, **options):
    return resolve_task(resolve_options(TaskOptions(task="reranking", **options), rows), rows)


def test_labels_decide_the_loss_and_the_scores():
    binary = resolved(table([True, "0", 1.0, "false"]))
    config = binary.configure(DebertaConfig(extra={"sbert_ce_default_activation_function": "mine.Scale"}))
    assert (config.num_labels, config.problem_type) == (1, "multi_label_classification")
    numbers = resolved(table([0.5, 3, -1]))
    assert numbers.configure(DebertaConfig()).problem_type == "regression"
    logits = np.array([[0.0], [2.0], [-1.0]], np.float32)
    features = Features(ids=np.zeros(3, np.int32), types=np.zeros(3, np.int8), starts=np.arange(4))
    for task, expected in ((binary, 1 / (1 + np.exp(-logits[:, 0]))), (numbers, logits[:, 0])):
        rows = table([0, 1, 0])
        answers = task.answers(logits, features, rows)
        np.testing.assert_allclose([row["score"] for row in answers], expected, rtol=1e-6)
        reloaded = DebertaConfig.from_hf(task.configure(DebertaConfig()).to_hf())
        options = resolve_options(TaskOptions(task="reranking"), rows, labelled=False)
        assert dataclasses.replace(task_of_model(options, reloaded, rows), label="label") == task
    assert "sbert_ce_default_activation_function" not in config.extra


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (table([1, 1]), {}, "rows.csv: every row of 'label' is 1"),
        (table([1, "good"]), {}, "rows.csv, line 3: 'label' is 'good'; this model predicts a number"),
        (table([1, ""]), {}, "rows.csv, line 3: 'label' is ''"),
        (table([1, [0]]), {}, r"rows.csv, line 3: 'label' is \[0\]"),
        (table([1, 0]), {"text": ("query",)}, "--text query: reranking needs two columns"),
        (table([1, 0]), {"labels": ("label",)}, "--labels: goes with --task multi-label, not with reranking"),
        (Table("rows.csv", {"a": ["x"], "b": ["y"]}, [2]), {}, "which column is the text"),
    ],
)
def test_rows_that_cannot_be_ranked(rows, options, message):
    with pytest.raises(InputError, match=message):
        resolved(rows, **options)


def test_a_model_of_several_labels_is_no_reranker():
    rows = table([0, 1])
    options = resolve_options(TaskOptions(task="reranking"), rows)
    with pytest.raises(InputError, match="needs a model with one label, and this one has 3"):
        task_of_model(options, DebertaConfig(id2label=("a", "b", "c")), rows)
