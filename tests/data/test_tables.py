"""Files of labelled text: what is read, and the one line that says what is wrong with a file."""

import json

import pytest

from deberta_jax.data.tables import read_table
from deberta_jax.errors import InputError


def table_of(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path)


def test_csv_has_quotes_commas_and_lines_within_a_field(tmp_path):
    table = table_of(tmp_path, "a.csv", '\ufefftext,label\r\n"a, ""b""\nc",1\r\n\r\nplain, 2\r\n')
    assert table.columns == {"text": ['a, "b"\nc', "plain"], "label": ["1", " 2"]}
    assert table.lines == [2, 5]
    assert len(table) == 2


def test_in_a_tsv_a_quote_is_a_character(tmp_path):
    table = table_of(tmp_path, "a.tsv", 'text\tlabel\n"unpaired\t1\nit\'s "so"\t0\n')
    assert table.columns["text"] == ['"unpaired', 'it\'s "so"']


def test_jsonl_keeps_its_types_and_columns_may_be_missing_in_a_row(tmp_path):
    rows = [{"text": "a\u2028b", "label": 1}, {"text": None, "other": True}, "only a text"]
    table = table_of(tmp_path, "a.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert table.columns["text"] == ["a\u2028b", None, "only a text"]
    assert table.columns["label"] == [1, None, None]
    assert table.lines == [1, 3, 5]
    with pytest.raises(InputError, match=r"line 3: 'text' is None"):
        table.texts("text")


def test_long_fields_are_read(tmp_path):
    long = "x" * 300_000
    assert table_of(tmp_path, "a.csv", f"text,label\n{long},1\n").texts("text") == [long]


BROKEN = {
    "empty": ("a.csv", b"", "no rows"),
    "header only": ("a.tsv", b"text\tlabel\n", "no rows"),
    "blank jsonl": ("a.jsonl", b"\n\n", "no rows"),
    "too many fields": ("a.csv", b"text,label\na,1\n\na,b,1\n", "line 4: 3 fields where the header names 2"),
    "too few fields": ("a.tsv", b"text\tlabel\na\n", "line 2: 1 fields where the header names 2"),
    "unclosed quote": ("a.csv", b'text,label\n"a,1\n', "line 2: "),
    "not UTF-8": ("a.csv", b"text,label\n\xe9t\xe9,1\n", "not UTF-8 at byte 11"),
    "UTF-16": ("a.csv", "text,label\na,1\n".encode("utf-16"), "not UTF-8 at byte 0"),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
    "a number": ("a.jsonl", b"3\n", "line 1: expected a JSON object, found int"),
    "another ending": ("a.xlsx", b"text,label\na,1\n", "ending '.xlsx' is not known"),
    "a column twice": ("a.csv", b"text,text\na,1\n", "names a column twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path, case):
    name, content, message = BROKEN[case]
    with pytest.raises(InputError) as raised:
        table_of(tmp_path, name, content)
    assert message in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_not_there_or_no_file(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path)
    with pytest.raises(InputError, match=r"no column 'sentence'; its columns are 'text', 'label'"):
        table_of(tmp_path, "a.csv", "text,label\na,1\n").column("sentence")
