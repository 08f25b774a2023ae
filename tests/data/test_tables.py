"""Files of labelled text: what is read, and the one line that says what is wrong with a file."""

import json

import pytest

from deberta_jax.data.tables import read_table, read_tables
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
    "too deep": ("a.jsonl", b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "line 1: JSON that cannot be read"),
    "too long a number": ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "line 1: JSON that cannot be read"),
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


def test_conll_files_are_sentences_of_words_and_tags(tmp_path):
    conll = "-DOCSTART- -X- O O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nBlackburn NNP B-PER\r\n"
    table = table_of(tmp_path, "a.conll", conll)
    assert table.columns == {"tokens": [["EU", "rejects"], ["Blackburn"]], "tags": [["B-ORG", "O"], ["B-PER"]]}
    assert table.lines == [3, 7]
    words = ["1-2 don't _ _ _ _ _ _ _ _", "1 do do AUX VBP _ 0 root _ _", "2 n't not PART RB _ 1 advmod _ _"]
    conllu = "# text = a\n" + "".join(word.replace(" ", "\t") + "\n" for word in words)
    table = table_of(tmp_path, "a.conllu", conllu)
    assert table.columns["tokens"] == [["do", "n't"]]
    assert table.columns["upos"] == [["AUX", "PART"]]
    with pytest.raises(InputError, match=r"line 2: 'b' has no tag"):
        table_of(tmp_path, "b.conll", "a O\nb\n")
    with pytest.raises(InputError, match="10 tab-separated fields"):
        table_of(tmp_path, "b.conllu", "1\ta\n")


def test_squads_json_is_a_question_a_row(tmp_path):
    content = {
        "data": [
            {
                "title": "T",
                "paragraphs": [
                    {
                        "context": "abc",
                        "qas": [
                            {
                                "id": "1",
                                "question": "Q?",
                                "answers": [{"text": "b", "answer_start": 1}, {"text": "c", "answer_start": 2}],
                            },
                            {"id": "2", "question": "R?", "answers": [], "is_impossible": True},
                        ],
                    }
                ],
            }
        ]
    }
    table = table_of(tmp_path, "a.json", json.dumps(content))
    assert table.columns["answers"] == [{"text": ["b", "c"], "answer_start": [1, 2]}, {"text": [], "answer_start": []}]
    assert table.columns["is_impossible"] == [False, True]
    assert table.columns["context"] == ["abc", "abc"]
    for content, reason in (
        ('{"rows": []}', r"'data' is missing\)"),
        ('{"data": [{"paragraphs": null}]}', r"'NoneType' object is not iterable\)"),
        ('{"data": [3]}', r"'int' object is not subscriptable\)"),
        ('{"data": ["a"]}', "string indices must be integers"),
    ):
        with pytest.raises(InputError, match=rf"b\.json: not SQuAD's JSON \({reason}"):
            table_of(tmp_path, "b.json", content)


def test_parquet_keeps_lists_and_numbers(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    rows = {"tokens": [["a", "b"], ["c"]], "label": [1, 0], "answers": [{"text": ["x"]}, {"text": []}]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table.columns == rows
    with pytest.raises(InputError, match="not readable as parquet"):
        table_of(tmp_path, "b.parquet", b"nonsense")
    whole = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(InputError, match="not readable as parquet"):
        table_of(tmp_path, "b.parquet", whole[:4] + b"\xff" * 40 + whole[44:])


def test_many_files_are_one_table_and_rows_know_theirs(tmp_path):
    (tmp_path / "part-1.csv").write_text("text,label\na,1\nb,0\n")
    (tmp_path / "part-2.csv").write_text("text\nc\n")
    table = read_tables([str(tmp_path / "part-*.csv")])
    assert table.columns == {"text": ["a", "b", "c"], "label": ["1", "0", None]}
    assert [table.where(i) for i in range(3)] == [
        f"{tmp_path}/part-1.csv, line 2",
        f"{tmp_path}/part-1.csv, line 3",
        f"{tmp_path}/part-2.csv, line 2",
    ]
    with pytest.raises(InputError, match=r"none-\*.csv: no file matches"):
        read_tables([str(tmp_path / "none-*.csv")])
