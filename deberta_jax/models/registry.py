"""Lists the heads. One ``HeadSpec`` describes a head to the whole package; no other list has to change for a new one.

To add a head, write a model class and register it under a name:

    deberta_jax.models.HEADS["mean-pooling"] = HeadSpec(model=MeanPooling, parts=("mlp",), ...)

Loading, saving, inspection, verification, LoRA, peft's files, tasks and the command line read this table.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, did_you_mean, shown
from deberta_jax.models.base import Model
from deberta_jax.models.classes import (
    DebertaEncoder,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """Describes a head: its model class, what a checkpoint stores of it, and what its output holds.

    Attributes:
      model: the model class. Its parameters are the encoder's, under ``deberta``, and those of ``parts``.
      parts: the first components of the head's tensor names in a checkpoint, for all configs together.
      parts_of: returns the parts that the head has with a config; None: all of ``parts``.
      optional: parts that a file may lack.
      spellings: ``parts`` are alternative names of one part, and a file has one of them.
      transformers: the end of the class name that config.json gives, such as ``ForSequenceClassification``; empty
        where transformers has no such class.
      peft_task: ``task_type`` in a peft adapter's config; None where peft has none.
      outputs: the fields of the model's output that predictions are computed from.
      per_token: these fields have an axis of tokens, [B,T,...]; otherwise there is one value or row for each text.
      num_outputs: returns the number of rows of the classifier with a config.
      num_labels_of: the reverse: returns the number of labels of a classifier with so many rows.
      named_labels: users choose the labels and their number (``num_labels``, ``id2label``); needs ``classifier``.
      fixed_labels: the labels that the head always has, whatever a file says.
      classifier: the name in a checkpoint of the tensor whose rows are the labels; empty if there is none.
    """

    model: type[Model]
    parts: tuple[str, ...] = ()
    parts_of: Callable[[DebertaConfig], tuple[str, ...]] | None = None
    optional: tuple[str, ...] = ()
    spellings: bool = False
    transformers: str = ""
    peft_task: str | None = None
    outputs: tuple[str, ...] = ("logits",)
    per_token: bool = False
    num_outputs: Callable[[DebertaConfig], int] = lambda config: config.num_labels
    num_labels_of: Callable[[int], int] = lambda rows: rows
    named_labels: bool = False
    fixed_labels: tuple[str, ...] = ()
    classifier: str = ""

    def parts_in(self, config: DebertaConfig) -> tuple[str, ...]:
        """Returns the parts that the head has with a config."""
        return self.parts if self.parts_of is None else self.parts_of(config)

    def missing_parts(self, present: Collection[str]) -> list[str]:
        """Returns the parts that the head needs and that are not among those present."""
        if self.spellings:
            return [] if set(self.parts) & set(present) else [" or ".join(self.parts)]
        return [part for part in self.parts if part not in present and part not in self.optional]

    def read(self, output: Any) -> jax.Array:
        """Returns the array that predictions are computed from: [B,K], or [B,T,K] if ``per_token``.

        Several outputs are stacked on the last axis.
        """
        fields = [getattr(output, name) for name in self.outputs]
        return fields[0] if len(fields) == 1 else jnp.stack(fields, axis=-1)


HEADS: dict[str, HeadSpec] = {
    "encoder": HeadSpec(model=DebertaEncoder, transformers="Model", outputs=("last_hidden_state",), per_token=True),
    "masked-lm": HeadSpec(
        model=DebertaForMaskedLM,
        parts=("cls", "lm_predictions"),
        parts_of=lambda config: ("cls",) if config.legacy else ("lm_predictions",),
        spellings=True,
        transformers="ForMaskedLM",
        per_token=True,
    ),
    "sequence-classification": HeadSpec(
        model=DebertaForSequenceClassification,
        parts=("pooler", "classifier"),
        transformers="ForSequenceClassification",
        peft_task="SEQ_CLS",
        named_labels=True,
        classifier="classifier.weight",
    ),
    "token-classification": HeadSpec(
        model=DebertaForTokenClassification,
        parts=("proj", "classifier"),
        parts_of=lambda config: ("proj", "classifier") if config.classifier_proj else ("classifier",),
        optional=("proj",),
        transformers="ForTokenClassification",
        peft_task="TOKEN_CLS",
        per_token=True,
        named_labels=True,
        classifier="classifier.weight",
    ),
    "question-answering": HeadSpec(
        model=DebertaForQuestionAnswering,
        parts=("qa_outputs",),
        transformers="ForQuestionAnswering",
        peft_task="QUESTION_ANS",
        outputs=("start_logits", "end_logits"),
        per_token=True,
        fixed_labels=("LABEL_0", "LABEL_1"),
    ),
    "multiple-choice": HeadSpec(
        model=DebertaForMultipleChoice,
        parts=("pooler", "classifier"),
        transformers="ForMultipleChoice",
        peft_task="SEQ_CLS",
        num_outputs=lambda config: 1,
        classifier="classifier.weight",
    ),
    "replaced-token-detection": HeadSpec(
        model=DebertaForReplacedTokenDetection, parts=("mask_predictions",), per_token=True
    ),
}
"""Maps the name of a head to its ``HeadSpec``. Entries that a program adds are loaded, saved and trained as well."""


def head_spec(head: str) -> HeadSpec:
    """Returns the ``HeadSpec`` with this name.

    Raises:
      InputError: the head does not exist.
    """
    if head not in HEADS:
        raise InputError(
            f"head {shown(head)} does not exist; choose one of {', '.join(HEADS)}{did_you_mean(head, HEADS)}"
        )
    return HEADS[head]


def spec_of_model(model: Any) -> tuple[str, HeadSpec]:
    """Returns the name and the ``HeadSpec`` of a model's head.

    Raises:
      InputError: no entry of ``HEADS`` has the model's class.
    """
    for head, spec in HEADS.items():
        if type(model) is spec.model:
            return head, spec
    if not isinstance(model, Model):
        raise InputError(
            f"{type(model).__name__}: is no model of deberta_jax; give one, such as from_pretrained returns"
        )
    raise InputError(f"{type(model).__name__}: is no entry of deberta_jax.models.HEADS; register its HeadSpec there")


def all_parts() -> tuple[str, ...]:
    """Returns the parts of all heads, each once."""
    return tuple(dict.fromkeys(part for spec in HEADS.values() for part in spec.parts))
