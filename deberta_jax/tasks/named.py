"""Lists the published tasks with their files, columns, labels and metrics, and reads their files.

Files are read in the published forms: GLUE's zips (tsv, some without a header), SuperGLUE's jsonl, SQuAD's json,
CoNLL's text, and the parquet or jsonl copies of the Hugging Face hub, whose label numbers follow another order for some
tasks. Labels are in the order of Microsoft's DeBERTa code.
"""

import dataclasses
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from deberta_jax import storage
from deberta_jax.data import conversions
from deberta_jax.data.conll import read_conll
from deberta_jax.data.delimited import tab_separated, table_of_lines
from deberta_jax.data.files import COMPRESSED, ending, found, matching_files, members
from deberta_jax.data.labels import number_of
from deberta_jax.data.layouts import arrange
from deberta_jax.data.table import Table, join_tables
from deberta_jax.data.tables import Reading, read_table, read_tables
from deberta_jax.errors import InputError
from deberta_jax.tasks.base import NamedTask
from deberta_jax.tasks.registry import TASK_KINDS

_log = logging.getLogger(__name__)

NLI = ("contradiction", "neutral", "entailment")
HUB_NLI = ("entailment", "neutral", "contradiction")
ENTAILMENT, HUB_ENTAILMENT = ("not_entailment", "entailment"), ("entailment", "not_entailment")
YES_NO, BINARY = ("false", "true"), ("0", "1")
CONLL = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
HUB_CONLL = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_WNUT = ("corporation", "creative-work", "group", "location", "person", "product")
WNUT = ("O", *(f"{prefix}-{kind}" for kind in _WNUT for prefix in "BI"))


def _pair(a: str, b: str, metric: str, names: tuple[str, ...], **more: Any) -> NamedTask:
    return NamedTask("text-classification", (a, b), "label", metric, names, **more)


def _read_cola(name: str, text: str) -> Table:
    """Reads CoLA's files. Those with labels have no header; the test file has one."""
    lines = tab_separated(text)
    if lines and len(lines[0][1]) == 4 and lines[0][1][1] in BINARY:
        lines.insert(0, (0, ["source", "label", "original", "sentence"]))
    return table_of_lines(name, lines)


def _read_qqp(name: str, text: str) -> Table:
    """Reads QQP's files.

    A line break inside a question splits its line. In labelled files such lines are left out, as in Microsoft's reader;
    in other files every line needs an answer and is kept.
    """
    lines = tab_separated(text)
    if lines and "is_duplicate" in lines[0][1]:
        whole = [(number, fields) for number, fields in lines if len(fields) == len(lines[0][1])]
        if len(whole) < len(lines):
            _log.info("%s: %d torn lines are left out", name, len(lines) - len(whole))
        lines = whole
    return table_of_lines(name, lines)


_SENTENCES = {
    "premise": ("sentence1", "Premise"),
    "hypothesis": ("sentence2", "Hypothesis", "hypo"),
    "label": ("gold_label", "Label"),
}
_MATCHED = ("dev_matched", "validation_matched", "dev", "validation")
_SWAG = ("ending0", "ending1", "ending2", "ending3")

NAMED_TASKS: dict[str, NamedTask] = {
    # GLUE
    "cola": NamedTask(
        "text-classification", ("sentence",), "label", "matthews_correlation", BINARY, readers={".tsv": _read_cola}
    ),
    "sst2": NamedTask("text-classification", ("sentence",), "label", "accuracy", BINARY),
    "mrpc": _pair(
        "sentence1",
        "sentence2",
        "accuracy",
        BINARY,
        called={"sentence1": ("#1 String",), "sentence2": ("#2 String",), "label": ("Quality",)},
    ),
    "stsb": NamedTask("regression", ("sentence1", "sentence2"), "label", "pearson", called={"label": ("score",)}),
    "qqp": _pair(
        "question1", "question2", "accuracy", BINARY, called={"label": ("is_duplicate",)}, readers={".tsv": _read_qqp}
    ),
    "mnli": _pair("premise", "hypothesis", "accuracy", NLI, hub_names=HUB_NLI, called=_SENTENCES, dev=_MATCHED),
    # The sentence comes first, as in Microsoft's code.
    "qnli": _pair("sentence", "question", "accuracy", ENTAILMENT, hub_names=HUB_ENTAILMENT),
    "rte": _pair("sentence1", "sentence2", "accuracy", ENTAILMENT, hub_names=HUB_ENTAILMENT),
    "wnli": _pair("sentence1", "sentence2", "accuracy", BINARY),
    "ax": _pair(
        "premise",
        "hypothesis",
        "matthews_correlation",
        NLI,
        hub_names=HUB_NLI,
        called=_SENTENCES,
        dev=("diagnostic-full", "diagnostic", "test", "AX"),
    ),
    # SuperGLUE
    "boolq": _pair("question", "passage", "accuracy", YES_NO, hub_names=YES_NO),
    "cb": _pair("premise", "hypothesis", "accuracy", NLI, hub_names=("entailment", "contradiction", "neutral")),
    "copa": NamedTask(
        "multiple-choice", ("first",), "label", "accuracy", choices=("second",), convert=conversions.copa
    ),
    "wic": _pair("sentence1", "sentence2", "accuracy", YES_NO, hub_names=YES_NO, convert=conversions.wic),
    "multirc": _pair("paragraph", "answer", "f1", BINARY, convert=conversions.multirc, group="group"),
    "record": NamedTask(
        "multiple-choice", ("passage",), "label", "f1", choices=("queries",), convert=conversions.record, gold="gold"
    ),
    "wsc": _pair("text", "claim", "accuracy", YES_NO, hub_names=YES_NO, convert=conversions.wsc),
    # Natural language inference
    "anli": _pair(
        "premise",
        "hypothesis",
        "accuracy",
        NLI,
        hub_names=HUB_NLI,
        called={"premise": ("context",)},
        convert=conversions.anli,
        train=("R[123]/train", "train_r[123]", "train"),
        dev=("R[123]/dev", "dev_r[123]", "dev", "validation"),
    ),
    "xnli": _pair(
        "premise",
        "hypothesis",
        "accuracy",
        NLI,
        hub_names=HUB_NLI,
        called=_SENTENCES,
        convert=conversions.xnli,
        train=("multinli.train.en", "train"),
        dev=("xnli.dev", "dev", "validation"),
    ),
    # Questions
    "squad": NamedTask(
        "question-answering",
        ("question", "context"),
        "answers",
        "f1",
        train=("train-v1.1", "train"),
        dev=("dev-v1.1", "dev", "validation"),
    ),
    "squad2": NamedTask(
        "question-answering",
        ("question", "context"),
        "answers",
        "f1",
        train=("train-v2.0", "train"),
        dev=("dev-v2.0", "dev", "validation"),
    ),
    # Entities
    "conll2003": NamedTask(
        "token-classification",
        ("tokens",),
        "tags",
        "f1",
        CONLL,
        hub_names=HUB_CONLL,
        called={"tags": ("ner_tags",)},
        readers={".txt": read_conll},
        train=("train", "eng.train"),
        dev=("valid", "dev", "eng.testa", "validation"),
    ),
    "wnut17": NamedTask(
        "token-classification",
        ("tokens",),
        "tags",
        "f1",
        WNUT,
        hub_names=WNUT,
        called={"tags": ("ner_tags",)},
        readers={".txt": read_conll},
        train=("wnut17train", "train"),
        dev=("emerging.dev", "dev", "validation"),
    ),
    # Multiple choice
    "swag": NamedTask(
        "multiple-choice", ("sent1", "sent2"), "label", "accuracy", choices=_SWAG, dev=("val", "validation", "dev")
    ),
    "race": NamedTask(
        "multiple-choice",
        ("article", "question"),
        "answer",
        "accuracy",
        choices=("options",),
        readers={".txt": conversions.read_race},
        train=("train/*/*", "train_*", "train"),
        dev=("dev/*/*", "test_*", "dev", "validation", "test"),
    ),
    "arc": NamedTask(
        "multiple-choice",
        ("question",),
        "label",
        "accuracy",
        choices=("choices",),
        convert=conversions.arc,
        train=("*-Train", "train"),
        dev=("*-Dev", "dev", "validation"),
    ),
}

_ENDINGS = (".tsv", ".jsonl", ".json", ".conll", ".txt", ".csv", ".parquet", "-*.parquet")


def find_file(task: str, directory: str, split: str) -> str:
    """Returns the path or pattern of a task's training (``train``) or evaluation (``dev``) file.

    ``directory`` may be a zip, or contain a zip with the task's name. In a zip the file in the fewest folders is used.

    Raises:
      InputError: there is no file with one of the task's names, or there are several in a zip.
    """
    named = NAMED_TASKS[task]
    stems = named.train if split == "train" else named.dev
    path = _find(directory, stems)
    if path:
        return path
    hits: dict[int, list[str]] = {}
    for archive in _archives(task, storage.as_path(directory)):
        for folder in sorted({folder for name in members(archive) for folder in PurePosixPath(name).parents}):
            path = _find(str(archive / folder), stems)
            if path:
                hits.setdefault(len(folder.parts), []).append(path)
    if not hits:
        raise InputError(
            f"--data-dir {directory}: no file {' or '.join(stems)} of {task} there or in its zip, with an ending of "
            f"{', '.join(_ENDINGS[:-1])}; give --train and --eval"
        )
    first = hits[min(hits)]
    if len(first) > 1:
        raise InputError(f"--data-dir {directory}: {' and '.join(first)} are all there; give the folder of one")
    return first[0]


def _find(directory: str, stems: Sequence[str]) -> str | None:
    endings = (*_ENDINGS, *(end + more for end in _ENDINGS[:-2] for more in COMPRESSED))
    paths = (os.path.join(directory, stem + end) for stem in stems for end in endings)
    return next((path for path in paths if found(path)), None)


def _archives(task: str, directory: storage.AnyPath) -> list[storage.AnyPath]:
    """Returns a zip, or the zips in a directory whose names begin with the task's: SST-2.zip, QQP-clean.zip."""
    with storage.reaching(directory):
        if directory.suffix == ".zip" and directory.is_file():
            return [directory]
        archives = sorted(directory.glob("*.zip"))
    return [file for file in archives if re.sub(r"\W", "", file.stem.lower()).startswith(task)]


def read_task(
    task: str, paths: Sequence[str], delimiter: str = "", read: Callable[[str, Reading], Table] | None = None
) -> Table:
    """Reads files as one table. For a named task columns and labels get the task's names.

    Args:
      task: a named task, a kind of task, or "" if the kind is to be guessed.
      paths: files or patterns.
      delimiter: character between the fields of csv and tsv files; "" detects it.
      read: reads a file in place of ``read_table``, unless the task has a reader of its own for it.

    Raises:
      InputError: as ``read_tables``, or a row does not have the form of the task's rows.
    """
    named = NAMED_TASKS.get(task)
    if named is None:
        word_lists = has_word_lists(task)
        return arrange(read_tables(paths, Reading(delimiter, words=word_lists), read), words=word_lists or not task)
    reading = Reading(delimiter, words=has_word_lists(task))
    tables = []
    for path in (file for pattern in paths for file in matching_files(pattern)):
        reader = named.readers.get(ending(path))
        table = read_table(path, reader, reading) if reader or read is None else read(path, reading)
        tables.append(as_named(task, table))
    return join_tables(tables)


def has_word_lists(task: str) -> bool:
    """Returns whether the texts of a kind of task, or of a named task, are lists of words in files."""
    kind = NAMED_TASKS[task].kind if task in NAMED_TASKS else task
    return kind in TASK_KINDS and TASK_KINDS[kind].word_lists


def as_named(task: str, table: Table) -> Table:
    """Converts the table of a published file to the columns and labels of a named task.

    Raises:
      InputError: a row does not have the form of the task's rows.
    """
    named = NAMED_TASKS[task]
    table = _renamed(named, table)
    if named.convert is not None:
        table = conversions.convert_rows(table, task, named.convert)
    return _named_labels(named, table)


def _renamed(named: NamedTask, table: Table) -> Table:
    """Returns the table with its columns renamed to the task's names, if a published file has other names."""
    new_names: dict[str, str] = {}
    for name, others in named.called.items():
        present = [other for other in others if other in table.columns]
        if present and name not in table.columns:
            new_names[present[0]] = name
    # The task gives the names of label numbers, for every form of its files.
    columns = {new_names.get(key, key): values for key, values in table.columns.items()}
    return dataclasses.replace(table, columns=columns, class_names={})


def _named_labels(named: NamedTask, table: Table) -> Table:
    """Returns the table with names instead of the numbers and booleans in the label column, in the hub's order."""
    if not named.hub_names or named.label not in table.columns:
        return table
    values = [_named(value, named.hub_names) for value in table.columns[named.label]]
    return dataclasses.replace(table, columns={**table.columns, named.label: values})


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    if isinstance(value, bool):
        return str(value).lower()
    number = number_of(value)
    if number == -1:  # the hub's copies have -1 for a missing label
        return None
    return names[number] if number is not None and 0 <= number < len(names) else value
