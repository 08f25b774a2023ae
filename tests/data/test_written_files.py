"""What standard writers write, in every dialect that we claim to read, is read back equal, character for character."""

import csv
import io
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from deberta_jax.data.labels import discover_labels, encode_labels
from deberta_jax.data.literals import parse_literal
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.tasks.chunks import chunk_metrics, chunks
from deberta_jax.tasks.named import read_task

try:
    import pandas
except ImportError:
    pandas = None

steady = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
needs_pandas = pytest.mark.skipif(pandas is None, reason="pandas is not installed")

# Quotes, separators and blanks are what a reader may take for something else.
CHARACTERS = st.one_of(
    st.sampled_from("\"',;\t|\\ \n#-[]{}éA1\u00a0\u2028"),
    st.characters(codec="utf-8", exclude_characters="\r\0\ufeff", max_codepoint=0x1FFFF),
)
TEXTS = st.text(CHARACTERS, max_size=12)
TABLES = st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from(["pos", "neg"])), min_size=1, max_size=6)
HEADER = ("text", "note", "label")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


def read_back(directory, name, content: str, delimiter=""):
    (directory / name).write_bytes(content.encode())
    table = read_task("", [str(directory / name)], delimiter)
    return table, [tuple(row) for row in zip(*table.columns.values(), strict=True)]


def no_lists(rows):
    """Columns of nothing but lists are read as lists: that is another test's."""

    def is_list(text):
        try:
            parse_literal(text)
        except ValueError:
            return not text.strip()
        return True

    for column in zip(*rows, strict=True):
        assume(not (any(text.strip() for text in column) and all(map(is_list, column))))


@given(
    rows=TABLES,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    given_too=st.booleans(),
)
@steady
def test_csv_by_the_csv_module(folder, rows, quoting, delimiter, end, given_too):
    no_lists(rows)
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([HEADER, *rows])
    table, found = read_back(folder, "a.csv", out.getvalue(), delimiter if given_too else "")
    assert tuple(table.columns) == HEADER
    assert found == rows


MARKED = st.sampled_from(["", "\ufeff"])


@given(
    rows=TABLES,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    mark=MARKED,
    delimiter=st.sampled_from(",;\t|^:~"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoted=st.booleans(),
    ending=st.sampled_from(["csv", "tsv"]),
)
@steady
def test_csv_as_spreadsheets_write_it(folder, rows, quoting, mark, delimiter, end, quoted, ending):
    """With a byte-order mark, and a first line that names the delimiter."""
    no_lists(rows)
    out = io.StringIO()
    out.write(mark + (f'"sep={delimiter}"' if quoted else f"sep={delimiter}") + end)
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([HEADER, *rows])
    table, found = read_back(folder, f"a.{ending}", out.getvalue())
    assert tuple(table.columns) == HEADER
    assert found == rows


@given(rows=TABLES, delimiter=st.sampled_from("^:~#"), end=st.sampled_from(["\n", "\r\n"]))
@steady
def test_a_delimiter_that_is_given(folder, rows, delimiter, end):
    no_lists(rows)
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end).writerows([HEADER, *rows])
    assert read_back(folder, "a.csv", out.getvalue(), delimiter)[1] == rows


@given(rows=TABLES, delimiter=st.sampled_from(",;|"))
@steady
def test_blanks_before_quoted_fields(folder, rows, delimiter):
    """Every field quoted and a blank after every delimiter: what the csv module reads with skipinitialspace."""
    no_lists(rows)
    quoted = lambda row: f"{delimiter} ".join('"' + field.replace('"', '""') + '"' for field in row)
    text = "\n".join(map(quoted, [HEADER, *rows]))
    assert list(csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True))[1:] == [*map(list, rows)]
    assert read_back(folder, "a.csv", text)[1] == rows


QUOTING = st.builds('{}"{}'.format, TEXTS, TEXTS)


@given(
    first=st.tuples(QUOTING, st.one_of(TEXTS, QUOTING), st.just("pos")),
    rows=TABLES,
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    delimiter=st.sampled_from(",;"),
)
@example(first=('a"', ',"', "pos"), rows=[], quoting=csv.QUOTE_ALL, delimiter=",")
@steady
def test_quotes_after_backslashes(folder, first, rows, quoting, delimiter):
    """Decoded or refused, never cut. In a file without such a quote a backslash is a character."""
    rows = [first, *rows]
    no_lists(rows)
    out = io.StringIO()
    form = {"delimiter": delimiter, "quoting": quoting, "doublequote": False, "escapechar": "\\"}
    csv.writer(out, lineterminator="\n", **form).writerows([HEADER, *rows])
    try:
        found = read_back(folder, "a.csv", out.getvalue())[1]
    except InputError:
        return
    assert found == rows


@given(rows=TABLES, quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), end=st.sampled_from(["\n", "\r\n"]))
@steady
def test_tsv_by_the_csv_module(folder, rows, quoting, end):
    no_lists(rows)
    out = io.StringIO()
    csv.writer(out, delimiter="\t", quoting=quoting, lineterminator=end).writerows([HEADER, *rows])
    assert read_back(folder, "a.tsv", out.getvalue())[1] == rows


PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0\ufeff"), max_size=12)


@given(rows=st.lists(st.tuples(PLAIN, PLAIN, st.just("x")), min_size=1, max_size=6))
@steady
def test_tsv_without_any_quoting(folder, rows):
    """As GLUE's files are. Where every quote happens to quote a field they are read as pandas' files."""
    no_lists(rows)
    quoted = [text for row in rows for text in row if text.startswith('"') and text.endswith('"')]
    assume(not quoted)
    content = "\n".join("\t".join(row) for row in [HEADER, *rows])
    assert read_back(folder, "a.tsv", content)[1] == rows


@needs_pandas
@given(
    rows=TABLES,
    separator=st.sampled_from(",;\t|"),
    index=st.booleans(),
    ending=st.sampled_from(["csv", "tsv"]),
    compression=st.sampled_from([None, "gzip"]),
)
@steady
def test_csv_by_pandas(folder, rows, separator, index, ending, compression):
    no_lists(rows)
    directory = folder
    path = directory / (f"p.{ending}" + (".gz" if compression else ""))
    pandas.DataFrame(rows, columns=HEADER).to_csv(path, sep=separator, index=index, compression=compression)
    table = read_task("", [str(path)])
    assert tuple(table.columns) == HEADER
    assert [tuple(row) for row in zip(*table.columns.values(), strict=True)] == rows


@needs_pandas
@given(rows=TABLES, form=st.sampled_from(["lines", "records", "columns", "table"]), ascii=st.booleans())
@steady
def test_json_by_pandas(folder, rows, form, ascii):
    directory = folder
    ending = "jsonl" if form == "lines" else "json"
    how = {"orient": "records", "lines": True} if form == "lines" else {"orient": form}
    path = directory / f"p.{ending}"
    pandas.DataFrame(rows, columns=HEADER).to_json(path, force_ascii=ascii, **how)
    table = read_task("", [str(path)])
    assert [tuple(row) for row in zip(*(table.columns[name] for name in HEADER), strict=True)] == rows


@given(rows=TABLES, indent=st.sampled_from([None, 2]), ascii=st.booleans(), ending=st.sampled_from(["json", "jsonl"]))
@steady
def test_json_by_the_json_module(folder, rows, indent, ascii, ending):
    objects = [dict(zip(HEADER, row, strict=True)) for row in rows]
    content = json.dumps(objects, indent=indent, ensure_ascii=ascii)
    assert read_back(folder, f"a.{ending}", content)[1] == rows
    content = "\n".join(json.dumps(row, ensure_ascii=ascii) for row in objects)
    assert read_back(folder, f"a.{ending}", content)[1] == rows


VALUES = st.recursive(
    st.one_of(st.text(CHARACTERS, max_size=6), st.integers(-99, 99), st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


@given(value=st.lists(VALUES, max_size=5), writer=st.sampled_from([str, json.dumps]))
@steady
def test_lists_written_as_text(value, writer):
    assert parse_literal(writer(value)) == value


@given(words=st.lists(st.text(CHARACTERS, max_size=6), max_size=9), numbers=st.lists(st.integers(-9, 99), max_size=30))
@steady
def test_lists_printed_by_numpy(words, numbers):
    with np.printoptions(linewidth=20):
        assert parse_literal(str(np.array(words, dtype=object))) == words
        assert parse_literal(str(np.array(numbers, dtype=np.int64))) == numbers


TAGS = st.sampled_from(["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "S-ORG", "E-PER"])


def sentences_of(word):
    return st.lists(st.lists(st.tuples(word, TAGS), min_size=1, max_size=5), min_size=1, max_size=4)


def is_comment(sentences):
    """A sentence that begins with # may be one whose tag stands nowhere else."""
    return any(word.startswith("#") for sentence in sentences for word, _ in sentence)


SPACES = st.text(st.characters(codec="utf-8", exclude_characters=" \t\n\r\0\ufeff"), min_size=1, max_size=6)
TABBED = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0\ufeff"), max_size=6)


@given(
    data=st.data(),
    tabs=st.booleans(),
    columns=st.integers(0, 2),
    end=st.sampled_from(["\n", "\r\n"]),
    document=st.booleans(),
    ending=st.sampled_from(["conll", "bio", "txt"]),
)
@steady
def test_conll_as_conlleval_reads_it(folder, data, tabs, columns, end, document, ending):
    """Word, other columns, tag: the layout that conlleval and seqeval's users write; tabs let a word hold blanks."""
    sentences = data.draw(sentences_of(TABBED if tabs else SPACES))
    assume(not is_comment(sentences))
    assume(not any(word == "-DOCSTART-" or word.startswith("-DOCSTART- ") for s in sentences for word, _ in s))
    # A column of 1, 2, 3 numbers the words.
    assume(not all(word == str(i) for s in sentences for i, (word, _) in enumerate(s, 1)))
    separator = "\t" if tabs else " "
    text = f"-DOCSTART-{separator}{separator.join(['X'] * columns + ['O'])}{end}{end}" if document else ""
    for sentence in sentences:
        text += "".join(separator.join([word, *["x"] * columns, tag]) + end for word, tag in sentence) + end
    path = folder / f"a.{ending}"
    path.write_bytes(text.encode())
    table = read_task("token-classification", [str(path)])
    assert table.columns["tokens"] == [[word for word, _ in sentence] for sentence in sentences]
    assert table.columns["tags"] == [[tag for _, tag in sentence] for sentence in sentences]


@given(data=st.data(), columns=st.integers(1, 3), tabs=st.booleans(), numbered=st.booleans())
@steady
def test_conll_with_comments_and_numbered_words(folder, data, columns, tabs, numbered):
    """As GermEval and MultiCoNER write it: lines about a sentence before it, words numbered from 1."""
    sentences = data.draw(sentences_of(TABBED if tabs else SPACES))
    assume(not is_comment(sentences))
    assume(not any(word == "-DOCSTART-" or word.startswith("-DOCSTART- ") for s in sentences for word, _ in s))
    assume(not all(word == str(i) for s in sentences for i, (word, _) in enumerate(s, 1)))
    assume(not numbered or any(len(sentence) > 1 for sentence in sentences))
    about = data.draw(st.lists(st.sampled_from(["# id 7f-1\tdomain=en", "#", "# a text", "# -X-"]), max_size=2))
    separator, text = ("\t" if tabs else " "), ""
    for sentence in sentences:
        text += "".join(line + "\n" for line in about)
        for i, (word, tag) in enumerate(sentence, 1):
            text += separator.join([*[str(i)] * numbered, word, *["x"] * columns, tag]) + "\n"
        text += "\n"
    (folder / "c.conll").write_bytes(text.encode())
    table = read_task("", [str(folder / "c.conll")])
    assert table.columns["tokens"] == [[word for word, _ in sentence] for sentence in sentences]
    assert table.columns["tags"] == [[tag for _, tag in sentence] for sentence in sentences]


FIELD = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0\ufeff"), min_size=1, max_size=5)


@given(
    sentences=st.lists(st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=4), min_size=1, max_size=4),
    end=st.sampled_from(["\n", "\r\n"]),
    ranges=st.booleans(),
)
@steady
def test_conllu(folder, sentences, end, ranges):
    """Its ten fields, with comments, ranges of words and empty nodes, which are no words."""
    text = ""
    for number, sentence in enumerate(sentences):
        text += f"# sent_id = {number}{end}"
        text += f"1-2\tab{end}".replace("ab", "\t".join(["ab", *"________"])) if ranges else ""
        for i, (word, lemma, tag) in enumerate(sentence, 1):
            text += "\t".join([str(i), word, lemma, tag, "_", "_", "0", "root", "_", "_"]) + end
        text += "\t".join([f"{len(sentence)}.1", *"_________"]) + end * 2 if ranges else end
    (folder / "c.conllu").write_bytes(text.encode())
    columns = read_task("", [str(folder / "c.conllu")]).columns
    for i, name in enumerate(("tokens", "lemmas", "upos")):
        assert columns[name] == [[row[i] for row in sentence] for sentence in sentences]


@given(truth=sentences_of(st.just("w")), seed=st.integers(0, 99))
@steady
def test_spans_of_what_was_read_are_seqevals(folder, truth, seed):
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import get_entities

    text = "\n".join("".join(f"{word}\t{tag}\n" for word, tag in sentence) for sentence in truth)
    path = folder / "s.conll"
    path.write_text(text)
    tags = read_task("", [str(path)]).columns["tags"]
    assert [chunks(row) for row in tags] == [get_entities(row) for row in tags]
    guess = [list(np.random.default_rng(seed).permutation(row)) for row in tags]
    if any(chunks(row) for row in tags) and any(chunks(row) for row in guess):
        assert chunk_metrics(tags, guess)["f1"] == pytest.approx(f1_score(tags, guess))


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=5)


@given(
    names=st.lists(NAMES, min_size=2, max_size=4, unique_by=lambda n: unicodedata.normalize("NFC", n).casefold()),
    form=st.sampled_from(["csv", "jsonl"]),
    seed=st.integers(0, 99),
)
@steady
def test_labels_however_they_are_written(folder, names, form, seed):
    """Classes are the same in any file: composed or not, with blanks around them or not."""
    assume(
        not any(n in ("nan", "NaN", "None", "null", "NULL", "<NA>") or n.lower() in ("true", "false") for n in names)
    )
    assume(not any(map(is_number, names)))
    rng = np.random.default_rng(seed)
    order = [*range(len(names)), *rng.integers(len(names), size=4 * len(names)).tolist()]
    values = [names[i] for i in order]
    written = [
        str(rng.choice([v, f" {v} ", unicodedata.normalize("NFD", v), unicodedata.normalize("NFC", v)])) for v in values
    ]
    path = folder / f"l.{form}"
    with path.open("w", encoding="utf-8", newline="") as file:
        if form == "csv":
            csv.writer(file).writerows([("text", "label"), *(("a", value) for value in written)])
        else:
            file.writelines(json.dumps({"text": "a", "label": value}) + "\n" for value in written)
    table = read_task("", [str(path)])
    spec = discover_labels(table, "label")
    composed = [unicodedata.normalize("NFC", value) for value in values]
    assert spec.names == tuple(sorted(set(composed)))
    assert [spec.names[i] for i in encode_labels(table, ("label",), spec)] == composed


@given(numbers=st.lists(st.integers(-3, 40), min_size=2, max_size=12), seed=st.integers(0, 99))
@steady
def test_numbers_however_they_are_written(numbers, seed):
    assume(len(set(numbers)) > 1)
    rng = np.random.default_rng(seed)
    forms = [int, float, str, lambda n: str(float(n)), lambda n: f"{n}.", lambda n: f"{n:.2e}", lambda n: f" {n:+03d}"]
    written = [forms[int(rng.integers(len(forms)))](n) for n in numbers * 3]
    table = Table("f", {"y": written}, range(len(written)))
    spec = discover_labels(table, "y")
    assert spec.names == tuple(str(n) for n in sorted(set(numbers)))
    assert [int(spec.names[i]) for i in encode_labels(table, ("y",), spec)] == numbers * 3
