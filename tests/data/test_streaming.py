"""Files in parts: every row once, in order, as pandas, the csv module, json and pyarrow read the file."""

import csv
import gzip
import io
import json
import random
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deberta_jax.data import streaming
from deberta_jax.data.streaming import estimated_rows, read_parts
from deberta_jax.data.tables import Reading
from deberta_jax.errors import InputError
from deberta_jax.tasks.parts import task_parts

WORDS = ["ban", "Größe", "a,b", 'say "x"', "two\nlines", "", "tab\tin", "end ", "😀", "'", "\u2028"]


@pytest.fixture
def small(monkeypatch):
    """A few rows decide how a file is written, and blocks and parts are small."""
    monkeypatch.setattr(streaming, "_SAMPLE", 300)
    monkeypatch.setattr("deberta_jax.data.reading.BLOCK", 64)


def made(count: int, seed: int = 0) -> list[list[str]]:
    draw = random.Random(seed)
    return [[str(i), " ".join(draw.choices(WORDS, k=3)), draw.choice(["pos", "neg"])] for i in range(count)]


def joined(path, rows=7) -> tuple[dict[str, list], list[int], list[str]]:
    """The columns, the numbers of rows of the parts, and where each row is."""
    columns: dict[str, list] = {}
    counts, where = [], []
    for part in read_parts(str(path), Reading(), rows=rows):
        table = part.table()
        assert len(table) == part.rows <= rows
        counts.append(part.rows)
        where += [table.where(i) for i in range(len(table))]
        for name, values in table.columns.items():
            columns.setdefault(name, []).extend(values)
    return columns, counts, where


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "a.csv"),
        ({"sep": ";"}, "a.csv"),
        ({"quoting": csv.QUOTE_ALL}, "a.csv"),
        ({"sep": "\t"}, "a.tsv"),
        ({"lineterminator": "\r\n"}, "a.csv"),
        ({"encoding": "utf-8-sig"}, "a.csv"),
        ({"index": True}, "a.csv"),
    ],
)
def test_csv_as_pandas_reads_and_writes_it(small, tmp_path, options, name):
    rows = [[i, text.replace("\r", ""), label] for i, text, label in made(100)]
    frame = pd.DataFrame(rows, columns=["id", "text", "label"])
    path = tmp_path / name
    frame.to_csv(path, **{"index": False, **options})
    columns, counts, where = joined(path)
    assert counts == [7] * 14 + [2]
    assert list(columns) == ["id", "text", "label"]
    assert columns["text"] == frame["text"].tolist()
    assert columns["id"] == [str(i) for i in range(100)]
    content = io.StringIO(path.read_bytes().decode("utf-8-sig"))
    reader = csv.reader(content, delimiter=options.get("sep", ","))
    starts, before = [], 0
    for _ in reader:
        starts.append(before + 1)
        before = reader.line_num
    assert where == [f"{path}, line {line}" for line in starts[1:]]


def test_tsv_whose_quotes_are_characters(small, tmp_path):
    rows = [[f'"half {i}' if i % 3 else f"whole {i}", "pos"] for i in range(80)]
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    assert joined(path)[0]["text"] == [text for text, _ in rows]


def test_what_the_first_rows_decide_holds_for_the_rest(small, tmp_path):
    path = tmp_path / "a.csv"
    lists = "".join(f'"[""a"", ""b{i}""]",x\n' for i in range(80))
    path.write_text("words,label\n" + lists)
    assert joined(path)[0]["words"] == [["a", f"b{i}"] for i in range(80)]
    path.write_text("words,label\n" + lists + "no list,x\n")
    with pytest.raises(InputError, match=r"line 82: 'no list' is no list, as the rows before it have"):
        joined(path)
    path.write_text("text,label\n" + "a,x\n" * 100 + "a,x,y\n")
    with pytest.raises(InputError, match=r"line 102: 3 fields where the header names 2"):
        joined(path)
    path.write_text("text,label\n" + "a,x\n" * 100 + "text,label\n" + "b,x\n")
    assert joined(path)[0]["text"] == ["a"] * 100 + ["b"]


def test_rows_that_contradict_the_first_ones_are_refused(small, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "a\tx\n" * 100 + '"b ""y"" c"\tx\n')
    with pytest.raises(InputError, match=r"line 102: .* is in quotes, and the first rows have none"):
        joined(path)
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + '1,"a \\"y\\" b"\n' * 100 + '2,"C:\\new"\n')
    with pytest.raises(InputError, match="line 102: a backslash that is no escape"):
        joined(path)
    path.write_text("text,\n" + "a,\n" * 200 + "a,remark\n")
    with pytest.raises(InputError, match="line 202: 'remark' is in a column without a name"):
        joined(path)


@pytest.mark.parametrize("most", range(300, 1400, 100))
def test_the_first_rows_may_end_anywhere(small, tmp_path, monkeypatch, most):
    monkeypatch.setattr(streaming, "_SAMPLE", most)
    path = tmp_path / "a.csv"
    rows = [[str(i), "x\nban\nban" if i % 2 else 'x 5" ban'] for i in range(150)]
    path.write_text("id,text\n" + "".join(f'{i},"{t}"\n' if "\n" in t else f"{i},{t}\n" for i, t in rows))
    assert joined(path)[0] == {"id": [i for i, _ in rows], "text": [t for _, t in rows]}


def test_blank_lines_and_odd_separators_before_and_in_the_header(small, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n" * 400 + "id,te\u2028xt,a\x85b\n" + "1,2,3\n" * 200, encoding="utf-8")
    columns, _, where = joined(path)
    assert list(columns) == ["id", "te\u2028xt", "a\x85b"]
    assert where[0] == f"{path}, line 402"
    path.write_text(",text,\n" + "1,a,b\n" * 200)
    assert joined(path)[0] == {"text": ["a"] * 200, "": ["b"] * 200}


def test_parquet_needs_its_library(tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "a.parquet")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="parquet needs pyarrow"):
        joined(tmp_path / "a.parquet")


def test_lines_of_json(small, tmp_path):
    rows = [{"text": text, "n": {"i": int(i)}} for i, text, _ in made(60)]
    path = tmp_path / "a.jsonl"
    content = "\ufeff" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    path.write_text(content, encoding="utf-8")
    columns, counts, where = joined(path)
    assert columns == {"text": [row["text"] for row in rows], "n": [row["n"] for row in rows]}
    assert counts == [7] * 8 + [4]
    assert where == [f"{path}, line {2 * i + 1}" for i in range(60)]
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(content.encode()))
    assert joined(packed)[0] == columns
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:20]) + "{broken\n")
    with pytest.raises(InputError, match="line 21: not JSON"):
        joined(path)
    path.write_text('{"text": "\\ud83d"}\n{"text": "b"}\n')
    assert joined(path)[0] == {"text": ["\ufffd", "b"]}


@pytest.mark.parametrize("text", ["[[1]\n]", '[{"text": "a"},\n {"text": "b"}]', '{\n"text":\n "a"}', '{"text": "a"}'])
def test_other_json_is_read_as_before(small, tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    if text.startswith("[["):
        with pytest.raises(InputError, match="expected a JSON object"):
            joined(path)
        return
    value = json.loads(text)
    assert joined(path)[0]["text"] == [row["text"] for row in (value if isinstance(value, list) else [value])]


def test_a_part_ends_before_it_has_many_characters(small, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_MOST_CHARACTERS", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * 400}) + "\n" for _ in range(10)))
    assert joined(path)[1] == [3, 3, 3, 1]


def test_standard_input(small, monkeypatch):
    lines = b'{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    columns, counts, where = joined("-", rows=2)
    assert columns == {"text": ["a", "b", "c"]}
    assert counts == [2, 1]
    assert where[2] == "standard input, line 3"


def test_parquet(tmp_path):
    table = pa.table({"text": [f"text {i}" for i in range(100)], "n": [{"a": i} for i in range(100)]})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=30)
    columns, counts, where = joined(path, rows=25)
    assert columns == table.to_pydict()
    assert sum(counts) == 100
    assert where[99] == f"{path}, line 100"
    assert estimated_rows(str(path)) == 100


def test_many_files_of_several_kinds(small, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "a,x\n" * 100)
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n' * 10)
    (tmp_path / "c.json").write_text('[{"text": "c"}]')
    columns, counts, _ = joined(tmp_path / "*")
    assert columns["text"] == ["a"] * 100 + ["b"] * 10 + ["c"]
    assert counts[-3:] == [7, 3, 1]
    assert estimated_rows(str(tmp_path / "[ab].*")) == 110
    (tmp_path / "one.csv").write_text("text\na")
    assert estimated_rows(str(tmp_path / "one.csv")) == 1
    assert estimated_rows(str(tmp_path / "*")) is None


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_an_empty_file(tmp_path, name):
    path = tmp_path / name
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path) if name == "a.parquet" else path.touch()
    with pytest.raises(InputError, match="no rows"):
        joined(path)


def test_words_a_row_are_joined_across_parts(tmp_path):
    path = tmp_path / "a.csv"
    sizes = [1] * 15 + [4] * 20
    words = [(number, f"w{number}-{i}") for number, size in enumerate(sizes) for i in range(size)]
    path.write_text("sentence_id,word\n" + "".join(f"{number},{word}\n" for number, word in words))
    tables = [part.table() for part in task_parts("token-classification", str(path), rows=10)]
    sentences = [words for table in tables for words in table.columns["word"]]
    assert [len(words) for words in sentences] == sizes
    assert max(map(len, tables)) == 10
