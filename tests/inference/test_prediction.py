"""``predict`` on long files: what it writes, in parts, after an interruption, and shared by several processes."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from deberta_jax import storage
from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.inference import prediction
from deberta_jax.inference.answer_files import answer_format
from tests.made import refused, rows, write_table


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(prediction, "_ROWS", 10)


def command(trained, data, output, *more) -> list[str]:
    return [
        *("predict", "--model", str(trained.directory), "--input", str(data), "--output", str(output)),
        *("--batch-size", "8", *more),
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    texts = [(text * (1 + i % 3),) for i, (text, _) in enumerate(rows(57, seed=4))]
    return write_table(tmp_path_factory.mktemp("data") / "texts.csv", ("sentence",), texts)


def answers(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_parts_have_the_answers_of_the_whole_file(trained, data, tmp_path, monkeypatch, capsys):
    main(command(trained, data, tmp_path / "whole.jsonl"))
    told = capsys.readouterr().err
    monkeypatch.setattr(prediction, "_ROWS", 10)
    main(command(trained, data, tmp_path / "parts.jsonl"))
    assert "45 of 57 texts are longer than 16 tokens and were cut" in told
    assert capsys.readouterr().err.count("45 of 57") == 1, "said once for all parts"
    whole, parts = answers(tmp_path / "whole.jsonl"), answers(tmp_path / "parts.jsonl")
    assert [a["label"] for a in whole] == [a["label"] for a in parts]
    chances = [[list(a["probabilities"].values()) for a in found] for found in (whole, parts)]
    np.testing.assert_allclose(*chances, atol=1e-6)


def test_csv_and_parquet_as_pandas_reads_them(small, trained, data, tmp_path):
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        main(command(trained, data, tmp_path / name))
    expected = pd.DataFrame(answers(tmp_path / "a.jsonl"))
    table = pd.read_csv(tmp_path / "a.csv", converters={"probabilities": json.loads})
    pd.testing.assert_frame_equal(table, expected)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "a.parquet"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.jsonl", "a.parquet"]


@pytest.mark.slow
def test_processes_share_the_rows_and_their_parts_make_the_whole(small, trained, data, tmp_path):
    main(command(trained, data, tmp_path / "whole.jsonl"))
    index = {"complete": False}
    for process in (2, 0, 1):
        assert not index["complete"]
        main(command(trained, data, tmp_path / "out.jsonl", "--processes", "3", "--process", str(process)))
        index = json.loads((tmp_path / "out.index.json").read_text())
    assert (index["complete"], index["rows"]) == (True, 57)
    assert [file["file"] for file in index["files"]] == [f"out-0000{i}-of-00003.jsonl" for i in range(3)]
    assert [file["rows"] for file in index["files"]] == [20, 20, 17]
    parts = b"".join((tmp_path / file["file"]).read_bytes() for file in index["files"])
    assert parts == (tmp_path / "whole.jsonl").read_bytes()

    main(command(trained, data, tmp_path / "out.jsonl", "--processes", "3", "--process", "0", "--max-length", "12"))
    index = json.loads((tmp_path / "out.index.json").read_text())
    assert [file["written"] for file in index["files"]] == [True, False, False], "the others are of another command"


def test_more_processes_than_parts(trained, data, tmp_path):
    for process in (0, 1):
        main(command(trained, data, tmp_path / "out.jsonl", "--processes", "2", "--process", str(process)))
    assert [file["rows"] for file in json.loads((tmp_path / "out.index.json").read_text())["files"]] == [0, 57]


def interrupted(trained, data, output, monkeypatch, after: int) -> None:
    """Fails, as a full disk does, after so many parts."""
    write = storage.Lines.write
    left = [after]

    def failing(self, text):
        if not left[0]:
            raise OSError(28, "No space left on device", str(output))
        left[0] -= 1
        write(self, text)

    with monkeypatch.context() as patch:
        patch.setattr(storage.Lines, "write", failing)
        with pytest.raises(SystemExit) as stopped:
            main(command(trained, data, output))
    assert stopped.value.code == 2


@pytest.mark.slow
def test_the_same_command_goes_on_and_another_begins_anew(small, trained, data, tmp_path, monkeypatch, capsys):
    main(command(trained, data, tmp_path / "whole.jsonl"))
    expected = (tmp_path / "whole.jsonl").read_bytes()
    output = tmp_path / "out.jsonl"
    output.write_text("before")
    interrupted(trained, data, output, monkeypatch, after=3)
    assert output.read_text() == "before"
    assert "No space left on device" in capsys.readouterr().err
    kept = tmp_path / ".out.jsonl.unfinished"
    assert len((kept / "lines").read_text().splitlines()) == 30
    with (kept / "lines").open("a") as file:
        file.write('{"label": "a line that was cut')
    before = (kept / "lines").read_bytes()
    computed = []
    forward = prediction.Loaded.answers_to
    monkeypatch.setattr(prediction.Loaded, "answers_to", lambda *args: computed.append(len(args[2])) or forward(*args))
    main(command(trained, data, output))
    assert "an interrupted command has left 30 lines" in capsys.readouterr().err
    assert computed == [10, 10, 7]
    assert output.read_bytes() == expected
    assert not kept.exists()

    interrupted(trained, data, output, monkeypatch, after=3)
    (kept / "lines").write_bytes(before[:20])
    main(command(trained, data, output))
    assert output.read_bytes() == expected, "the first line was cut"

    interrupted(trained, data, output, monkeypatch, after=3)
    capsys.readouterr()
    computed.clear()
    main(command(trained, data, output, "--max-length", "12"))
    assert "holds lines of another command, and is removed" in capsys.readouterr().err
    assert sum(computed) == 57
    changed = tmp_path / "texts.csv"
    shutil.copy(data, changed)
    interrupted(trained, changed, output, monkeypatch, after=3)
    changed.write_text(changed.read_text().replace("ban", "tell"))
    computed.clear()
    main(command(trained, changed, output))
    assert sum(computed) == 57, "the file is another one"


def test_a_row_that_cannot_be_read_leaves_nothing(small, trained, tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"sentence": "ban"}\n' * 35 + '{"sentence": 5}\n')
    output = tmp_path / "out.jsonl"
    output.write_text("before")
    line = refused(command(trained, path, output), capsys)
    assert "line 36: 'sentence' is 5; a text is needed" in line
    assert output.read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "texts.jsonl"]


def test_a_place_that_another_user_could_write_is_not_trusted(small, trained, data, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.jsonl"
    interrupted(trained, data, output, monkeypatch, after=2)
    capsys.readouterr()
    (tmp_path / ".out.jsonl.unfinished").chmod(0o777)
    assert "other users may write to it" in refused(command(trained, data, output), capsys)
    (tmp_path / ".out.jsonl.unfinished").chmod(0o700)
    shutil.rmtree(tmp_path / ".out.jsonl.unfinished")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.jsonl.unfinished").symlink_to(tmp_path / "elsewhere")
    assert "is in the way" in refused(command(trained, data, output), capsys)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / ".out.jsonl.unfinished").unlink()
    (tmp_path / ".out.jsonl.unfinished").mkdir()
    (tmp_path / ".out.jsonl.unfinished" / "mine.txt").write_text("keep")
    assert "is in the way" in refused(command(trained, data, output), capsys)
    assert (tmp_path / ".out.jsonl.unfinished" / "mine.txt").read_text() == "keep"


@pytest.mark.slow
def test_what_was_read_from_a_stream_or_another_archive_is_not_taken_for_the_same(
    small, trained, tmp_path, monkeypatch, capsys
):
    texts = [[(text,) for text, _ in rows(35, seed=seed)] for seed in (1, 2)]
    output, archive = tmp_path / "out.jsonl", tmp_path / "x.zip"
    alone = []
    for i, body in enumerate(texts):
        write_table(tmp_path / f"{i}.jsonl", ("sentence",), body)
        main(command(trained, tmp_path / f"{i}.jsonl", tmp_path / f"{i}.out"))
        alone.append((tmp_path / f"{i}.out").read_bytes())
    for name in ("-", f"{archive}/d.jsonl"):
        for i in range(2):
            content = (tmp_path / f"{i}.jsonl").read_bytes()
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("d.jsonl", content)
            if i == 0:
                interrupted(trained, name, output, monkeypatch, after=2)
        main(command(trained, name, output))
        assert output.read_bytes() == alone[1]
    capsys.readouterr()
    refused(command(trained, name, archive), capsys)
    assert zipfile.is_zipfile(archive)


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--errors", "rows.csv", "is the input"),
        ("--metrics", "model/config.json", "is a file of the model"),
        ("--errors", "same.json", "is the file of --metrics"),
    ],
)
def test_evaluate_overwrites_neither_data_nor_model(trained, tmp_path, capsys, option, name, expected):
    model = tmp_path / "model"
    shutil.copytree(trained.directory, model)
    data = write_table(tmp_path / "rows.csv", ("sentence", "kind"), rows(8, seed=4))
    before = data.read_bytes(), (model / "config.json").read_bytes()
    more = ["--metrics", str(tmp_path / "same.json")] if name == "same.json" else []
    arguments = ["evaluate", "--model", str(model), "--data", str(data), option, str(tmp_path / name), *more]
    assert expected in refused(arguments, capsys)
    assert (data.read_bytes(), (model / "config.json").read_bytes()) == before


def test_an_output_that_would_be_an_input_is_refused(trained, data, tmp_path, capsys):
    shutil.copy(data, tmp_path / "part-1.csv")
    arguments = command(trained, tmp_path / "part-*.csv", tmp_path / "part.csv", "--processes", "2")
    assert "would be an input" in refused(arguments, capsys)
    # Wildcards do not match separators, and one process writes no index.
    (tmp_path / "answers").mkdir()
    main(command(trained, tmp_path / "*.csv", tmp_path / "answers" / "out.csv"))
    (tmp_path / "rows.json").write_text('[{"sentence": "ban"}]')
    main(command(trained, tmp_path / "*.json", tmp_path / "answers.jsonl"))
    assert len(answers(tmp_path / "answers.jsonl")) == 1


def test_parquet_of_answers_whose_values_have_no_common_type(tmp_path):
    answers = [{"id": 1, "o": {}, "n": [1]}, {"id": "13", "o": {}, "n": [2.5]}, {"id": 10**25, "o": {}, "n": None}]
    (tmp_path / "lines").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    with (tmp_path / "lines").open("rb") as lines, (tmp_path / "a.parquet").open("wb") as file:
        answer_format("a.parquet")(lines, file)
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert [json.loads(value) for value in table["id"]] == [1, "13", 10**25]
    assert [json.loads(value) for value in table["o"]] == [{}, {}, {}]
    assert table["n"] == [[1.0], [2.5], None]


@pytest.mark.parametrize("name", ["o.csv.gz", "o.tsv", "o.jsonl.zst"])
def test_formats_that_are_not_written(trained, data, tmp_path, capsys, name):
    assert "is not written; give .jsonl, .csv or .parquet" in refused(command(trained, data, tmp_path / name), capsys)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--processes", "2", "--process", "2"], "--process 2 --processes 2: give the number of processes"),
        (["--processes", "2", "--input", "-"], "a stream is read by one process"),
    ],
)
def test_shares_that_do_not_exist(trained, data, tmp_path, capsys, more, expected):
    assert expected in refused(command(trained, data, tmp_path / "o.jsonl", *more), capsys)


def test_parquet_without_its_library(trained, data, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert "parquet needs pyarrow" in refused(command(trained, data, tmp_path / "o.parquet"), capsys)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.long)])
def test_killed_at_random_moments(trained, tmp_path, kills):
    """Real processes and SIGKILL. The output is the same as without."""
    texts = [(text,) for text, _ in rows(60_000, seed=4)]
    data = write_table(tmp_path / "texts.jsonl", ("sentence",), texts)
    run = [sys.executable, "-m", "deberta_jax.cli.main"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "DEBERTA_JAX_PROGRESS": "none"}
    began = time.monotonic()
    subprocess.run([*run, *command(trained, data, tmp_path / "whole.jsonl")], check=True, env=env)
    whole = time.monotonic() - began
    draw = np.random.default_rng(0)
    kept, killed = tmp_path / ".out.jsonl.unfinished" / "lines", 0
    left = []
    for _ in range(kills):
        process = subprocess.Popen([*run, *command(trained, data, tmp_path / "out.jsonl")], env=env)
        try:
            process.wait(timeout=draw.uniform(0.3, 0.8) * whole)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        left.append(kept.stat().st_size if kept.exists() else 0)
    assert killed
    assert max(left) > 0
    subprocess.run([*run, *command(trained, data, tmp_path / "out.jsonl")], check=True, env=env)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not kept.exists()


def test_a_share_says_what_it_is():
    with pytest.raises(InputError, match="give the number of processes"):
        prediction.Share(0, 0)


def test_evaluate_writes_the_most_confident_mistakes_first(trained, tmp_path, capsys):
    other, name = {"pos": "neg", "neg": "pos"}, "mistakes.jsonl"
    texts = [(text, label if i % 5 else other[label]) for i, (text, label) in enumerate(rows(40, seed=4))]
    data = write_table(tmp_path / "rows.csv", ("sentence", "kind"), texts)
    model = ["--model", str(trained.directory)]
    capsys.readouterr()
    files = ["--errors", str(tmp_path / name), "--metrics", str(tmp_path / "metrics.json")]
    main(["evaluate", *model, "--data", str(data), *files])
    metrics = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    mistakes = answers(tmp_path / name)
    main(["predict", *model, "--input", str(data), "--output", str(tmp_path / "out.jsonl")])
    found = answers(tmp_path / "out.jsonl")
    wrong = [i for i, answer in enumerate(found) if answer["label"] != texts[i][1]]
    assert len(mistakes) == len(wrong) == round(40 * (1 - metrics["accuracy"])) > 3
    wrong.sort(key=lambda i: -max(found[i]["probabilities"].values()))
    assert [m["where"] for m in mistakes] == [f"{data}, line {i + 2}" for i in wrong]
    assert [(m["sentence"], m["label"]) for m in mistakes] == [texts[i] for i in wrong]
    assert [m["answer"] for m in mistakes] == [found[i]["label"] for i in wrong]
    assert [m["confidence"] for m in mistakes] == sorted((m["confidence"] for m in mistakes), reverse=True)
