"""Tables as spreadsheets, pandas and scripts write them: delimiters, quotes, headers, JSON's forms, compression."""

import gzip
import json

import pytest

from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.tasks import TaskOptions, resolve_options
from tests.data.reading import read, recognised

TEXTS = {"text": ["good", "bad"], "label": ["pos", "neg"]}


def test_semicolon(tmp_path, caplog):
    caplog.set_level("INFO")
    table = read(tmp_path, "semicolon.csv", "text;label\nGut, sehr gut;pos\nSchlecht;neg\n")
    assert table.columns == {"text": ["Gut, sehr gut", "Schlecht"], "label": ["pos", "neg"]}
    assert "semicolon.csv: read with ';' between the fields" in caplog.text


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"'])
def test_sep_as_a_first_line(tmp_path, caplog, first):
    caplog.set_level("INFO")
    table = read(tmp_path, "a.csv", f"{first}\r\ntext;label\r\na,b;pos\r\nc;neg\r\n")
    assert table.columns == {"text": ["a,b", "c"], "label": ["pos", "neg"]}
    assert table.lines == [3, 4]
    assert "as its first line says" in caplog.text


@pytest.mark.parametrize(("given", "between"), [("^", "^"), ("tab", "\t"), ("\\t", "\t"), ("|", "|"), (";", ";")])
def test_delimiter_for_anything_else(tmp_path, given, between):
    lines = "\n".join(between.join(row) for row in (("text", "label"), ("a, b", "pos"), ("c", "neg")))
    for name in ("a.csv", "a.tsv"):
        assert read(tmp_path, name, lines, delimiter=given).columns == {"text": ["a, b", "c"], "label": ["pos", "neg"]}
    with pytest.raises(InputError, match="--delimiter ';;': give one character"):
        read(tmp_path, "a.csv", lines, delimiter=";;")
    with pytest.raises(InputError, match=r"--delimiter: is for csv and tsv; .*a\.jsonl"):
        read(tmp_path, "a.jsonl", '{"a": 1}', delimiter=";")


@pytest.mark.parametrize("ending", ["csv", "tsv"])
@pytest.mark.parametrize("between", [",", ";", "\t", "|"])
def test_a_delimiter_of_another_ending(tmp_path, ending, between):
    table = read(tmp_path, f"a.{ending}", f"text{between}label\ngood{between}pos\nbad{between}neg\n")
    assert table.columns == TEXTS


def test_one_column_is_a_column(tmp_path):
    assert read(tmp_path, "a.csv", "text; or more\na;b;c\nd\n").columns == {"text; or more": ["a;b;c", "d"]}


def test_pandas_tsv(tmp_path, caplog):
    caplog.set_level("INFO")
    table = read(tmp_path, "pandas.tsv", 'text\tlabel\n"He said ""hi"" to me"\tpos\n"two\nlines"\tneg\n')
    assert table.columns == {"text": ['He said "hi" to me', "two\nlines"], "label": ["pos", "neg"]}
    assert table.lines == [2, 3]
    assert "its quoted fields are decoded" in caplog.text


def test_pandas_ok_tsv(tmp_path):
    table = read(tmp_path, "pandas_ok.tsv", 'text\tlabel\n"He said ""hi"" to me"\tpos\nbad\tneg\n')
    assert table.columns == {"text": ['He said "hi" to me', "bad"], "label": ["pos", "neg"]}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('"unpaired', "x"),
        ('he said "hi"', "x"),
        ('"so" he said', "x"),
        ('""twice""', "x"),
        ('5" disk', '"quoted"'),
        ('"a', 'b"'),  # a quote at the start of one text and at the end of the next are no pair
    ],
)
def test_a_tsv_whose_quotes_are_not_valid_stays_raw(tmp_path, caplog, first, second):
    caplog.set_level("INFO")
    table = read(tmp_path, "glue.tsv", f"text\tlabel\n{first}\tpos\n{second}\tneg\n")
    assert table.columns["text"] == [first, second]
    assert "a quote is read as a character of the text" in caplog.text


def test_space_quote(tmp_path):
    table = read(tmp_path, "space_quote.csv", 'text, label\n"good, very", pos\nbad, "neg"\n')
    assert table.columns == {"text": ["good, very", "bad"], "label": ["pos", "neg"]}
    table = read(tmp_path, "b.csv", 'text,label\n" ""a""",pos\n b,neg\n')
    assert table.columns["text"] == [' "a"', " b"], "a field that was quoted keeps its blanks, and so do others"


def test_header_spaces(tmp_path):
    table = read(tmp_path, "header_spaces.csv", "text, label \ngood, pos\nbad, neg\n")
    assert list(table.columns) == ["text", "label"]
    _, task = recognised(table)
    assert task.spec.names == ("neg", "pos")


ROWS = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]


@pytest.mark.parametrize("ending", ["json", "jsonl", "ndjson"])
def test_records_lines_and_ndjson_whatever_the_ending(tmp_path, ending):
    lines = "\n".join(map(json.dumps, ROWS))
    for content, numbers in ((json.dumps(ROWS), [1, 2]), (json.dumps(ROWS, indent=1), [2, 6]), (lines, [1, 2])):
        table = read(tmp_path, f"a.{ending}", content)
        assert table.columns == {"text": ["x", "y"], "label": ["a", "b"]}
        assert list(table.lines) == numbers
    one = read(tmp_path, f"x.{ending}", json.dumps(ROWS[0]) + "\n")
    assert one.columns == {"text": ["x"], "label": ["a"]}


def test_json_as_pandas_writes_it_without_being_asked(tmp_path):
    columns = {"text": {"0": "x", "1": "y"}, "label": {"0": "a", "1": "b"}}
    assert read(tmp_path, "a.json", json.dumps(columns)).columns == {"text": ["x", "y"], "label": ["a", "b"]}
    split = {"schema": {"fields": []}, "data": ROWS}
    assert read(tmp_path, "b.json", json.dumps(split)).columns == {"text": ["x", "y"], "label": ["a", "b"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"a": 1},\n {"a": 2}\n', "line 3: not JSON"),
        ('[{"a": 1}\n{"a": 2}]', "line 2: not JSON"),
        ('[{"a": 1},\n 3]', "line 2: expected a JSON object, found int"),
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ('[{"a": 1}] tail', "line 1: not JSON"),
        ("[1]\n[2]\n", "line 1: expected a JSON object, found list"),
    ],
)
def test_json_that_is_no_table_is_named_with_its_line(tmp_path, content, message):
    for ending in ("json", "jsonl"):
        with pytest.raises(InputError, match=message):
            read(tmp_path, f"a.{ending}", content)


def test_backslash(tmp_path, caplog):
    caplog.set_level("INFO")
    table = read(tmp_path, "backslash.csv", 'text,label\n"He said \\"hi\\" there",pos\nbad,neg\n')
    assert table.columns == {"text": ['He said "hi" there', "bad"], "label": ["pos", "neg"]}
    assert '\\" read as a quote' in caplog.text
    with pytest.raises(InputError, match=r'b\.csv, line 2: .*a quote in a quoted field is written twice: ""'):
        read(tmp_path, "b.csv", 'text,label\n"C:\\new \\"hi\\" there",pos\nbad,neg\n')
    plain = read(tmp_path, "c.csv", 'text,label\n"C:\\dir\\",pos\n')
    assert plain.columns["text"] == ["C:\\dir\\"], "a backslash is a character where quotes are written twice"


def test_dup_header(tmp_path):
    for content in ("text,label,label\ngood,pos,1\n", "text,label, label\ngood,pos,1\n"):
        with pytest.raises(InputError, match="names a column twice: text, label, label"):
            read(tmp_path, "dup_header.csv", content)


def test_pandas_index(tmp_path):
    assert read(tmp_path, "pandas_index.csv", ",text,label\n0,good,pos\n1,bad,neg\n").columns == TEXTS
    table = read(tmp_path, "again.csv", "Unnamed: 0,id,remark,label\n0,7,good,pos\n1,8,bad,neg\n")
    assert resolve_options(TaskOptions(task="text-classification"), table).text == ("remark",)
    assert list(read(tmp_path, "c.csv", "text,label,\ngood,pos,\n").columns) == ["text", "label"]


def test_cat_two_boms(tmp_path):
    mark = "\ufeff"
    table = read(tmp_path, "cat_two_boms.csv", f"{mark}text,label\ngood,pos\n{mark}bad,neg\n")
    assert table.columns == TEXTS
    joined = f"{mark}text,label\n'a',pos\n{mark}text,label\n{mark}\"b, {mark}c\",neg\n"
    assert read(tmp_path, "b.csv", joined).columns == {"text": ["'a'", f"b, {mark}c"], "label": ["pos", "neg"]}
    assert read(tmp_path, "c.tsv", f"text\tlabel\ngood\tpos\n{mark}bad\tneg\n").columns == TEXTS
    rows = [json.dumps({"text": text, "label": label}) for text, label in zip(*TEXTS.values(), strict=True)]
    assert read(tmp_path, "d.jsonl", f"{mark}{rows[0]}\n{mark}{rows[1]}\n").columns == TEXTS
    assert read(tmp_path, "e.conll", f"{mark}a O\n{mark}b O\n").columns["tokens"] == [["a", "b"]]


FORMS = {
    "csv": "text,label\ngood,pos\nbad,neg\n",
    "tsv": "text\tlabel\ngood\tpos\nbad\tneg\n",
    "jsonl": '{"text": "good", "label": "pos"}\n{"text": "bad", "label": "neg"}\n',
    "json": '[{"text": "good", "label": "pos"}, {"text": "bad", "label": "neg"}]',
}


@pytest.mark.parametrize("ending", FORMS)
def test_compressed(tmp_path, ending):
    content = FORMS[ending].encode()
    squeezed = {"gz": gzip.compress(content)}
    try:
        from backports import zstd

        squeezed["zst"] = zstd.compress(content)
    except ImportError:
        pass
    for compression, data in squeezed.items():
        table = read(tmp_path, f"a.{ending}.{compression}", data)
        assert table.columns == TEXTS
        with pytest.raises(InputError, match=rf"a\.{ending}\.{compression}: damaged"):
            read(tmp_path, f"a.{ending}.{compression}", data[:-3])
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path, f"b.{ending}.gz", content)


def test_lists_written_as_text_are_lists(tmp_path):
    """By JSON, Python and numpy; what numpy leaves out is no list."""
    forms = {
        '["it\'s", "a \\"b\\""]': ["it's", 'a "b"'],
        "[\"it's\", 'b']": ["it's", "b"],
        "['a' 'b'\n \"c's\"]": ["a", "b", "c's"],
        "[1 2\n 3]": [1, 2, 3],
        "[0.5, None]": [0.5, None],
        "['a, b', '[c]']": ["a, b", "[c]"],
        "[]": [],
    }
    for text, expected in forms.items():
        quoted = text.replace('"', '""')
        assert read(tmp_path, "a.csv", f'x,y\n"{quoted}",1\n').columns["x"] == [expected], text
    for text in ("[0 1 ... 8 9]", "[removed]", "[1] a note", "['a' 'b'", "[__import__('os')]", "['a'.upper()]"):
        assert read(tmp_path, "a.csv", f'x,y\n"{text}",1\n').columns["x"] == [text], text
    answers = "{'text': array(['London'], dtype=object), 'answer_start': array([30])}"
    assert read(tmp_path, "a.csv", f'answers,y\n"{answers}",1\n').columns["answers"] == [
        {"text": ["London"], "answer_start": [30]}
    ]


@pytest.mark.parametrize("kind", ["token-classification", "question-answering", "multiple-choice"])
def test_columns_of_labels_go_with_texts_alone(kind, tmp_path):
    columns = {"text": [["a"]], "tags": [["x"]], "question": ["q"], "context": ["c"], "answers": ["c"], "y": [1]}
    table = Table("t.jsonl", {**columns, "choices": [["a", "b"]], "label": [0]}, [1])
    with pytest.raises(InputError, match=f"--labels: goes with --task multi-label, not with {kind}"):
        resolve_options(TaskOptions(task=kind, text=("text",), labels=("y",)), table)


def test_columns_of_labels_make_a_task_of_several_labels(tmp_path):
    table = read(tmp_path, "t.csv", "text,x,y\ngood,1,0\nbad,0,1\n")
    assert resolve_options(TaskOptions(labels=("x", "y")), table).task == "multi-label"
    assert resolve_options(TaskOptions(task="text-classification", labels=("x", "y")), table).task == "multi-label"
