"""Defines the pipeline ``question-answering``: spans of a context, as the last such pipeline of transformers (4)."""

import bisect
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, Unpack, overload

import numpy as np

from deberta_jax.data.features import Features, span_features
from deberta_jax.errors import InputError, shown
from deberta_jax.inference.answers import QuestionAnswer, QuestionInput
from deberta_jax.inference.calls import Items, Pipeline, blank, check_count
from deberta_jax.tasks.finite import rows_not_finite
from deberta_jax.text.words import words_of

_log = logging.getLogger(__name__)

_LONGEST_ROW, _OVERLAP, _LONGEST_ANSWER, _LONGEST_QUESTION = 384, 128, 15, 64


class QuestionOptions(TypedDict, total=False):
    """Holds the arguments of a call of ``QuestionAnswerer``, except ``top_k``, which decides the form of the answer."""

    doc_stride: int
    max_answer_len: int
    max_seq_len: int
    max_question_len: int
    handle_impossible_answer: bool
    align_to_words: bool
    batch_size: int


class QuestionOptionsOfPipeline(QuestionOptions, total=False):
    """Holds all arguments of a call of ``QuestionAnswerer``."""

    top_k: int


@dataclasses.dataclass(frozen=True, repr=False)
class QuestionAnswerer(Pipeline):
    """Finds answers to questions in contexts.

    Inputs are ``question=...`` and ``context=...``, or dicts with these keys. The answer is ``{"score", "start", "end",
    "answer"}``, with ``context[start:end] == answer``. Its score is the product of the probabilities of its first and
    its last token, summed over the places and windows where the answer has the same text but for case. A list with one
    question gives its answer; with ``top_k`` each question with several answers has a list of them, the best first.
    """

    task: ClassVar[str] = "question-answering"
    arguments: ClassVar[frozenset[str]] = frozenset(QuestionOptionsOfPipeline.__annotations__)

    @overload
    def __call__(self, inputs: QuestionInput, **options: Unpack[QuestionOptions]) -> QuestionAnswer: ...
    @overload
    def __call__(self, inputs: str, context: str, **options: Unpack[QuestionOptions]) -> QuestionAnswer: ...
    @overload
    def __call__(self, *, question: str, context: str, **options: Unpack[QuestionOptions]) -> QuestionAnswer: ...
    @overload
    def __call__(
        self, *, question: str, context: str, top_k: int, **options: Unpack[QuestionOptions]
    ) -> list[QuestionAnswer]: ...
    @overload
    def __call__(
        self, inputs: list[QuestionInput], **options: Unpack[QuestionOptionsOfPipeline]
    ) -> list[QuestionAnswer]: ...
    @overload
    def __call__(
        self, inputs: Iterable[QuestionInput], **options: Unpack[QuestionOptions]
    ) -> Iterator[QuestionAnswer]: ...
    @overload
    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **options: Any) -> Any: ...
    def __call__(self, inputs: Any = None, context: Any = None, *, question: Any = None, **options: Any) -> Any:
        """Returns the answer, the answers, or an iterator of answers.

        The types are those for questions with one answer.

        Args:
          inputs: a dict with the keys ``question`` and ``context``, a list, or an iterable of them.
          question, context: texts, or lists of as many; one context may be given for several questions.
          top_k: number of answers to each question; fewer if the context has fewer.
          max_answer_len: largest number of tokens of an answer; by default 15.
          handle_impossible_answer: whether "no answer", an empty text, is an answer.
          max_seq_len: largest number of tokens of a question with a part of its context; by default 384, or the
            pipeline's ``max_length`` if that is less.
          max_question_len: largest number of tokens of a question, whose end is cut; by default 64.
          doc_stride: number of tokens by which the windows of a long context overlap; by default 128, or half of
            ``max_seq_len`` if that is less.
          align_to_words: whether answers are extended to whole words.
          batch_size: number of windows in a forward pass.

        Raises:
          InputError: a question or context is missing, empty or no text, or a question leaves no room for its context,
            which the message names by its index; or an argument has a value that it cannot have; or the scores of an
            input are not finite and ``non_finite`` is ``refuse``.
        """
        if question is not None or context is not None:
            if (question is None) == (inputs is None):
                raise InputError("give question=... and context=..., each a text or a list of texts")
            inputs = _zipped(question if inputs is None else inputs, context)
        if inputs is None:
            raise InputError("give question=... and context=..., or a dict with these keys")
        answers = self._call(inputs, options)
        return answers[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else answers

    def _check(self, options: Mapping[str, Any]) -> None:
        for name in ("doc_stride", "max_answer_len", "max_seq_len", "max_question_len"):
            if options.get(name) is not None:
                check_count(name, options[name], 0 if name == "doc_stride" else 1)
        longest, overlap = self._row(options)
        if overlap > longest - 5:
            raise InputError(f"doc_stride={overlap}: leaves no room in rows of {longest} tokens; give less")

    def _row(self, options: Mapping[str, Any]) -> tuple[int, int]:
        """Returns the length of rows, and the overlap of windows."""
        longest = options.get("max_seq_len") or min(self.predictor.max_length, _LONGEST_ROW)
        overlap = options.get("doc_stride")
        return longest, min(longest // 2, _OVERLAP) if overlap is None else overlap

    def _cut(self, questions: Sequence[str], most: int) -> list[str]:
        """Returns questions without what follows their first ``most`` tokens. Logs how many are cut."""
        spans = self.tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        long = [i for i, offsets in enumerate(spans) if len(offsets) > most]
        if long:
            _log.warning("%d questions are longer than %d tokens (max_question_len) and are cut", len(long), most)
        ends = {i: int(spans[i][most - 1][1]) for i in long}
        return [question[: ends.get(i)] for i, question in enumerate(questions)]

    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        pairs = [_question_and_context(item, items.where(i)) for i, item in enumerate(items.values)]
        questions, contexts = [question for question, _ in pairs], [context for _, context in pairs]
        questions = self._cut(questions, options.get("max_question_len") or _LONGEST_QUESTION)
        longest, overlap = self._row(options)
        for i, ids in enumerate(self.tokenizer(questions, add_special_tokens=False).input_ids):
            if len(ids) > longest - overlap - 4:
                raise InputError(
                    f"{items.where(i)}: the question has {len(ids)} tokens, which leaves no room for the context in "
                    f"rows of {longest} with doc_stride {overlap}; give a larger max_seq_len, or a smaller "
                    "doc_stride or max_question_len"
                )
        features = self._checked(
            span_features(self.tokenizer, questions, contexts, None, max_length=longest, stride=overlap), longest
        )
        logits = self._logits(features, options)
        broken = self._check_finite(rows_not_finite(logits, features, len(pairs)), items)
        logits = np.where(np.isfinite(logits), logits, 0).astype(np.float64)
        assert features.row is not None
        answers: list[Any] = []
        for i, context in enumerate(contexts):
            windows = np.flatnonzero(features.row == i).tolist()
            answers.append(self._best(windows, features, logits, context, options))
        for i in broken:
            answers[i] = blank(answers[i])
        return answers

    def _best(
        self, windows: Sequence[int], features: Features, logits: np.ndarray, context: str, options: Mapping[str, Any]
    ) -> Any:
        """Returns the answer to a question, or the answers if there are several."""
        assert features.offsets is not None
        count, align = options.get("top_k") or 1, options.get("align_to_words", True)
        words = words_of(self.tokenizer, context) if align else []
        found: dict[str, dict[str, Any]] = {}
        nothing = 1.0
        for window in windows:
            part = slice(features.starts[window], features.starts[window + 1])
            first, last = _probabilities(logits[part], features.types[part])
            nothing = min(nothing, float(first[0] * last[0]))
            offsets = features.offsets[part]
            usable = offsets[:, 0] < offsets[:, 1]
            # Extending answers to words makes some of them equal.
            spans = best_spans(
                np.where(usable, first, 0),
                np.where(usable, last, 0),
                2 * count + 10 if align else count,
                options.get("max_answer_len") or _LONGEST_ANSWER,
            )
            for begin, end, score in spans:
                start, stop = int(offsets[begin, 0]), int(offsets[end, 1])
                if align:
                    start, stop = _whole_words(words, start, stop)
                text = context[start:stop]
                known = found.setdefault(text.lower(), {"score": 0.0, "start": start, "end": stop, "answer": text})
                known["score"] += score
        answers = list(found.values())
        if options.get("handle_impossible_answer") or not answers:
            answers.append({"score": nothing, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda answer: -answer["score"])[:count]
        return answers[0] if len(answers) == 1 else answers


def _zipped(question: Any, context: Any) -> Any:
    """Returns questions and their contexts as one dict or a list of dicts."""
    if isinstance(question, list):
        contexts = context if isinstance(context, list) else [context] * len(question)
        if len(contexts) != len(question):
            raise InputError(f"{len(question)} questions but {len(contexts)} contexts; give one for each, or one text")
        return [{"question": q, "context": c} for q, c in zip(question, contexts, strict=True)]
    return {"question": question, "context": context}


def _question_and_context(item: Any, where: str) -> tuple[str, str]:
    """Returns the texts of an input. Raises InputError, which names the input, if it has another form."""
    if not isinstance(item, Mapping) or set(item) != {"question", "context"}:
        raise InputError(f"{where}: cannot read {shown(item)}; give {{'question': ..., 'context': ...}}")
    for name in ("question", "context"):
        text = item[name]
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{where}: {name} is {shown(text)}; give a text that is not empty")
    return item["question"], item["context"]


def _probabilities(logits: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of each token of a window to be first and last, among its context and [CLS].

    Args:
      logits: float64 [T, 2].
      types: the token types [T]: 1 for the context and the [SEP] after it.
    """
    possible = types == 1
    possible[0], possible[-1] = True, False
    powers = np.where(possible[:, None], np.exp(logits - logits[possible].max(axis=0)), 0)
    shares = powers / powers.sum(axis=0)
    return shares[:, 0], shares[:, 1]


def best_spans(first: np.ndarray, last: np.ndarray, count: int, longest: int) -> list[tuple[int, int, float]]:
    """Returns the spans with the largest product of probabilities: first token, last token, product.

    Args:
      first, last: the probability of each token to be first and last [T]; 0 for tokens that cannot be.
      count: largest number of spans.
      longest: largest number of tokens of a span.
    """
    starts = np.flatnonzero(first > 0)
    ends = starts[:, None] + np.arange(longest)
    inside = ends < len(last)
    ends = np.where(inside, ends, 0)
    product = np.where(inside, first[starts][:, None] * last[ends], 0)
    order = np.argsort(-product, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order, product.shape)
    return [
        (int(starts[i]), int(ends[i, j]), float(product[i, j]))
        for i, j in zip(rows, columns, strict=True)
        if product[i, j] > 0
    ]


def _whole_words(words: Sequence[tuple[int, int]], start: int, end: int) -> tuple[int, int]:
    """Extends a span of characters to the words in which it begins and ends."""
    first = bisect.bisect_right(words, start, key=lambda word: word[0]) - 1
    last = bisect.bisect_right(words, end - 1, key=lambda word: word[0]) - 1
    if first >= 0 and start < words[first][1]:
        start = words[first][0]
    if last >= 0 and end - 1 < words[last][1]:
        end = words[last][1]
    return start, end
