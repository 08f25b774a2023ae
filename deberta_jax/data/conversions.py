"""From the files of some named tasks to plain columns: one function a task, from table to table."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from deberta_jax.data.tables import Table


def stack(tables: Sequence[Table]) -> Table:
    """Tables one after the other."""
    columns = {name: [value for table in tables for value in table.column(name)] for name in tables[0].columns}
    parts, first = [], 0
    for table in tables:
        parts.append((first, table.name))
        first += len(table)
    name = f"{tables[0].name} and {len(tables) - 1} more"
    return Table(name, columns, [line for table in tables for line in table.lines], tuple(parts))


def with_columns(table: Table, **columns: list[Any]) -> Table:
    return dataclasses.replace(table, columns={**table.columns, **columns})


def expand(table: Table, rows_of: Callable[[Mapping[str, Any]], list[dict[str, Any]]]) -> Table:
    """Several rows from each."""
    rows, lines = [], []
    for i, line in enumerate(table.lines):
        for row in rows_of({name: values[i] for name, values in table.columns.items()}):
            rows.append(row)
            lines.append(line)
    names = list(rows[0]) if rows else []
    return Table(table.name, {name: [row[name] for row in rows] for name in names}, lines)


def copa(table: Table) -> Table:
    """A cause comes before the premise, an effect after it."""
    first, second = [], []
    columns = [table.texts(name) for name in ("premise", "choice1", "choice2", "question")]
    for premise, one, two, question in zip(*columns, strict=True):
        choices, same = [one, two], [premise, premise]
        first.append(choices if question == "cause" else same)
        second.append(same if question == "cause" else choices)
    return with_columns(table, first=first, second=second)


def wic(table: Table) -> Table:
    """The word before the first sentence."""
    words = zip(table.texts("word"), table.texts("sentence1"), strict=True)
    return with_columns(table, sentence1=[f"{word}: {sentence}" for word, sentence in words])


def wsc(table: Table) -> Table:
    """The claim that the second span means the first."""
    if "target" in table.columns:
        spans = [(target["span1_text"], target["span2_text"]) for target in table.column("target")]
    else:
        spans = list(zip(table.texts("span1_text"), table.texts("span2_text"), strict=True))
    return with_columns(table, claim=[f"{pronoun} refers to {name}" for name, pronoun in spans])


def multirc(table: Table) -> Table:
    """A row for each answer of each question; ``group`` says which question."""
    if "passage" not in table.columns:
        pairs = zip(table.texts("question"), table.texts("answer"), strict=True)
        groups = [f"{p}\0{q}" for p, q in zip(table.texts("paragraph"), table.texts("question"), strict=True)]
        return with_columns(table, answer=[f"{q} {a}" for q, a in pairs], group=groups)
    return expand(table, lambda row: [
        {"paragraph": row["passage"]["text"], "answer": f"{question['question']} {answer['text']}",
         "group": f"{row['idx']}/{question['idx']}", "label": str(answer.get("label", 0))}
        for question in row["passage"]["questions"] for answer in question["answers"]
    ])  # fmt: skip


def record(table: Table) -> Table:
    """A choice for each entity of the passage: the query with it in the gap."""

    def questions(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if "qas" in row:
            text = row["passage"]["text"]
            names = [text[entity["start"] : entity["end"] + 1] for entity in row["passage"]["entities"]]
            queries = [(qa["query"], [answer["text"] for answer in qa.get("answers", [])]) for qa in row["qas"]]
        else:
            text, names, queries = row["passage"], row["entities"], [(row["query"], row["answers"])]
        text, names = text.replace("@highlight\n", ". "), list(dict.fromkeys(names))
        return [
            {"passage": text, "queries": [query.replace("@placeholder", name) for name in names], "entities": names,
             "gold": answers, "label": next((i for i, name in enumerate(names) if name in answers), 0)}
            for query, answers in queries if len(names) > 1
        ]  # fmt: skip

    return expand(table, questions)


def anli(table: Table) -> Table:
    """The original jsonl calls the premise context and shortens the labels."""
    if "context" not in table.columns:
        return table
    names = {"e": "entailment", "n": "neutral", "c": "contradiction"}
    labels = [names.get(value, value) for value in table.column("label")]
    return with_columns(table, premise=table.column("context"), label=labels)


def xnli(table: Table) -> Table:
    """The original tsv has the names of MultiNLI's files, and writes contradiction in two ways."""
    columns = dict(table.columns)
    for ours, theirs in (("premise", "sentence1"), ("hypothesis", "sentence2"), ("label", "gold_label")):
        if ours not in columns and theirs in columns:
            columns[ours] = columns[theirs]
    if "hypo" in columns:
        columns["hypothesis"] = columns["hypo"]
    spelled = {"contradictory": "contradiction"}
    columns["label"] = [spelled.get(value, value) for value in columns.get("label", [])]
    return dataclasses.replace(table, columns=columns)


def entities(table: Table) -> Table:
    """The hub's copies call the column ner_tags."""
    if "ner_tags" in table.columns:
        return with_columns(table, tags=table.column("ner_tags"))
    return table


def arc(table: Table) -> Table:
    """Texts of the choices in a list; the right one by its number."""
    if "label" in table.columns:
        return table

    def question(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        if isinstance(row["question"], dict):
            stem, choices = row["question"]["stem"], row["question"]["choices"]
            texts, letters = [c["text"] for c in choices], [c["label"] for c in choices]
        else:
            stem, texts, letters = row["question"], row["choices"]["text"], row["choices"]["label"]
        return [{"question": stem, "choices": texts, "label": letters.index(row["answerKey"])}]

    return expand(table, question)
