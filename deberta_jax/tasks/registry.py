"""Lists the kinds of task. One ``TaskKind`` describes a kind to the whole package; no other list has to change.

To add a kind, write its ``Task`` and register a ``TaskKind`` under a name:

    deberta_jax.tasks.TASK_KINDS["ordinal-regression"] = TaskKind(head="sequence-classification", ...)

Fine-tuning, evaluation, prediction, pipelines and the command line read this table.
"""

from pathlib import Path

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.table import Table
from deberta_jax.models import HEADS
from deberta_jax.tasks.base import TaskKind
from deberta_jax.tasks.entity_recognition import TOKEN_CLASSIFICATION
from deberta_jax.tasks.multiple_choice import MULTIPLE_CHOICE
from deberta_jax.tasks.question_answering import QUESTION_ANSWERING
from deberta_jax.tasks.reranking import RERANKING
from deberta_jax.tasks.text_classification import CLASSIFICATION, MULTI_LABEL_KIND, REGRESSION_KIND
from deberta_jax.weights.adapters import CONFIG as ADAPTER_CONFIG
from deberta_jax.weights.adapters import read_adapter_config

DEFAULT_KIND, MULTI_LABEL_NAME = "text-classification", "multi-label"

# The guess for a table is the last kind in this order that recognizes it.
TASK_KINDS: dict[str, TaskKind] = {
    DEFAULT_KIND: CLASSIFICATION,
    "regression": REGRESSION_KIND,
    MULTI_LABEL_NAME: MULTI_LABEL_KIND,
    "reranking": RERANKING,
    "token-classification": TOKEN_CLASSIFICATION,
    "multiple-choice": MULTIPLE_CHOICE,
    "question-answering": QUESTION_ANSWERING,
}
"""Maps the name of a kind of task to its ``TaskKind``. Commands and pipelines know entries that a program adds."""


def guess_kind(table: Table) -> str:
    """Returns the name of a table's kind of task, guessed from its columns; text-classification if no other fits."""
    for name, kind in reversed(TASK_KINDS.items()):
        if kind.recognizes is not None and kind.recognizes(table):
            return name
    return DEFAULT_KIND


def kind_of_model(directory: Path) -> str:
    """Returns the name of the kind of task of a trained model.

    The class in config.json decides; for a peft adapter without one, the task type in adapter_config.json.

    Raises:
      InputError: the file is missing or cannot be used.
    """
    path = directory / "config.json"
    if not path.is_file() and (directory / ADAPTER_CONFIG).is_file():
        peft_task = read_adapter_config(directory).get("task_type")
        fits = (name for name, kind in TASK_KINDS.items() if HEADS[kind.head].peft_task == peft_task)
        return next(fits, DEFAULT_KIND)
    DebertaConfig.from_hf(path)  # raises InputError for a file that is not a config
    classes = storage.read_json(path).get("architectures")
    for class_name in classes if isinstance(classes, list) else ():
        for name, kind in TASK_KINDS.items():
            end = HEADS[kind.head].transformers
            if end and str(class_name).endswith(end):
                return name
    return DEFAULT_KIND
