"""The examples of docs/files.md: each, typed into a file, gives the table that the page says."""

import re
from pathlib import Path

import pytest

from deberta_jax.errors import InputError
from tests.data.reading import read, recognised

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "files.md").read_text(encoding="utf-8")

# The row's first words -> the file to type it into, the columns that it has, and the kind of its task.
READ = {
    ".csv": ("a.csv", {"text": ["good, very", "bad"], "label": ["pos", "neg"]}, "text-classification"),
    ".tsv": ("a.tsv", {"text": ['he said "hi', "bad"], "label": ["pos", "neg"]}, "text-classification"),
    ".json .jsonl .ndjson": ("a.jsonl", {"text": ["good", "bad"], "label": ["pos", "neg"]}, "text-classification"),
    ".conll .bio .iob": (
        "a.conll",
        {"tokens": [["Anna", "New York"]], "tags": [["B-PER", "B-LOC"]]},
        "token-classification",
    ),
    ".conllu": ("a.conllu", {"tokens": [["Anna"]], "upos": [["PROPN"]]}, "token-classification"),
    "Lists written as text": ("a.csv", {"tokens": [["Anna", "sleeps"]], "ner_tags": [[1, 0]]}, "token-classification"),
    "A word a row": ("a.csv", {"Word": [["Anna", "sleeps"]], "Tag": [["B-per", "O"]]}, "token-classification"),
    "Entities by characters": (
        "a.jsonl",
        {"text": ["Anna slept."], "label": [[[0, 4, "PER"]]]},
        "token-classification",
    ),
    "Questions": ("a.jsonl", {"answer": ["Oslo"], "answer_start": [3]}, "question-answering"),
}
# Binary, or behind a network: the tests of parquet files and of datasets make these.
OTHERS = (".parquet", "hub:OWNER/NAME")


def rows() -> dict[str, str]:
    """The rows of the tables of data files: the first cell without marks, and the example as it would be typed."""
    lines = PAGE.partition("## Data files")[2].splitlines()
    found = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if len(cells) >= 2 and cells[0] not in ("file", "layout"):
            parts = [re.fullmatch(r"`(.*)`", part) for part in cells[-1].split("<br>")]
            typed = "\n".join(part[1] for part in parts if part is not None)
            found[cells[0].replace("`", "")] = typed.replace("⇥", "\t") + "\n"
    return found


@pytest.mark.parametrize("row", READ)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_an_example_as_it_is_typed(tmp_path, row, end):
    (typed,) = (typed for first, typed in rows().items() if first.startswith(row))
    name, columns, kind = READ[row]
    table = read(tmp_path, name, typed.replace("\n", end))
    assert {column: table.columns[column] for column in columns} == columns
    given = {"label": "upos"} if name.endswith(".conllu") else {}
    assert recognised(table, **given)[0].task == kind


def test_every_row_of_the_page_is_tried():
    found = rows()
    assert len(found) == len(READ) + len(OTHERS)
    for first in found:
        assert any(map(first.startswith, (*READ, *OTHERS))), first


def test_every_ending_of_the_page_is_known(tmp_path):
    """And no other: the message about an unknown ending names those of the page."""
    endings = {ending for first in rows() for ending in re.findall(r"\.[a-z0-9]+", first.partition("hub:")[0])}
    with pytest.raises(InputError, match="is not known") as error:
        read(tmp_path, "a.xyz", "text,label\na,b\n")
    assert endings - {".txt"} <= set(re.findall(r"\.[a-z0-9]+", str(error.value).partition("is not known")[2]))
