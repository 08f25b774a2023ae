"""Tables in files: every value, line and message as of the same file in memory; damaged, full and other disks."""

import csv
import dataclasses
import datetime
import json
import logging
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deberta_jax.data import stored_tables
from deberta_jax.data.columns import Blocks, Joined, Selected
from deberta_jax.data.stored_tables import TableStore
from deberta_jax.data.table import Table, join_tables
from deberta_jax.data.tables import Reading, read_table
from deberta_jax.errors import InputError

ROWS = 5000
WORDS = ["ban", "Größe", "a,b", 'say "x"', "two\nlines", "", "tab in", "😀", "\u2028", "\\", "null"]


def made(count: int = ROWS) -> list[dict]:
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(WORDS, k=3)), "label": draw.choice(["pos", "neg"])} for _ in range(count)]
    return [{**row, "number": i / 7} for i, row in enumerate(rows)]


def write(directory, name: str, rows: list[dict]):
    path = directory / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([list(rows[0]), *(row.values() for row in rows)])
    return str(path)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(stored_tables, "LARGE_TABLE", 0)
    monkeypatch.setattr("deberta_jax.data.streaming._SAMPLE", 1000)
    monkeypatch.setattr("deberta_jax.data.reading.BLOCK", 4096)
    return TableStore(tmp_path / "cache")


def assert_same(found: Table, whole: Table) -> None:
    assert list(found.columns) == list(whole.columns)
    for name, values in whole.columns.items():
        assert list(found.columns[name]) == list(values), name
        assert list(map(type, found.columns[name])) == list(map(type, values)), name
    assert len(found) == len(whole)
    assert list(found.lines) == list(whole.lines)
    assert found.class_names == whole.class_names
    for row in (0, 1, len(whole) // 2, len(whole) - 1):
        assert found.where(row) == whole.where(row)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.parquet"])
def test_a_stored_table_is_the_table(store, tmp_path, monkeypatch, name):
    rows = made()
    path = write(tmp_path, name, rows)
    found = store.read(path, Reading())
    assert isinstance(found.column("text"), Blocks)
    text = lambda value: str(value) if name == "a.csv" else value
    for column in rows[0]:
        assert list(found.column(column)) == [text(row[column]) for row in rows]
    assert_same(found, read_table(path))

    def refuse(*_):
        raise AssertionError("the file is parsed again")

    monkeypatch.setattr(stored_tables, "read_parts", refuse)
    again = TableStore(tmp_path / "cache")
    assert_same(again.read(path, Reading()), found)
    assert set(again.digests) == {path}
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 1


def test_a_changed_file_and_another_delimiter_are_other_tables(store, tmp_path):
    path = tmp_path / "a.csv"
    for count in (50, 60):
        path.write_text("text,label\n" + "a;b,x\n" * count)
        found = store.read(str(path), Reading())
        assert (len(found), found.column("text")[-1]) == (count, "a;b")
    path.write_text("text;label\n" + "a;b,x\n" * 60)
    assert store.read(str(path), Reading(delimiter=";")).column("label")[0] == "b,x"
    assert len(list((tmp_path / "cache" / "tables").iterdir())) == 3


def test_which_files_are_kept(tmp_path, monkeypatch):
    store = TableStore(tmp_path / "cache")
    path = write(tmp_path, "a.csv", made(50))
    write(tmp_path, "b.csv", made(50))
    size = len((tmp_path / "a.csv").read_bytes())
    monkeypatch.setattr(stored_tables, "LARGE_TABLE", size)
    assert not store.keeps(path)
    assert store.keeps(str(tmp_path / "*.csv")), "the files together are large"
    assert not store.keeps("-")
    assert not store.keeps("hub:a/b")
    assert not store.keeps(str(tmp_path / "missing.csv"))
    monkeypatch.setattr(stored_tables, "LARGE_TABLE", 0)
    assert not TableStore(None).keeps(path)
    document = tmp_path / "a.json"
    document.write_text(json.dumps(made(3)))
    assert isinstance(store.read(str(document), Reading()).column("text"), list), "read whole in any case"


def test_rows_with_other_keys_and_lists(store, tmp_path):
    rows = [{"text": f"t{i}", "tags": ["a", i, None, {"b": [1.5, True]}]} for i in range(3000)]
    rows[2500]["new"] = "only here"
    del rows[2600]["tags"]
    path = write(tmp_path, "a.jsonl", rows)
    found = store.read(path, Reading())
    assert_same(found, read_table(path))
    assert found.column("new")[2500] == "only here"
    assert [row for row, value in enumerate(found.column("tags")) if value is None] == [2600]


def test_values_that_json_does_not_have(store, tmp_path):
    day = datetime.date(2026, 11, 28)
    rows = [{"text": "a", "raw": b"\xff\0" * i, "day": day, "odd": {"raw": "x"}} for i in range(10)]
    found = store.read(write(tmp_path, "a.parquet", rows), Reading())
    assert list(found.column("raw")) == [row["raw"] for row in rows]
    assert [str(value) for value in found.column("day")] == [str(day)] * 10
    assert list(found.column("odd")) == [{"raw": "x"}] * 10


def test_selections_slices_and_joined_tables(store, tmp_path):
    rows, others = made(), made(300)
    table = store.read(write(tmp_path, "a.csv", rows), Reading())
    texts = [row["text"] for row in rows]
    column = table.column("text")
    assert column[2047:2050] == texts[2047:2050]
    assert column[-1] == texts[-1]
    with pytest.raises(IndexError):
        column[ROWS]
    odd = np.arange(1, ROWS, 2)
    part = table.select(odd)
    assert isinstance(part.column("text"), Selected)
    assert list(part.column("text")) == texts[1::2]
    assert part.where(3) == table.where(7)
    assert list(part.select(range(10, 20)).column("text")) == texts[21:41:2]
    both = join_tables([table, store.read(write(tmp_path, "b.csv", others), Reading())])
    assert isinstance(both.column("text"), Joined)
    assert list(both.column("text")) == texts + [row["text"] for row in others]
    assert both.where(ROWS) == f"{tmp_path}/b.csv, line 2"
    last = both.select(range(ROWS - 2, ROWS + 2))
    assert last.parts == ((0, f"{tmp_path}/a.csv"), (2, f"{tmp_path}/b.csv"))
    assert last.where(2) == f"{tmp_path}/b.csv, line 2"


def test_a_bad_row_is_named_by_file_and_line(store, tmp_path):
    rows = made(4000)
    path = write(
        tmp_path, "a.jsonl", [{**row, "text": None if i == 3500 else row["text"]} for i, row in enumerate(rows)]
    )
    with pytest.raises(InputError, match=r"a.jsonl, line 3501: 'text' is None; a text is needed"):
        store.read(path, Reading()).texts("text")
    with open(path, "a") as file:
        file.write("{broken\n")
    with pytest.raises(InputError, match=r"a.jsonl, line 4001: not JSON"):
        store.read(path, Reading())
    assert not list((tmp_path / "cache").glob("tables/.made*")), "nothing half-written stays"


def test_later_rows_that_contradict_the_first_ones(store, tmp_path, caplog, monkeypatch):
    path = tmp_path / "a.tsv"
    path.write_text("text\tlabel\n" + "a\tx\n" * 2000 + '"b ""y"" c"\tx\n')
    with caplog.at_level(logging.INFO):
        found = store.read(str(path), Reading())
    assert found.column("text")[-1] == 'b "y" c'
    assert "cannot be read in parts" in caplog.text
    monkeypatch.setattr(stored_tables, "_READ_WHOLE", 100)
    with pytest.raises(InputError, match=r"line 2002: .* is in quotes"):
        store.read(str(path), Reading())


@pytest.mark.parametrize("name", ["values", "spans.npy", "table.json"])
def test_a_damaged_entry_is_made_anew(store, tmp_path, caplog, name):
    path = write(tmp_path, "a.csv", made(50))
    store.read(path, Reading())
    (entry,) = (tmp_path / "cache" / "tables").iterdir()
    content = (entry / name).read_bytes()
    (entry / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level(logging.WARNING):
        assert_same(store.read(path, Reading()), read_table(path))
    assert "it is made anew" in caplog.text
    assert (entry / name).read_bytes() == content


def test_a_cache_that_cannot_be_written(store, tmp_path, caplog):
    path = write(tmp_path, "a.csv", made(50))
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        found = store.read(path, Reading())
    assert isinstance(found.column("text"), list)
    assert "is read into memory, for it cannot be kept" in caplog.text


def test_keys_without_end_are_refused(store, tmp_path, monkeypatch):
    monkeypatch.setattr(stored_tables, "_MOST_SPANS", 3000)
    monkeypatch.setattr(stored_tables, "_READ_WHOLE", 0)
    path = write(tmp_path, "a.jsonl", [{f"key{i}": "x"} for i in range(4100)])
    with pytest.raises(InputError, match="its rows have 4096 different keys; give all rows the same keys"):
        store.read(path, Reading())


def test_a_table_says_which_columns_it_has(store, tmp_path):
    table = store.read(write(tmp_path, "a.csv", made(50)), Reading())
    with pytest.raises(InputError, match="no column 'other'; its columns are 'text', 'label', 'number'"):
        table.column("other")
    assert dataclasses.replace(table, name="b").where(0) == "b, line 2"
