"""Named tasks: where their files are, what their columns mean, the order of their labels, the metric they go by.

Files are read as users have them: GLUE's zips (tsv, some without a header), SuperGLUE's jsonl, SQuAD's json, CoNLL's
text, and the parquet or jsonl copies of the Hugging Face hub, whose label numbers mean another order for some tasks.
Orders and columns of the tsv files are those of Microsoft's DeBERTa code.
"""

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deberta_jax.data import conversions
from deberta_jax.data.columns import CHOICES, CLASSIFICATION, REGRESSION_TASK, SPANS, WORDS
from deberta_jax.data.tables import Table, matching, read_bytes, read_table, read_tables
from deberta_jax.errors import InputError

NLI = ("contradiction", "neutral", "entailment")
HUB_NLI = ("entailment", "neutral", "contradiction")
ENTAILMENT, HUB_ENTAILMENT = ("not_entailment", "entailment"), ("entailment", "not_entailment")
YES_NO, BINARY = ("false", "true"), ("0", "1")
CONLL = ("O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
HUB_CONLL = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
_WNUT = ("corporation", "creative-work", "group", "location", "person", "product")
WNUT = ("O", *(f"{prefix}-{kind}" for kind in _WNUT for prefix in "BI"))


@dataclasses.dataclass(frozen=True)
class Tsv:
    """Places of the texts and the label in a tab-separated line; -1 is the last. Lines of another ``width`` are left
    out, as in Microsoft's reader."""

    text: tuple[int, ...]
    label: int
    header: bool = True
    width: int | None = None


@dataclasses.dataclass(frozen=True)
class NamedTask:
    """A task as a user names it.

    Attributes:
      text, label, choices: columns of the table that ``convert`` gives.
      names: labels in DeBERTa's order; () where none are needed.
      hub_names: what the numbers in the label column of the hub's copies mean; () where numbers are the labels.
      metric: chooses the best checkpoint.
      dev: stems of the file to evaluate on, the first that is there; train: likewise.
      kind_of_txt: how files that end in .txt are read.
      group: rows with the same value are one question; all must be right (MultiRC).
      gold: column of all texts that are right (ReCoRD).
    """

    kind: str
    text: tuple[str, ...]
    label: str
    metric: str
    names: tuple[str, ...] = ()
    hub_names: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    tsv: Tsv | None = None
    convert: Callable[[Table], Table] = lambda table: table
    train: tuple[str, ...] = ("train",)
    dev: tuple[str, ...] = ("dev", "validation", "val", "valid")
    kind_of_txt: str = ".conll"
    group: str = ""
    gold: str = ""


def _pair(a: str, b: str, metric: str, names: tuple[str, ...], **more: Any) -> NamedTask:
    return NamedTask(CLASSIFICATION, (a, b), "label", metric, names, **more)


_MATCHED = ("dev_matched", "validation_matched", "dev", "validation")
_SWAG = ("ending0", "ending1", "ending2", "ending3")

TASKS: dict[str, NamedTask] = {
    # GLUE
    "cola": NamedTask(CLASSIFICATION, ("sentence",), "label", "matthews_correlation", BINARY,
                      tsv=Tsv((3,), 1, header=False)),
    "sst2": NamedTask(CLASSIFICATION, ("sentence",), "label", "accuracy", BINARY, tsv=Tsv((0,), 1)),
    "mrpc": _pair("sentence1", "sentence2", "accuracy", BINARY, tsv=Tsv((3, 4), 0)),
    "stsb": NamedTask(REGRESSION_TASK, ("sentence1", "sentence2"), "label", "pearson", tsv=Tsv((7, 8), 9)),
    "qqp": _pair("question1", "question2", "accuracy", BINARY, tsv=Tsv((3, 4), 5, width=6)),
    "mnli": _pair("premise", "hypothesis", "accuracy", NLI, hub_names=HUB_NLI, tsv=Tsv((8, 9), -1), dev=_MATCHED),
    # The sentence first: Microsoft's order.
    "qnli": _pair("sentence", "question", "accuracy", ENTAILMENT, hub_names=HUB_ENTAILMENT, tsv=Tsv((2, 1), 3)),
    "rte": _pair("sentence1", "sentence2", "accuracy", ENTAILMENT, hub_names=HUB_ENTAILMENT, tsv=Tsv((1, 2), 3)),
    "wnli": _pair("sentence1", "sentence2", "accuracy", BINARY, tsv=Tsv((1, 2), 3)),
    "ax": _pair("premise", "hypothesis", "matthews_correlation", NLI, hub_names=HUB_NLI, tsv=Tsv((1, 2), -1),
                dev=("diagnostic", "test", "AX")),
    # SuperGLUE
    "boolq": _pair("question", "passage", "accuracy", YES_NO, hub_names=YES_NO),
    "cb": _pair("premise", "hypothesis", "accuracy", NLI, hub_names=("entailment", "contradiction", "neutral")),
    "copa": NamedTask(CHOICES, ("first",), "label", "accuracy", choices=("second",), convert=conversions.copa),
    "wic": _pair("sentence1", "sentence2", "accuracy", YES_NO, hub_names=YES_NO, convert=conversions.wic),
    "multirc": _pair("paragraph", "answer", "f1", BINARY, convert=conversions.multirc, group="group"),
    "record": NamedTask(CHOICES, ("passage",), "label", "f1", choices=("queries",), convert=conversions.record,
                        gold="gold"),
    "wsc": _pair("text", "claim", "accuracy", YES_NO, hub_names=YES_NO, convert=conversions.wsc),
    # Natural language inference
    "anli": _pair("premise", "hypothesis", "accuracy", NLI, hub_names=HUB_NLI, tsv=Tsv((1, 2), 3),
                  convert=conversions.anli, train=("R[123]/train", "train_r[123]", "train"),
                  dev=("R[123]/dev", "dev_r[123]", "dev", "validation")),
    "xnli": _pair("premise", "hypothesis", "accuracy", NLI, hub_names=HUB_NLI, convert=conversions.xnli,
                  train=("multinli.train.en", "train"), dev=("xnli.dev", "dev", "validation")),
    # Questions
    "squad": NamedTask(SPANS, ("question", "context"), "answers", "f1", train=("train-v1.1", "train"),
                       dev=("dev-v1.1", "dev", "validation")),
    "squad2": NamedTask(SPANS, ("question", "context"), "answers", "f1", train=("train-v2.0", "train"),
                        dev=("dev-v2.0", "dev", "validation")),
    # Entities
    "conll2003": NamedTask(WORDS, ("tokens",), "tags", "f1", CONLL, hub_names=HUB_CONLL,
                           convert=conversions.entities, train=("train", "eng.train"),
                           dev=("valid", "dev", "eng.testa", "validation")),
    "wnut17": NamedTask(WORDS, ("tokens",), "tags", "f1", WNUT, hub_names=WNUT, convert=conversions.entities,
                        train=("wnut17train", "train"), dev=("emerging.dev", "dev", "validation")),
    # Multiple choice
    "swag": NamedTask(CHOICES, ("sent1", "sent2"), "label", "accuracy", choices=_SWAG,
                      dev=("val", "validation", "dev")),
    "race": NamedTask(CHOICES, ("article", "question"), "answer", "accuracy", choices=("options",),
                      train=("train_*", "train"), dev=("test_*", "dev", "validation", "test")),
    "arc": NamedTask(CHOICES, ("question",), "label", "accuracy", choices=("choices",), convert=conversions.arc,
                     train=("*-Train", "train"), dev=("*-Dev", "dev", "validation")),
}  # fmt: skip

_ENDINGS = (".tsv", ".jsonl", ".json", ".conll", ".txt", ".csv", ".parquet", "-*.parquet")


def find_file(task: str, directory: str, split: str) -> str:
    """Path or pattern of a task's training (``train``) or evaluation (``dev``) file.

    Raises:
      InputError: no file of a name that it may have.
    """
    named = TASKS[task]
    stems = named.train if split == "train" else named.dev
    for stem in stems:
        for ending in _ENDINGS:
            path = str(Path(directory) / f"{stem}{ending}")
            if any(c in path for c in "*?["):
                try:
                    matching(path)
                except InputError:
                    continue
                return path
            if Path(path).is_file():
                return path
    raise InputError(
        f"--data-dir {directory}: no file {' or '.join(stems)} of {task} there, with an ending of "
        f"{', '.join(_ENDINGS[:-1])}; give --train and --eval"
    )


def read_task(task: str, paths: Sequence[str]) -> Table:
    """Files as a table; a named task's with its columns and the names of its labels.

    Raises:
      InputError: as ``read_tables``, or a file that has none of the task's known layouts.
    """
    if task not in TASKS:
        return read_tables(paths)
    named = TASKS[task]
    tables = []
    for path in (file for pattern in paths for file in matching(pattern)):
        if path.endswith(".tsv") and named.tsv is not None:
            table = _read_tsv(path, named)
        else:
            table = read_table(path, named.kind_of_txt if path.endswith(".txt") else None)
        tables.append(_named_labels(named, named.convert(table)))
    return tables[0] if len(tables) == 1 else conversions.stack(tables)


def _read_tsv(path: str, named: NamedTask) -> Table:
    """By the header where it names the task's columns, else by the places of GLUE's file."""
    assert named.tsv is not None
    layout, columns = named.tsv, (*named.text, named.label)
    lines = read_bytes(path).decode("utf-8-sig", errors="strict").split("\n")
    first = lines[0].rstrip("\r").split("\t")
    if set(columns) <= set(first):
        return read_table(path)
    rows, numbers = [], []
    for number, fields in enumerate(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
        if not fields or (layout.header and number == 1) or (layout.width and len(fields) != layout.width):
            continue
        places = (*layout.text, layout.label)
        if max(places) >= len(fields):
            raise InputError(f"{path}, line {number}: {len(fields)} fields; the task's text and label are in {places}")
        rows.append([fields[place] for place in places])
        numbers.append(number)
    if not rows:
        raise InputError(f"{path}: no rows; the file is empty")
    return Table(path, {name: [row[i] for row in rows] for i, name in enumerate(columns)}, numbers)


def _named_labels(named: NamedTask, table: Table) -> Table:
    """Numbers in the label column become names, in the order that they have on the hub; booleans too."""
    if not named.hub_names or named.label not in table.columns:
        return table
    values = [_named(value, named.hub_names) for value in table.columns[named.label]]
    return dataclasses.replace(table, columns={**table.columns, named.label: values})


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(one, names) for one in value]
    if isinstance(value, bool):
        return str(value).lower()
    number = value if isinstance(value, int) else int(value) if str(value).isdigit() else -1
    return names[number] if 0 <= number < len(names) else value
