"""Text in, answer out: ``deberta_jax.pipeline("text-classification", "dir or hub id")``."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import hub, storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.columns import CHOICES, CLASSIFICATION, KINDS, SPANS, WORDS
from deberta_jax.data.features import check_vocabulary, log_cut, make_features
from deberta_jax.data.labels import MULTI_LABEL, REGRESSION, LabelSpec
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.inference.fill_mask import FILL_MASK, load_mask_filler
from deberta_jax.inference.predict import Predictor, Progress
from deberta_jax.inference.tasks import Task, TaskOptions, problem_of, task_of_model
from deberta_jax.inference.tasks.text import probabilities, text_answer
from deberta_jax.models import Model, prepare_for_inference
from deberta_jax.sharding import make_mesh
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.weights import from_pretrained, tokenizer_directory
from deberta_jax.weights.choose import Wish
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import open_source

TASKS = (CLASSIFICATION, WORDS, SPANS, CHOICES, FILL_MASK)
Text = str | Mapping[str, str]

# Kinds that are settings of the first one.
_HEADS = dict.fromkeys(KINDS, "sequence-classification") | {kind: kind for kind in (WORDS, SPANS, CHOICES)}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, and what runs it over a data set."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    predictor: Predictor

    def answers_for(self, task: Task, table: Table, progress: Progress | None = None) -> list[dict[str, Any]]:
        """The task's answer to each row of a table."""
        features = task.features(table, self.tokenizer, self.predictor.max_length, labelled=False)
        check_vocabulary(features, self.model.config.vocab_size, table.name)
        log_cut(features, table.name, self.predictor.max_length)
        return task.answers(self.predictor.logits(self.params, features, progress), features, table)

    def metrics_for(self, task: Task, table: Table, progress: Progress | None = None) -> Mapping[str, float | None]:
        """The task's metrics on a labelled table."""
        features = task.features(table, self.tokenizer, self.predictor.max_length, labelled=True)
        check_vocabulary(features, self.model.config.vocab_size, table.name)
        log_cut(features, table.name, self.predictor.max_length)
        return task.metrics(self.predictor.logits(self.params, features, progress), features, table)


@dataclasses.dataclass(frozen=True)
class TextClassifier(Loaded):
    """A sequence classifier with its tokenizer; call it, or read the logits of many texts.

    ``pipe("text")`` or ``pipe({"text": ..., "text_pair": ...})`` gives ``{"label": ..., "score": ...}``, a list of
    those gives a list in the same order. The score is the label's probability; of a regression, the number itself. Of a
    model with several labels a text it is ``{"labels": [...], "probabilities": {...}}``.
    """

    def __call__(self, inputs: Any) -> Any:
        """Raises InputError for an input that is no text and no mapping of ``text`` and ``text_pair``."""
        single = not isinstance(inputs, Iterable) or isinstance(inputs, (str, Mapping))
        parts = [_parts(item) for item in ([inputs] if single else inputs)]
        if not parts:
            return []
        if len({pair is None for _, pair in parts}) > 1:
            raise InputError("some inputs have a text_pair and some have none; give one kind at a time")
        pairs = None if parts[0][1] is None else [pair for _, pair in parts if pair is not None]
        logits = self.logits([text for text, _ in parts], pairs)
        results = [self.answer(row) for row in logits]
        return results[0] if single else results

    def logits(
        self, texts: Sequence[str], text_pairs: Sequence[str] | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Float32 logits [n, C] in the order of the texts, each cut to the predictor's ``max_length`` tokens."""
        features = make_features(self.tokenizer, texts, text_pairs, max_length=self.predictor.max_length)
        check_vocabulary(features, self.model.config.vocab_size, "the input")
        log_cut(features, "the input", self.predictor.max_length)
        return self.predictor.logits(self.params, features, progress)

    def answer(self, logits: np.ndarray) -> dict[str, Any]:
        """Logits [C] of one text as label and score."""
        problem, names = problem_of(self.model.config), self.names
        if problem in (REGRESSION, MULTI_LABEL):
            return text_answer(logits, LabelSpec(problem, names))
        best = int(logits.argmax())
        return {"label": names[best], "score": float(probabilities(logits)[best])}

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the labels' names, each once."""
        return self.model.config.id2label


@dataclasses.dataclass(frozen=True)
class WordTagger(Loaded):
    """Tags the words of texts.

    ``pipe("Ada lives in London")`` gives ``{"tags": [...], "scores": [...], "offsets": [...], "spans": [...]}``, where
    offsets and spans are in characters of the text; a list of texts gives a list. Words that are split already are
    given as a list of lists of words, or, with ``is_split_into_words``, as a list of words; then spans are in words.
    """

    def __call__(self, inputs: Any, is_split_into_words: bool = False) -> Any:
        """Raises InputError for an input that is neither a text nor words, or for both kinds together."""
        items, single = _texts_or_words(inputs, is_split_into_words)
        if not items:
            return []
        column = "text" if isinstance(items[0], str) else "tokens"
        table = Table("the input", {column: items}, range(1, len(items) + 1))
        options = TaskOptions(task=WORDS, text=(column,))
        answers = self.answers_for(task_of_model(options, self.model.config, table), table)
        return answers[0] if single else answers


@dataclasses.dataclass(frozen=True)
class QuestionAnswerer(Loaded):
    """``pipe({"question": ..., "context": ...})`` gives ``{"answer", "start", "end", "score", "n_best"}``; a list of
    those gives a list. ``options`` says how long answers may be, how windows overlap, when there is no answer."""

    options: TaskOptions = dataclasses.field(default_factory=TaskOptions)

    def __call__(self, inputs: Any) -> Any:
        """Raises InputError for an input that is no mapping of ``question`` and ``context``."""
        single = isinstance(inputs, Mapping)
        items = [inputs] if single or not isinstance(inputs, Iterable) else list(inputs)
        for item in items:
            if not isinstance(item, Mapping) or set(item) != {"question", "context"}:
                raise InputError(f"cannot read the input {item!r}; give {{'question': ..., 'context': ...}}")
        if not items:
            return []
        columns = {name: [item[name] for item in items] for name in ("question", "context")}
        options = dataclasses.replace(self.options, task=SPANS, text=("question", "context"), label="answers")
        table = Table("the input", columns, range(1, len(items) + 1))
        answers = self.answers_for(task_of_model(options, self.model.config, table), table)
        return answers[0] if single else answers


@dataclasses.dataclass(frozen=True)
class ChoiceMaker(Loaded):
    """``pipe({"text": ..., "choices": [...]})`` gives ``{"choice": 0, "text": ..., "probabilities": [...]}``."""

    def __call__(self, inputs: Any) -> Any:
        """Raises InputError for an input that is no mapping of ``text`` and ``choices``."""
        single = isinstance(inputs, Mapping)
        items = [inputs] if single or not isinstance(inputs, Iterable) else list(inputs)
        for item in items:
            if not isinstance(item, Mapping) or set(item) != {"text", "choices"}:
                raise InputError(f"cannot read the input {item!r}; give {{'text': ..., 'choices': [...]}}")
        if not items:
            return []
        columns = {name: [item[name] for item in items] for name in ("text", "choices")}
        options = TaskOptions(task=CHOICES, text=("text",), choices=("choices",))
        table = Table("the input", columns, range(1, len(items) + 1))
        answers = self.answers_for(task_of_model(options, self.model.config, table), table)
        return answers[0] if single else answers


_CALLS: dict[str, type[Loaded]] = {
    CLASSIFICATION: TextClassifier,
    WORDS: WordTagger,
    SPANS: QuestionAnswerer,
    CHOICES: ChoiceMaker,
}


def pipeline(
    task: str,
    model: str | Path,
    *,
    dtype: Any = jnp.float32,
    max_length: int | None = None,
    batch_size: int = 32,
    attention: str = "auto",
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> Any:
    """A ready model for a task, on all devices.

    Args:
      task: ``text-classification``, ``token-classification``, ``question-answering``, ``multiple-choice`` or
        ``fill-mask``.
      model: a model directory or a hub id; it must hold a trained head of that kind.
      dtype: of the computation.
      max_length: longest input in tokens; by default what ``finetune`` trained the model with, else 512.
      batch_size: texts in a forward pass.
      ignore, base_model: as ``from_pretrained``.

    Returns:
      A TextClassifier, WordTagger, QuestionAnswerer, ChoiceMaker or MaskFiller.

    Raises:
      InputError: an unknown task, a directory that is no model, or one without such a head.
    """
    if task not in TASKS:
        raise InputError(f"no pipeline for {task!r}; there is {', '.join(map(repr, TASKS))}")
    if task == FILL_MASK:
        return load_mask_filler(
            model,
            dtype=dtype,
            max_length=max_length,
            batch_size=batch_size,
            attention=attention,
            ignore=ignore,
            base_model=base_model,
        )
    parts = load_model(
        task,
        model,
        lambda out: out.logits if task != SPANS else jnp.stack([out.start_logits, out.end_logits], -1),
        per_token=task in (WORDS, SPANS),
        dtype=dtype,
        max_length=max_length,
        batch_size=batch_size,
        attention=attention,
        ignore=ignore,
        base_model=base_model,
    )
    if task == CLASSIFICATION:
        problem_of(parts.model.config)
    return _CALLS[task](parts.model, parts.params, parts.tokenizer, parts.predictor)


def model_config(
    kind: str, model: str | Path, *, ignore: Sequence[str] = (), base_model: str | Path | None = None
) -> DebertaConfig:
    """Returns the config that a trained model of a kind loads with, without its weights; it has as many labels as the
    file's classifier. Raises InputError as ``pipeline``."""
    return plan_head(open_source(model, ignore=ignore, base_model=base_model), Wish(_HEADS[kind])).config


def load_model(
    kind: str,
    model: str | Path,
    read: Callable[[Any], jax.Array],
    *,
    per_token: bool,
    dtype: Any,
    max_length: int | None,
    batch_size: int,
    attention: str = "auto",
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> Loaded:
    """A trained model of a kind, on all devices. Raises InputError as ``pipeline``."""
    directory = hub.resolve(model)
    tokenizer = load_tokenizer(tokenizer_directory(directory, base_model=base_model))
    source = model if hub.split(str(model))[1] else directory
    network, params = from_pretrained(
        source, head=_HEADS[kind], dtype=dtype, attention=attention, ignore=ignore, base_model=base_model
    )
    mesh = make_mesh()
    network, params = prepare_for_inference(network, params)
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    limit = trained_length(directory) if max_length is None else max_length
    predictor = Predictor(
        network, tokenizer.pad_id, max_length=limit, batch_size=batch_size, mesh=mesh, read=read, per_token=per_token
    )
    return Loaded(network, params, tokenizer, predictor)


def trained_length(directory: Path) -> int:
    """The ``max_length`` of the run that made this model directory; 512 where none is recorded."""
    record = trained_experiment(directory)
    if record is None:
        return 512
    try:
        return int(record["max_length"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{directory / 'experiment.json'}: records no max_length; give one, or remove the file"
        ) from None


def trained_experiment(directory: Path) -> dict[str, Any] | None:
    """The experiment of the run that made this model directory; None where there is none, {} where it is another's."""
    record = directory / "experiment.json"
    if not record.is_file():
        return None
    try:
        found = storage.read_json(record).get("experiment")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _parts(item: Any) -> tuple[str, str | None]:
    if isinstance(item, str):
        return item, None
    if isinstance(item, Mapping) and isinstance(item.get("text"), str):
        pair = item.get("text_pair")
        if (pair is None or isinstance(pair, str)) and not set(item) - {"text", "text_pair"}:
            return item["text"], pair
    raise InputError(f"cannot read the input {item!r}; give a str, or {{'text': ..., 'text_pair': ...}}")


def _texts_or_words(inputs: Any, split: bool) -> tuple[list[Any], bool]:
    """Texts or lists of words, all of one kind, and whether the input was one of them."""
    if isinstance(inputs, str):
        if split:
            raise InputError(f"cannot read the input {inputs!r}; is_split_into_words takes a list of words")
        return [inputs], True
    if not isinstance(inputs, Iterable) or isinstance(inputs, (Mapping, bytes)):
        raise InputError(f"cannot read the input {inputs!r}; give a text, a list of texts, or a list of lists of words")
    items = list(inputs)
    single = split and bool(items) and all(isinstance(word, str) for word in items)
    items = [items] if single else [list(item) if isinstance(item, tuple) else item for item in items]
    texts = [isinstance(item, str) for item in items]
    if any(texts) and (split or not all(texts)):
        raise InputError("some inputs are texts and some are lists of words; give one kind at a time")
    for item in items:
        words = isinstance(item, list) and bool(item) and all(isinstance(word, str) for word in item)
        if not isinstance(item, str) and not words:
            raise InputError(f"cannot read the input {item!r}; give a text, or a list of words")
    return items, single
