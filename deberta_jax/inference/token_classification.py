"""Defines the pipeline ``token-classification``: the labels of tokens, or named entities, of raw texts."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypedDict, Unpack, overload

import numpy as np

from deberta_jax.data.features import EXAMPLE, TOKEN, Features
from deberta_jax.errors import InputError, check_choice, shown
from deberta_jax.inference.aggregation import STRATEGIES, Labelled, aggregate, merge_windows, without
from deberta_jax.inference.answers import EntityAnswer, TokenAnswer
from deberta_jax.inference.calls import Items, Pipeline, blank, check_count, lowered, read_text
from deberta_jax.tasks.finite import rows_not_finite
from deberta_jax.tasks.text_classification import probabilities
from deberta_jax.text.words import spans_with_blanks

Grouping = Literal["simple", "first", "average", "max"]


class TokenOptions(TypedDict, total=False):
    """Holds the arguments of a call of ``TokenClassifier``, except ``aggregation_strategy``, which decides the form."""

    ignore_labels: Sequence[str]
    stride: int | None
    is_split_into_words: bool
    delimiter: str | None
    batch_size: int


class TokenOptionsOfPipeline(TokenOptions, total=False):
    """Holds all arguments of a call of ``TokenClassifier``."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] | None


@dataclasses.dataclass(frozen=True)
class Sentence:
    """Holds an input as text.

    Attributes:
      text: the text; of words, these with the delimiter between them.
      words: the words of an input that is split into words, else None.
      starts: the first character of each word.
    """

    text: str
    words: list[str] | None = None
    starts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, repr=False)
class TokenClassifier(Pipeline):
    """Labels the tokens of raw texts, or groups them to named entities.

    As in transformers, a text gives a list of ``{"entity", "score", "index", "word", "start", "end"}``, one for each
    token, or with an ``aggregation_strategy`` of ``{"entity_group", "score", "word", "start", "end"}``. As there,
    ``start`` includes the blank before a word. ``word`` is the text of the tokens, also where transformers leaves out
    the blanks between words (v2 and v3 with ``first``, ``average`` and ``max``).
    """

    task: ClassVar[str] = "token-classification"
    arguments: ClassVar[frozenset[str]] = frozenset(TokenOptionsOfPipeline.__annotations__)

    @overload
    def __call__(
        self, inputs: str, *, aggregation_strategy: Grouping, **options: Unpack[TokenOptions]
    ) -> list[EntityAnswer]: ...
    @overload
    def __call__(
        self, inputs: list[Any], *, aggregation_strategy: Grouping, **options: Unpack[TokenOptions]
    ) -> list[list[EntityAnswer]]: ...
    @overload
    def __call__(
        self, inputs: Iterable[Any], *, aggregation_strategy: Grouping, **options: Unpack[TokenOptions]
    ) -> Iterator[list[EntityAnswer]]: ...
    @overload
    def __call__(self, inputs: str, **options: Unpack[TokenOptionsOfPipeline]) -> list[TokenAnswer]: ...
    @overload
    def __call__(self, inputs: list[Any], **options: Unpack[TokenOptionsOfPipeline]) -> list[list[TokenAnswer]]: ...
    @overload
    def __call__(
        self, inputs: Iterable[Any], **options: Unpack[TokenOptionsOfPipeline]
    ) -> Iterator[list[TokenAnswer]]: ...
    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Returns the answer, the answers, or an iterator of answers.

        A list of words with ``is_split_into_words`` gives a list with one answer, as in transformers.

        Args:
          inputs: a text, a list of texts, or an iterable of them; or lists of words.
          aggregation_strategy: ``none``; ``simple`` groups neighbouring tokens with one label (``B-`` begins another
            group); ``first``, ``average`` and ``max`` first give all tokens of a word the label of its first token, of
            the mean of their probabilities, or of the token with the largest probability.
          ignore_labels: labels that are left out; by default ``O``.
          stride: reads texts longer than the pipeline's ``max_length`` in windows that overlap by this number of
            tokens. Without it they are cut, with a warning.
          is_split_into_words: inputs are lists of words; characters are then those of the words with ``delimiter``, by
            default a space, between them.
          batch_size: number of texts in a forward pass.

        Raises:
          InputError: an input is not a text, or not a list of words, which the message names by its index; or an
            argument has a value that it cannot have; or the scores of an input are not finite and ``non_finite`` is
            ``refuse``.
        """
        split = options.get("is_split_into_words", self.settings.get("is_split_into_words"))
        if split and isinstance(inputs, (list, tuple)) and inputs and all(isinstance(word, str) for word in inputs):
            inputs = [list(inputs)]
        return self._call(inputs, options)

    def _check(self, options: Mapping[str, Any]) -> None:
        strategy, stride = options.get("aggregation_strategy"), options.get("stride")
        if strategy is not None:
            strategy = lowered(strategy)
            check_choice("aggregation_strategy", strategy, STRATEGIES)
        if stride is not None:
            check_count("stride", stride, 0)
            if stride > self.predictor.max_length - 3:
                raise InputError(f"stride={stride}: must be below {self.predictor.max_length - 2}, max_length - 2")
            if strategy == "none":
                raise InputError("stride: needs an aggregation_strategy other than 'none'")
        ignored = options.get("ignore_labels", ())
        if not isinstance(ignored, (list, tuple, set)) or not all(isinstance(name, str) for name in ignored):
            raise InputError(f"ignore_labels={shown(ignored)}: give a list of labels")

    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        delimiter = " " if options.get("delimiter") is None else options["delimiter"]
        split = bool(options.get("is_split_into_words"))
        sentences = [_sentence(item, items.where(i), split, delimiter) for i, item in enumerate(items.values)]
        features, spans = self._encoded(sentences, options.get("stride"))
        logits = self._logits(features, options)
        broken = self._check_finite(rows_not_finite(logits, features, len(sentences)), items)
        scores = probabilities(np.where(np.isfinite(logits), logits, 0))
        assert features.row is not None
        windows: list[list[list[dict[str, Any]]]] = [[] for _ in sentences]
        for window, row in enumerate(features.row.tolist()):
            tokens = self._tokens(sentences[row], features, window, spans, scores)
            windows[row].append(self._entities(tokens, options))
        answers: list[Any] = [merge_windows(found) for found in windows]
        for i in broken:
            answers[i] = blank(answers[i])
        return answers

    def _entities(self, tokens: Sequence[Labelled], options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Returns the answers to one window."""
        strategy = (options.get("aggregation_strategy") or "none").lower()
        found = aggregate(tokens, strategy, self.model.config.id2label, self.tokenizer)
        return without(found, options.get("ignore_labels", ("O",)))

    def _encoded(self, sentences: Sequence[Sentence], stride: int | None) -> tuple[Features, np.ndarray]:
        """Returns the tokens of sentences or their windows, and for each token its characters and its word [N, 3].

        The characters are those in the sentence, or in the word if there are words; the word is -1 for special tokens.
        """
        limit = self.predictor.max_length
        split = bool(sentences) and sentences[0].words is not None
        texts: Any = [sentence.words if split else sentence.text for sentence in sentences]
        encoded = self.tokenizer(
            texts,
            max_length=limit,
            truncation="only_first",
            stride=0 if stride is None else stride,
            is_split_into_words=split,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        row = np.asarray(encoded.overflow_to_sample_mapping, np.int32)
        cut = int((np.bincount(row, minlength=len(sentences)) > 1).sum())
        kept = np.arange(len(row)) if stride is not None else np.flatnonzero(np.diff(row, prepend=-1))
        lengths = np.array([len(encoded.input_ids[i]) for i in kept], np.int64)
        joined = lambda values: np.concatenate([np.asarray(values[i]) for i in kept])
        special = joined(encoded.special_tokens_mask)
        words = joined(encoded.word_ids) if split else special - special
        spans = np.column_stack([joined(encoded.offset_mapping), np.where(special, -1, words)])
        ids = joined(encoded.input_ids).astype(np.int32)
        features = Features(
            ids=ids,
            types=np.zeros(len(ids), np.int8),
            starts=np.concatenate([[0], np.cumsum(lengths)]),
            level=EXAMPLE if stride is None else TOKEN,
            row=row[kept],
            cut=cut,
        )
        return self._checked(features, limit), spans

    def _tokens(
        self, sentence: Sentence, features: Features, window: int, spans: np.ndarray, scores: np.ndarray
    ) -> list[Labelled]:
        """Returns the tokens of a window without special tokens."""
        part = range(features.starts[window], features.starts[window + 1])
        out = []
        for i in part:
            start, end, word = spans[i].tolist()
            if word < 0:
                continue
            index = int(features.ids[i])
            text = sentence.text if sentence.words is None else sentence.words[word]
            ((start, end),) = spans_with_blanks(self.tokenizer, text, [index], [(start, end)])
            if sentence.words is not None:
                start, end = start + sentence.starts[word], end + sentence.starts[word]
            own = sentence.text[start:end]
            unknown = index == self.tokenizer.unk_id
            # As in transformers, a token continues a word if there is no space at its beginning or before it.
            within = start > 0 and " " not in sentence.text[start - 1 : start + 1] and not unknown
            piece = own if unknown else self.tokenizer.id_to_token(index)
            out.append(Labelled(index, piece, own, scores[i], start, end, i - part.start, within))
        return out


def _sentence(item: Any, where: str, split: bool, delimiter: str) -> Sentence:
    """Returns an input as a sentence. Raises InputError, which names the input, if it has another form."""
    if not split:
        if isinstance(item, (list, tuple)):
            raise InputError(f"{where}: is a list; give a text, or lists of words with is_split_into_words=True")
        return Sentence(read_text(item, where))
    if not isinstance(item, (list, tuple)) or not item or not all(isinstance(word, str) for word in item):
        raise InputError(f"{where}: cannot read {shown(item)}; with is_split_into_words give lists of words")
    words = list(item)
    starts = np.cumsum([0, *(len(word) + len(delimiter) for word in words[:-1])]).tolist()
    return Sentence(delimiter.join(words), words, tuple(starts))
