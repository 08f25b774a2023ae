"""Data files by the command line: what is said of them, and that options reach the reader."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

import deberta_jax
from deberta_jax.cli.main import main
from tests.made import TINY, rows, stdout_of, weighted_model, write_table

BODY = rows(24, seed=11)


def evaluated(capsys, model, path, *more):
    """Metrics that ``evaluate`` prints for a file, and what it says."""
    capsys.readouterr()
    main(["evaluate", "--model", str(model), "--data", str(path), *more])
    out, err = capsys.readouterr()
    return json.loads(out), err


@pytest.fixture(scope="module")
def expected(trained, tmp_path_factory):
    """The metrics of BODY from a plain csv."""
    path = write_table(tmp_path_factory.mktemp("plain") / "a.csv", ("sentence", "kind"), BODY)
    return json.loads(stdout_of(["evaluate", "--model", str(trained.directory), "--data", str(path)]))


def test_evaluate_says_how_many_texts_it_cut(trained, tmp_path, capsys):
    body = [("ban " * 40, "pos"), ("tell", "neg"), ("tell " * 40, "neg")]
    path = write_table(tmp_path / "a.csv", ("sentence", "kind"), body)
    _, err = evaluated(capsys, trained.directory, path)
    assert "a.csv: 2 of 3 texts are longer than 16 tokens and were cut" in err


def test_predict_and_the_pipeline_say_how_many_texts_they_cut(trained, tmp_path, capsys, caplog, monkeypatch):
    path = write_table(tmp_path / "a.csv", ("sentence",), [("ban " * 40,), ("tell",)])
    main(["predict", "--model", str(trained.directory), "--input", str(path), "--output", str(tmp_path / "o.jsonl")])
    assert "a.csv: 1 of 2 texts are longer than 16 tokens and were cut" in capsys.readouterr().err
    pipe = deberta_jax.pipeline("text-classification", trained.directory)
    monkeypatch.setattr(logging.getLogger("deberta_jax"), "propagate", True)
    pipe(["ban " * 40, "ban"])
    assert "the input: 1 of 2 texts are longer than 16 tokens and were cut" in caplog.text


def test_a_delimiter_that_is_given(trained, tmp_path, capsys, expected):
    path = tmp_path / "c.csv"
    path.write_text("\n".join("^".join(row) for row in (("sentence", "kind"), *BODY)))
    assert evaluated(capsys, trained.directory, path, "--delimiter", "^")[0] == expected


def test_rows_without_a_label_are_refused_or_left_out(trained, tmp_path, capsys, expected):
    header = ("sentence", "kind")
    path = write_table(tmp_path / "b.csv", header, [*BODY, ("ban", ""), ("ban", "nan")])
    with pytest.raises(SystemExit) as stopped:
        evaluated(capsys, trained.directory, path)
    assert stopped.value.code == 2
    assert f"{path}, line 26: 'kind' is ''; a label is needed" in capsys.readouterr().err
    found, err = evaluated(capsys, trained.directory, path, "--skip-unlabelled")
    assert found == expected
    assert "b.csv: 2 of 26 rows have no usable label and are left out" in err
    out = stdout_of(["predict", "--model", str(trained.directory), "--input", str(path), "--output", "-"])
    assert len(out.splitlines()) == 26, "predict answers every row"


@pytest.mark.slow
def test_ids_of_a_model_whose_labels_nobody_named(tmp_path, capsys):
    model = weighted_model(tmp_path / "model")
    assert json.loads((model / "config.json").read_text())["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    body = [(text, int(label == "pos")) for text, label in BODY]
    metrics, err = evaluated(capsys, model, write_table(tmp_path / "ids.csv", ("text", "label"), body))
    assert "labels are read as the model's: 0 as LABEL_0, 1 as LABEL_1" in err
    pipe = deberta_jax.pipeline("text-classification", model)
    hits = [answer["label"] == f"LABEL_{i}" for answer, (_, i) in zip(pipe([t for t, _ in body]), body, strict=True)]
    assert metrics["accuracy"] == pytest.approx(np.mean(hits))


@pytest.mark.slow
def test_id2label_with_one_name_twice_loses_no_probability(tmp_path):
    model = weighted_model(tmp_path / "model", dataclasses.replace(TINY, id2label=("pos", "neg", "other")))
    twice = tmp_path / "twice"
    shutil.copytree(model, twice)
    config = json.loads((twice / "config.json").read_text())
    config |= {"id2label": {"0": "pos", "1": "neg", "2": "pos"}, "label2id": {"pos": 2, "neg": 1}}
    (twice / "config.json").write_text(json.dumps(config))
    path = write_table(tmp_path / "a.csv", ("text",), [(text,) for text, _ in BODY])
    answers = [
        [
            json.loads(line)
            for line in stdout_of(["predict", "--model", str(m), "--input", str(path), "--output", "-"]).splitlines()
        ]
        for m in (model, twice)
    ]
    for ours, theirs in zip(*answers, strict=True):
        assert list(theirs["probabilities"]) == ["pos", "neg", "pos_2"]
        assert list(theirs["probabilities"].values()) == pytest.approx(list(ours["probabilities"].values()))
        assert sum(theirs["probabilities"].values()) == pytest.approx(1)
    pipe = deberta_jax.pipeline("text-classification", twice)
    assert {answer["label"] for answer in pipe([text for text, _ in BODY])} <= {"pos", "neg", "pos_2"}
