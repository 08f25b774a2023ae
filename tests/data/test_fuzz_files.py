"""Data files with bytes flipped, cut off, doubled, or in another encoding: a result, or one clear line.

Never another exception, never a hang, nothing written. A few hundred with a fixed seed; ``-m long`` tries 10,000 and
writes what it found to ``benchmarks/results/fuzz_data_files.json``.
"""

import collections
import gzip
import json
import logging
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.tasks.named import read_task
from tests.data.annotations import LONG, doccano_entities, doccano_label, label_studio, prodigy
from tests.data.reading import recognised
from tests.made import make_tokenizer

SECONDS = 20
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "fuzz_data_files.json"
INSERTED = (
    b'"',
    b"'",
    b"\\",
    b",",
    b"\t",
    b"\n",
    b"\r",
    b"[",
    b"{",
    b"}",
    b"\0",
    b"\xef\xbb\xbf",
    b"\xff",
    b"1e999",
    b"NaN",
    b"-1",
    b"null",
    b'"\\ud800"',
    b"\xc2\x85",
    b"\\ud83d",
)
# What seeds 2 to 8 found when they were first run, and no longer find.
MENDED = (
    "a row of spans whose text is null: TypeError",
    "a tag numbered 2,835,349,504: as many names were made, for more than 20 seconds",
)
NUMBER = re.compile(r"\d+")

CONTEXT = "Ada Lovelace \U0001f642 wrote notes in London."
QUESTIONS = [
    {"id": "1", "question": "Where?", "answers": [{"text": "London", "answer_start": 30}], "is_impossible": False},
    {"id": "2", "question": "Who?", "answers": [], "is_impossible": True},
]


def files():
    """Name, content: one file of every form that is read."""
    rows = [('He said "hi", twice', "pos"), ("zwei\nZeilen", "neg"), ("café \U0001f642", "pos"), ("plain", "neg")]
    table = "text,label\n" + "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for text, label in rows)
    jsonl = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    squad = {"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": QUESTIONS}]}]}
    conllu = "# text = a\n" + "".join(f"{i}\tw{i}\t_\tNOUN\t_\t_\t0\troot\t_\t_\n" for i in (1, 2)) + "\n"
    out = {
        "a.csv": table,
        "semicolon.csv": "sep=;\ntext;label\na;1.0\nb;0\n",
        "a.tsv": "text\tlabel\nit's \"so\tpos\nb\tneg\n",
        "a.jsonl": jsonl,
        "a.json": json.dumps([json.loads(line) for line in jsonl.splitlines()], indent=1),
        "squad.json": json.dumps(squad),
        "long.csv": LONG,
        "a.conllu": conllu,
        "hub.csv": "id,tokens,ner_tags\n0,\"['Anna', 'b']\",\"[1, 0]\"\n1,\"['c' 'd']\",[0 1]\n",
        "a.conll": "# id 1\tx\nAnna\tB-PER\nNew York\tO\n\n\tO\nBob\tB-PER\n",
        "b.conll": "-DOCSTART- O\n\nAnna NNP B-PER\n# NN O\n",
        "hub.jsonl": "".join(json.dumps({"context": CONTEXT, **question}) + "\n" for question in QUESTIONS),
        "choices.jsonl": '{"question": "q", "choices": ["a", "b"], "label": 1}\n' * 2,
        "labels.jsonl": '{"text": "a", "labels": ["x", "y"]}\n{"text": "b", "labels": []}\n',
    }
    for form in (doccano_label, doccano_entities, label_studio, prodigy):
        ending, content = form()
        out[f"{form.__name__}.{ending}"] = content
    found = {name: content.encode() for name, content in out.items()}
    found["a.csv.gz"] = gzip.compress(found["a.csv"], mtime=0)
    try:
        from backports import zstd

        found["a.jsonl.zst"] = zstd.compress(found["a.jsonl"])
    except ImportError:
        pass
    found |= parquet_files()
    return found


def parquet_files():
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return {}
    found = {}
    features = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}
    for name, columns in {
        "cls.parquet": {"text": ["a", "b"] * 2, "label": [1, 0] * 2},
        "ner.parquet": {"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [0]]},
    }.items():
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        found[name] = sink.getvalue().to_pybytes()
    return found


def mutated(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    data = bytearray(content)
    kind = str(rng.choice(["flip", "cut", "double", "drop", "insert", "encode", "mix", "several"]))
    at, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    if kind == "flip":
        for i in rng.integers(0, len(data), int(rng.integers(1, 4))):
            data[i] = int(rng.integers(256))
    elif kind == "cut":
        del data[at:]
    elif kind == "double":
        data[end:end] = data[at:end]
    elif kind == "drop":
        del data[at : min(end, at + 9)]
    elif kind == "insert":
        data[at:at] = INSERTED[int(rng.integers(len(INSERTED)))]
    elif kind == "encode":
        encoding = str(rng.choice(["utf-16", "utf-32", "latin-1", "cp1252", "utf-7", "utf-8-sig"]))
        data = bytearray(content.decode("utf-8", "replace").encode(encoding, "replace"))
    elif kind == "mix":
        data[at:end] = bytes(data[at:end]).decode("latin-1").encode("utf-16-le")
    else:
        for _ in range(3):
            data = bytearray(mutated(bytes(data) or b"x", rng)[1])
    return kind, bytes(data)


def outcome(path: Path, tokenizer) -> tuple[str, str]:
    """ "read" or "refused" and the line; anything else is raised."""
    task = "token-classification" if path.name.endswith(".conll") else ""
    try:
        table = read_task(task, [str(path)])
        _, found = recognised(table)
        found.features(table, tokenizer, 24, labelled=True)
    except InputError as error:
        line = str(error)
        assert line
        assert "\n" not in line.strip(), line
        assert len(line) < 2000, line
        return "refused", line
    return "read", ""


def too_long(signum, frame):
    raise TimeoutError(f"more than {SECONDS} seconds")


def fuzz(directory: Path, count: int, seed: int):
    rng = np.random.default_rng(seed)
    bases, tokenizer = files(), make_tokenizer(directory / "tokenizer")
    names = list(bases)
    found, lines, slowest = collections.Counter(), collections.Counter(), 0.0
    work = directory / "work"
    work.mkdir()
    before = signal.signal(signal.SIGALRM, too_long)
    logging.disable(logging.WARNING)
    try:
        for i in range(count):
            name = names[i % len(names)]
            kind, content = mutated(bases[name], rng)
            path = work / name
            path.write_bytes(content)
            begin = time.monotonic()
            signal.alarm(SECONDS)
            try:
                what, line = outcome(path, tokenizer)
            except Exception as error:
                kept = directory / f"failed-{i}-{name}"
                kept.write_bytes(content)
                raise AssertionError(f"{kept} ({kind} of {name}, number {i} of seed {seed}): {error!r}") from error
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.monotonic() - begin)
            assert [p.name for p in work.iterdir()] == [name], "reading writes nothing"
            path.unlink()
            found[what] += 1
            lines[NUMBER.sub("N", line.replace(str(path), "FILE").partition(": ")[2][:60])] += bool(line)
    finally:
        logging.disable(logging.NOTSET)
        signal.signal(signal.SIGALRM, before)
    return found, lines, slowest, names


def test_a_result_or_one_line(tmp_path):
    found, *_ = fuzz(tmp_path, 400, seed=1)
    assert found["read"] > 40
    assert found["refused"] > 40


@pytest.mark.long
def test_ten_thousand_files(tmp_path):
    found, lines, slowest, names = fuzz(tmp_path, 10_000, seed=2)
    result = {
        "files": 10_000,
        "seed": 2,
        "forms": names,
        **found,
        "other exceptions": 0,
        "hangs": 0,
        "files written by reading": 0,
        "slowest file took less than a second": slowest < 1,
        "found and mended": MENDED,
        "distinct messages": len([line for line in lines if line]),
        "most frequent messages": dict(lines.most_common(30)),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "squad.json", "a.conll", "cls.parquet", "a.csv.gz"])
def test_the_command_ends_with_that_line_and_writes_nothing(task, tmp_path, capsys, name):
    bases = files()
    if name not in bases:
        pytest.skip("needs pyarrow")
    path, output = tmp_path / name, tmp_path / "output"
    path.write_bytes(bases[name][: len(bases[name]) // 2] + b"\xff\xfe\xfd")
    before = sorted(tmp_path.rglob("*"))
    arguments = [
        "finetune",
        "--model",
        task.blank,
        "--from-scratch",
        "--train",
        path,
        "--eval",
        path,
        "--output",
        output,
    ]
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")] == err.splitlines()[-1:]
    assert str(path) in err
    assert sorted(tmp_path.rglob("*")) == before
