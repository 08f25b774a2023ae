"""Converts the files of some named tasks to plain columns.

Each task has a function that converts a row of a file to rows of the task. A row of another form makes it raise an
ordinary Python exception, of which ``convert_rows`` makes an InputError that names the row.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deberta_jax.data.json_files import parse_json
from deberta_jax.data.table import Table, reason
from deberta_jax.errors import InputError

Row = Mapping[str, Any]


def convert_rows(table: Table, task: str, rows_of: Callable[[Row], Sequence[Row]]) -> Table:
    """Converts all rows of a table.

    Args:
      table: the table of the file.
      task: the name of the task, for messages.
      rows_of: converts one row of the file to rows of the task.

    Raises:
      InputError: a row does not have the form of the task, or there are no rows.
    """
    rows, lines = [], []
    for i, line in enumerate(table.lines):
        try:
            made = rows_of({name: values[i] for name, values in table.columns.items()})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{table.where(i)}: not as {task} has it ({reason(error)})") from None
        rows += made
        lines += [line] * len(made)
    if not rows:
        raise InputError(f"{table.name}: no row of {task} in it")
    return Table(table.name, {name: [row[name] for row in rows] for name in rows[0]}, lines)


def _text(row: Row, name: str) -> str:
    """Returns a field that must be text. Raises KeyError, TypeError."""
    value = row[name]
    if not isinstance(value, str):
        raise TypeError(f"{name!r} is {value!r}; a text is needed")
    return value


def copa(row: Row) -> list[Row]:
    """Makes pairs of texts in temporal order: a cause comes before the premise, an effect after it."""
    choices, same = [_text(row, "choice1"), _text(row, "choice2")], [_text(row, "premise")] * 2
    if row["question"] not in ("cause", "effect"):
        raise ValueError(f"'question' is {row['question']!r}; it must be 'cause' or 'effect'")
    first, second = (choices, same) if row["question"] == "cause" else (same, choices)
    return [{**row, "first": first, "second": second}]


def wic(row: Row) -> list[Row]:
    """Puts the word before the first sentence."""
    return [{**row, "sentence1": f"{_text(row, 'word')}: {_text(row, 'sentence1')}"}]


def wsc(row: Row) -> list[Row]:
    """Adds the claim that the second span refers to the first."""
    spans = row.get("target", row)
    return [{**row, "claim": f"{_text(spans, 'span2_text')} refers to {_text(spans, 'span1_text')}"}]


def multirc(row: Row) -> list[Row]:
    """Makes a row for each answer of each question, with ``group`` for the question. The label is None if missing."""
    if "passage" not in row:
        paragraph, question = _text(row, "paragraph"), _text(row, "question")
        return [{**row, "answer": f"{question} {_text(row, 'answer')}", "group": f"{paragraph}\0{question}"}]
    return [
        {
            "paragraph": _text(row["passage"], "text"),
            "answer": f"{_text(question, 'question')} {_text(answer, 'text')}",
            "group": f"{row['idx']}/{question['idx']}",
            "label": answer.get("label"),
        }
        for question in row["passage"]["questions"]
        for answer in question["answers"]
    ]


def record(row: Row) -> list[Row]:
    """Makes a choice for each entity of the passage: the query with the entity filled in.

    The label is None if the file gives no answers.
    """
    if "qas" in row:
        text = _text(row["passage"], "text")
        names = [text[entity["start"] : entity["end"] + 1] for entity in row["passage"]["entities"]]
        queries = [
            (_text(qa, "query"), [_text(answer, "text") for answer in qa.get("answers", [])]) for qa in row["qas"]
        ]
    else:
        text, names, queries = _text(row, "passage"), row["entities"], [(_text(row, "query"), row["answers"])]
    text, names = text.replace("@highlight\n", ". "), list(dict.fromkeys(names))
    return [
        {
            "passage": text,
            "queries": [query.replace("@placeholder", name) for name in names],
            "entities": names,
            "gold": answers,
            "label": next((i for i, name in enumerate(names) if name in answers), 0 if answers else None),
        }
        for query, answers in queries
        if len(names) > 1
    ]


def anli(row: Row) -> list[Row]:
    """Expands the labels, which the original jsonl abbreviates."""
    names = {"e": "entailment", "n": "neutral", "c": "contradiction"}
    return [{**row, "label": names.get(row["label"], row["label"])}] if "label" in row else [row]


def xnli(row: Row) -> list[Row]:
    """Unifies the labels: the original tsv spells contradiction in two ways."""
    spelled = {"contradictory": "contradiction"}
    return [{**row, "label": spelled.get(row["label"], row["label"])}] if "label" in row else [row]


def arc(row: Row) -> list[Row]:
    """Puts the choices in a list and the index of the right one in ``label``, which is None if the file has none."""
    if "label" in row:
        return [row]
    if isinstance(row["question"], dict):
        stem, choices = _text(row["question"], "stem"), row["question"]["choices"]
        texts, letters = [_text(c, "text") for c in choices], [c["label"] for c in choices]
    else:
        stem, texts, letters = _text(row, "question"), row["choices"]["text"], row["choices"]["label"]
    key = row.get("answerKey")
    if key is not None and key not in letters:
        raise ValueError(f"'answerKey' is {key!r}; it must be one of {letters}")
    return [{"question": stem, "choices": texts, "label": None if key is None else letters.index(key)}]


def read_race(name: str, text: str) -> Table:
    """Reads a file of the published archive: an article with its questions, as JSON in a .txt file.

    Raises:
      InputError: the file has another form.
    """

    def questions(row: Row) -> list[Row]:
        passage = row["passage"]
        article = _text(passage, "article")
        parts = zip(passage["questions"], passage["options"], passage["answers"], strict=True)
        return [{"article": article, "question": q, "options": o, "answer": a} for q, o, a in parts]

    return convert_rows(Table(name, {"passage": [parse_json(name, text)]}, [1]), "race", questions)
