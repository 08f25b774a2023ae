"""Reads the bodies of requests: JSON, the fields of each endpoint, and how much a request may ask for."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError, did_you_mean, shown
from deberta_jax.inference.aggregation import STRATEGIES
from deberta_jax.inference.zero_shot import TEMPLATE
from deberta_jax.serving.errors import ServingError, invalid, too_large, unreadable

REQUIRED = object()
MOST_CHOICES = 100
"""Largest ``top_k``, and largest number of targets, of fill-mask."""


@dataclasses.dataclass(frozen=True)
class TextLimits:
    """Holds the largest numbers of texts of a request and of characters of a text."""

    texts: int
    characters: int


Reader = Callable[[Any, str, TextLimits], Any]


@dataclasses.dataclass(frozen=True)
class Field:
    """Describes a field of a request.

    Attributes:
      read: returns the checked value, given the JSON value, the field's name, and the limits.
      schema: the JSON schema, for OpenAPI.
      note: what it means.
      default: the value of a field that is not given.
    """

    read: Reader
    schema: Mapping[str, Any]
    note: str
    default: Any = REQUIRED


def read_object(body: bytes) -> dict[str, Any]:
    """Returns the JSON object of a body.

    Raises:
      ServingError: it is not UTF-8, not JSON, nested too deeply, has a number that is NaN or infinite, or is no object.
    """
    try:
        value = storage.parse_json(body.decode("utf-8"), "the body")
    except UnicodeDecodeError as error:
        raise unreadable(f"the body is not UTF-8 (byte {error.start})") from None
    except InputError as error:
        raise unreadable(str(error)) from None
    if not isinstance(value, dict):
        raise invalid(f"the body is {shown(value)}; send a JSON object")
    return value


def read_fields(given: Mapping[str, Any], fields: Mapping[str, Field], limits: TextLimits) -> dict[str, Any]:
    """Returns the values of all fields of a request, checked.

    Raises:
      ServingError: a field is missing, unknown, or of a wrong type or value, or there is too much text.
    """
    for name in given:
        if name not in fields:
            raise invalid(f"{shown(name)}: no such field; there are {', '.join(fields)}{did_you_mean(name, fields)}")
    values = {}
    for name, field in fields.items():
        if name in given:
            values[name] = field.read(given[name], name, limits)
        elif field.default is REQUIRED:
            raise invalid(f"{name!r} is missing")
        else:
            values[name] = field.default
    return values


def read_text(value: Any, where: str, limits: TextLimits) -> str:
    """Returns a text. Raises ServingError if it is none, is too long, or has half of a surrogate pair."""
    if not isinstance(value, str):
        raise invalid(f"{where}: is {shown(value)}; give a text")
    if len(value) > limits.characters:
        raise too_large(f"{where}: has {len(value)} characters; the most is {limits.characters}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise invalid(f"{where}: is no valid Unicode (character {error.start})") from None
    return value


def read_full_text(value: Any, where: str, limits: TextLimits) -> str:
    """Returns a text that is not empty; raises as ``read_text``."""
    if not read_text(value, where, limits).strip():
        raise invalid(f"{where}: is empty")
    return value


def _read_list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, list):
        raise invalid(f"{where}: is {shown(value)}; give a list")
    if not value:
        raise ServingError(400, "Empty", f"{where}: is empty")
    if len(value) > most:
        raise too_large(f"{where}: has {len(value)} items; the most is {most}")
    return value


def _each(read: Reader) -> Reader:
    def read_all(value: Any, where: str, limits: TextLimits) -> list[Any]:
        items = _read_list(value, where, limits.texts)
        return [read(item, f"{where}[{i}]", limits) for i, item in enumerate(items)]

    return read_all


read_texts = _each(read_text)


def read_text_or_texts(value: Any, where: str, limits: TextLimits) -> str | list[str]:
    """Returns a text or a list of texts; raises as ``read_text``."""
    return read_texts(value, where, limits) if isinstance(value, list) else read_text(value, where, limits)


def read_predict_inputs(value: Any, where: str, limits: TextLimits) -> Any:
    """Returns the inputs of ``/predict``: a text, a pair as a tuple, or a list of these."""
    if isinstance(value, str):
        return read_text(value, where, limits)
    items = _read_list(value, where, limits.texts)
    if isinstance(items[0], str):
        return _text_or_pair(items, where, limits)
    return [_text_or_pair(item, f"{where}[{i}]", limits) for i, item in enumerate(items)]


def _text_or_pair(value: Any, where: str, limits: TextLimits) -> str | tuple[str, str]:
    if not isinstance(value, list) or len(value) not in (1, 2):
        raise invalid(f"{where}: is {shown(value)}; give [text] or [text, text]; a single input is a text or a pair")
    texts = [read_text(text, f"{where}[{i}]", limits) for i, text in enumerate(value)]
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _question(value: Any, where: str, limits: TextLimits) -> dict[str, str]:
    if not isinstance(value, dict) or value.keys() != {"question", "context"}:
        raise invalid(f"{where}: is {shown(value)}; give {{'question': ..., 'context': ...}}")
    return {name: read_full_text(value[name], f"{where}.{name}", limits) for name in ("question", "context")}


def read_questions(value: Any, where: str, limits: TextLimits) -> Any:
    """Returns a question with its context, or a list of them."""
    return _each(_question)(value, where, limits) if isinstance(value, list) else _question(value, where, limits)


def read_bool(value: Any, where: str, limits: TextLimits) -> bool:
    """Returns a boolean. Raises ServingError if it is none."""
    if not isinstance(value, bool):
        raise invalid(f"{where}: is {shown(value)}; give true or false")
    return value


def _whole(least: int, most: int) -> Reader:
    def read(value: Any, where: str, limits: TextLimits) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise invalid(f"{where}: is {shown(value)}; give a whole number from {least} to {most}")
        return value

    return read


def _choice(*choices: str) -> Reader:
    def read(value: Any, where: str, limits: TextLimits) -> str:
        if value not in choices:
            raise invalid(f"{where}: is {shown(value)}; give one of {', '.join(choices)}")
        return value

    return read


def _or_none(read: Reader) -> Reader:
    return lambda value, where, limits: None if value is None else read(value, where, limits)


def _labels(value: Any, where: str, limits: TextLimits) -> list[str]:
    if isinstance(value, str):
        value = [label.strip() for label in read_text(value, where, limits).split(",") if label.strip()]
    return [read_full_text(label, f"{where}[{i}]", limits) for i, label in enumerate(_read_list(value, where, 100))]


def _targets(value: Any, where: str, limits: TextLimits) -> list[str]:
    names = _read_list([value] if isinstance(value, str) else value, where, MOST_CHOICES)
    return [read_full_text(name, f"{where}[{i}]", limits) for i, name in enumerate(names)]


TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
TEXT_OR_TEXTS = {"oneOf": [TEXT, TEXTS]}
_PAIR = {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2}
_PREDICT = {
    "oneOf": [TEXT, _PAIR, {"type": "array", "items": {"type": "array", "items": TEXT, "minItems": 1, "maxItems": 2}}]
}
_QUESTION = {
    "type": "object",
    "properties": {"question": TEXT, "context": TEXT},
    "required": ["question", "context"],
    "additionalProperties": False,
}
_BOOL = {"type": "boolean"}


def _flag(note: str, default: bool = False) -> Field:
    return Field(read_bool, _BOOL | {"default": default}, note, default)


def _number(least: int, most: int, note: str, default: int | None) -> Field:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Field(_or_none(_whole(least, most)), schema, note, default)


_TRUNCATE = _flag("Whether texts that are too long are cut; otherwise they are refused with status 413.")

FIELDS: dict[str, dict[str, Field]] = {
    "predict": {
        "inputs": Field(
            read_predict_inputs, _PREDICT, "A text, a pair [text, text], or a list of [text] and [text, text]."
        ),
        "raw_scores": _flag("Whether to return logits instead of probabilities."),
        "truncate": _TRUNCATE,
    },
    "rerank": {
        "query": Field(read_text, TEXT, "The query."),
        "texts": Field(read_texts, TEXTS, "The documents to rank."),
        "raw_scores": _flag("Whether to return logits instead of scores."),
        "return_text": _flag("Whether to return the documents too."),
        "truncate": _TRUNCATE,
    },
    "embed": {
        "inputs": Field(read_text_or_texts, TEXT_OR_TEXTS, "A text or a list of texts."),
        "normalize": _flag("Whether embeddings are divided by their length.", True),
        "truncate": _TRUNCATE,
    },
    "tokenize": {
        "inputs": Field(read_text_or_texts, TEXT_OR_TEXTS, "A text or a list of texts."),
        "add_special_tokens": _flag("Whether to add [CLS] and [SEP].", True),
    },
    "zero-shot": {
        "inputs": Field(read_text_or_texts, TEXT_OR_TEXTS, "A text or a list of texts."),
        "candidate_labels": Field(_labels, TEXT_OR_TEXTS, "The labels, as a list or as a text with commas."),
        "hypothesis_template": Field(read_full_text, TEXT, "A sentence with {} in the place of the label.", TEMPLATE),
        "multi_label": _flag("Whether several labels may hold."),
        "truncate": _TRUNCATE,
    },
    "ner": {
        "inputs": Field(read_text_or_texts, TEXT_OR_TEXTS, "A text or a list of texts."),
        "aggregation_strategy": Field(
            _choice(*STRATEGIES),
            {"type": "string", "enum": list(STRATEGIES)},
            "How tokens are joined to entities; none: they are not.",
            "simple",
        ),
        "ignore_labels": Field(_or_none(_labels), TEXTS, "Labels that are left out; by default O.", None),
        "stride": _number(
            0, 4096, "Tokens by which the windows of a long text overlap; without it, it is refused.", None
        ),
        "truncate": _TRUNCATE,
    },
    "qa": {
        "inputs": Field(
            read_questions,
            {"oneOf": [_QUESTION, {"type": "array", "items": _QUESTION, "minItems": 1}]},
            "A question with its context, or a list of them.",
        ),
        "top_k": _number(1, 20, "Number of answers to each question.", None),
        "max_answer_len": _number(1, 512, "Most tokens of an answer.", 15),
        "doc_stride": _number(0, 4096, "Tokens by which the windows of a long context overlap.", None),
        "handle_impossible_answer": _flag("Whether an empty text, no answer, is an answer."),
    },
    "fill-mask": {
        "inputs": Field(read_text_or_texts, TEXT_OR_TEXTS, "A text with [MASK], or a list of them."),
        "top_k": _number(1, MOST_CHOICES, "Number of tokens for each [MASK].", 5),
        "targets": Field(_or_none(_targets), TEXT_OR_TEXTS, "Tokens to choose from.", None),
        "truncate": _TRUNCATE,
    },
}
"""Maps each endpoint that takes texts to the fields of its requests."""
