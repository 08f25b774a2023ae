"""The kinds of task. ``settle_task`` makes one from a table and what the user said, ``task_of_model`` from a model."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.columns import CHOICES, KINDS, MULTI, REGRESSION_TASK, SPANS, WORDS, guess_columns, guess_kind
from deberta_jax.data.columns import CLASSIFICATION as CLASSIFICATION
from deberta_jax.data.labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    LabelSpec,
    discover_labels,
    number_of,
)
from deberta_jax.data.questions import answer_lists
from deberta_jax.data.table import Table
from deberta_jax.data.tasks import TASKS
from deberta_jax.errors import InputError
from deberta_jax.inference.tasks.base import Metrics, Task, TaskOptions
from deberta_jax.inference.tasks.choices import ChoiceTask
from deberta_jax.inference.tasks.entities import EntityTask, discover_spans
from deberta_jax.inference.tasks.spans import SpanTask
from deberta_jax.inference.tasks.text import TextTask
from deberta_jax.inference.tasks.unlabelled import without_unlabelled
from deberta_jax.inference.tasks.words import WordTask, discover_tags
from deberta_jax.weights.adapters import CONFIG as ADAPTER_CONFIG
from deberta_jax.weights.adapters import read_adapter_config

_log = logging.getLogger(__name__)

# The class in config.json's architectures -> the kind.
_ARCHITECTURES = {
    "ForSequenceClassification": CLASSIFICATION,
    "ForTokenClassification": WORDS,
    "ForQuestionAnswering": SPANS,
    "ForMultipleChoice": CHOICES,
}

# The task_type of adapter_config.json -> the kind.
_ADAPTERS = {"SEQ_CLS": CLASSIFICATION, "TOKEN_CLS": WORDS, "QUESTION_ANS": SPANS}


def settle_options(options: TaskOptions, table: Table, *, labelled: bool = True) -> dict[str, Any]:
    """Task and columns, given, known of a named task, or guessed, as fields of ``TaskOptions``; guesses are told.

    Raises:
      InputError: a task that does not exist, or columns that cannot be guessed.
    """
    o = options
    if len(o.text) > 2:
        raise InputError(f"--text: give one column, or two for a pair, not {len(o.text)}")
    if o.task in TASKS:
        named = TASKS[o.task]
        return {"text": o.text or named.text, "label": o.label or named.label, "choices": o.choices or named.choices}
    kind = o.task or guess_kind(table)
    if kind not in KINDS:
        raise InputError(f"--task {kind}: is no task; there are {', '.join(KINDS)}, and by name {', '.join(TASKS)}")
    label = o.label or ("-" if o.labels else "")
    found = guess_columns(table, kind, o.text, label, o.choices, labelled=labelled)
    settled = {"task": found.kind, "text": found.text, "label": found.label, "choices": found.choices}
    if o.labels:
        settled |= {"label": "", "task": MULTI}
    guessed = [f"--{name} {_shown(value)}" for name, value in settled.items() if value and not getattr(options, name)]
    if guessed:
        _log.info("%s: guessed %s", table.name, "  ".join(guessed))
    return settled


def kind_of(task: str) -> str:
    """The kind of a task that may be a named one."""
    return TASKS[task].kind if task in TASKS else task


def settle_task(options: TaskOptions, table: Table) -> Task:
    """The task of settled options; labels are those of the named task, or those found in the training table.

    Raises:
      InputError: columns that are not there, or that hold something else.
    """
    o, kind = options, kind_of(options.task)
    names = TASKS[o.task].names if o.task in TASKS else ()
    if kind == WORDS:
        return _word_task(o, table, names)
    if kind == SPANS:
        return _span_task(o, any(not answer_lists(table, o.label, row)[0] for row in range(len(table))))
    if kind == CHOICES:
        return _choice_task(o, _first_number(table, o.label))
    if o.labels:
        spec = LabelSpec(MULTI_LABEL, o.labels)
    elif kind == REGRESSION_TASK:
        spec = LabelSpec(REGRESSION, ("LABEL_0",))
    elif names:
        spec = LabelSpec(SINGLE_LABEL, names)
    else:
        spec = discover_labels(table, o.label)
    return _text_task(o, spec)


def task_of_model(options: TaskOptions, config: DebertaConfig, table: Table) -> Task:
    """The task of settled options for a trained model, whose labels its config has, on a table."""
    o, kind = options, kind_of(options.task)
    if kind == WORDS:
        return _word_task(o, table, config.id2label)
    if kind == SPANS:
        return _span_task(o, o.task != "squad")
    if kind == CHOICES:
        return _choice_task(o, 0)
    return _text_task(o, LabelSpec(problem_of(config), config.id2label))


def _word_task(o: TaskOptions, table: Table, names: Sequence[str]) -> WordTask:
    """Of lists of words, or of raw texts. ``names``: of the tags; () where they are to be found in the table."""
    text = o.text[0]
    if not any(isinstance(value, str) for value in table.column(text)):
        return WordTask(text, o.label, tuple(names) or discover_tags(table, text, o.label))
    return EntityTask(text, o.label, tuple(names) or discover_spans(table, text, o.label))


def _text_task(o: TaskOptions, spec: LabelSpec) -> TextTask:
    named = TASKS.get(o.task)
    columns = o.labels or (o.label,)
    return TextTask(o.text, columns, spec, named.group if named else "", named.metric if named else "")


def _choice_task(o: TaskOptions, first: int) -> ChoiceTask:
    return ChoiceTask(o.text, o.choices, o.label, first, TASKS[o.task].gold if o.task in TASKS else "")


def _span_task(o: TaskOptions, none: bool) -> SpanTask:
    question, context = o.text
    return SpanTask(question, context, o.label, none, o.doc_stride, o.max_answer_length, o.n_best, o.null_threshold)


def _first_number(table: Table, label: str) -> int:
    """1 where choices are numbered from 1: no row says 0."""
    numbers = [number_of(value) for value in table.column(label)]
    return int(all(number is not None and number > 0 for number in numbers))


def kind_of_model(directory: Path) -> str:
    """Returns the kind of task that a model directory was made for, by its config.json; of a peft adapter without one,
    by its adapter_config.json.

    Raises:
      InputError: no such file, or one that cannot be used.
    """
    path = directory / "config.json"
    if not path.is_file() and (directory / ADAPTER_CONFIG).is_file():
        return _ADAPTERS.get(str(read_adapter_config(directory).get("task_type")), CLASSIFICATION)
    DebertaConfig.from_hf(path)  # says in a line what a file is that is no config
    classes = storage.read_json(path).get("architectures")
    for name in classes if isinstance(classes, list) else ():
        for ending, kind in _ARCHITECTURES.items():
            if str(name).endswith(ending):
                return kind
    return CLASSIFICATION


def problem_of(config: DebertaConfig) -> str:
    """``problem_type``; where the config names none, one label is a number and several are classes.

    Raises:
      InputError: a regression with several outputs.
    """
    problem = config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)
    if problem == REGRESSION and config.num_labels != 1:
        raise InputError(
            f"config.json: problem_type {problem!r} with {config.num_labels} labels is not supported; supported are "
            f"{SINGLE_LABEL!r}, {MULTI_LABEL!r}, and {REGRESSION!r} with one"
        )
    return problem


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(value)
