"""Defines the pipelines of kinds of task that have no other: multiple choice, and kinds that a plug-in adds."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar, overload

import numpy as np

from deberta_jax.data.features import Features, LongTexts
from deberta_jax.data.table import Table
from deberta_jax.inference.calls import Items, Pipeline, blank
from deberta_jax.tasks import TASK_KINDS, Task, TaskOptions, task_of_model
from deberta_jax.tasks.finite import rows_not_finite

Input = TypeVar("Input")
Answer = TypeVar("Answer")


@dataclasses.dataclass(frozen=True, repr=False)
class TaskPipeline(Pipeline, Generic[Input, Answer]):
    """Answers inputs of a kind of task with what ``predict`` writes for a row.

    For ``multiple-choice`` an input is ``{"text": ..., "choices": [...]}``, and the answer ``{"choice", "text",
    "probabilities"}``. The one argument of a call is ``batch_size``.

    Attributes:
      kind: the name of the kind of task.
    """

    task: ClassVar[str] = "this pipeline"
    arguments: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    _: dataclasses.KW_ONLY
    kind: str

    @overload
    def __call__(self, inputs: list[Input], *, batch_size: int = ...) -> list[Answer]: ...
    @overload
    def __call__(self, inputs: Input, *, batch_size: int = ...) -> Answer: ...
    @overload
    def __call__(self, inputs: Iterable[Input], *, batch_size: int = ...) -> Iterator[Answer]: ...
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Returns the answer, the answers, or an iterator of answers.

        Raises:
          InputError: an input cannot be read, which the message names by its index; or the scores of one are not
            finite and ``non_finite`` is ``refuse``.
        """
        return self._call(inputs, options)

    def logits(self, inputs: list[Input], *, batch_size: int | None = None) -> np.ndarray:
        """Returns the logits that the answers to a list are computed from: float32 [n, K], or of tokens [N, K]."""
        given = {} if batch_size is None else {"batch_size": batch_size}
        return self._logits(self._parsed(Items(inputs))[1], self._options(given))

    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        task, features, table = self._parsed(items)
        logits = self._logits(features, options)
        broken = self._check_finite(rows_not_finite(logits, features, len(table)), items)
        finite = np.where(np.isfinite(logits), logits, 0).astype(logits.dtype)
        answers: list[Any] = task.pipeline_answers(finite, features, table)
        for i in broken:
            answers[i] = blank(answers[i])
        return answers

    def _parsed(self, items: Items) -> tuple[Task, Features, Table]:
        """Returns the task, and the inputs as tokens and as a table."""
        read = TASK_KINDS[self.kind].pipeline_inputs
        assert read is not None
        table, columns = read(items.values, items.where)
        options = TaskOptions(task=self.kind, **dataclasses.asdict(columns))
        task = task_of_model(options, self.model.config, table)
        features = self.features_of(task, table, labelled=False)
        self.log_long(table.name, LongTexts(features))
        return task, features, table
