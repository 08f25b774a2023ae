"""Reads the arguments of a tokenizer's call, in the forms that transformers' tokenizers take too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deberta_jax.errors import InputError, did_you_mean, shown
from deberta_jax.text.encoding import PADDINGS, TRUNCATIONS

# The values of transformers that mean one of ours.
_SYNONYMS: dict[str, dict[Any, str | bool]] = {
    "truncation": {True: "longest_first", "do_not_truncate": False},
    "padding": {True: "longest", "do_not_pad": False},
}


def strategy(name: str, value: Any) -> str | bool:
    """Returns the value of ``truncation`` or ``padding``, of which transformers has other names too.

    Raises:
        InputError: the value is unknown.
    """
    known = {"truncation": TRUNCATIONS, "padding": PADDINGS}[name]
    if isinstance(value, (str, bool)):
        value = _SYNONYMS[name].get(value, value)
        if value in known:
            return value
    names = [choice for choice in known if isinstance(choice, str)]
    raise InputError(
        f"{name}={shown(value)}: expected True, False or one of {', '.join(map(repr, names))}"
        f"{did_you_mean(value, names)}"
    )


def check_tensors(kind: Any) -> None:
    """Raises InputError unless ``return_tensors`` asks for NumPy's arrays, which are all that tokenizers return."""
    if kind in (None, "np"):
        return
    advice = {
        "pt": "; torch.from_numpy makes tensors of PyTorch from them",
        "jax": "; models take them as they are, and jax.numpy.asarray makes arrays of JAX from them",
    }
    raise InputError(f"return_tensors={shown(kind)}: encodings hold arrays of NumPy, 'np'{advice.get(kind, '')}")


def split_pairs(texts: Any, text_pairs: Any) -> tuple[Any, Any]:
    """Splits a list of pairs, ``[(text, pair), ...]``, into texts and text pairs. Other inputs are returned unchanged.

    Raises:
        InputError: some elements of a list are pairs, or a pair does not consist of two texts; or ``text_pairs`` is
            given too.
    """
    if not isinstance(texts, (list, tuple)) or not any(isinstance(item, (list, tuple)) for item in texts):
        return texts, text_pairs
    for i, item in enumerate(texts):
        if not isinstance(item, (list, tuple)) or len(item) != 2 or not all(isinstance(part, str) for part in item):
            raise InputError(
                f"texts[{i}] is {shown(item)}, and others are pairs of two str; give pairs alone, or texts alone, or "
                "pass is_split_into_words=True for lists of words"
            )
    if text_pairs is not None:
        raise InputError("texts holds pairs already; leave text_pairs out")
    return [first for first, _ in texts], [second for _, second in texts]


def room_for(max_length: int, special: int) -> int:
    """Returns how many tokens `max_length` leaves beside special tokens. Raises InputError if it is too small."""
    if max_length < special:
        raise InputError(f"max_length={max_length} does not hold the {special} special tokens; raise it")
    return max_length - special


def as_list(texts: Any, name: str) -> list:
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise InputError(f"{name} is {type(texts).__name__}; give a str or a list of str")
    return list(texts)


def as_words(texts: Any, name: str) -> list[list[str]]:
    if isinstance(texts, str):
        raise InputError(f"{name} is one str; is_split_into_words takes a list of words, or a list of such lists")
    batch = as_list(texts, name)
    if batch and isinstance(batch[0], str):
        batch = [batch]
    batch = [as_list(words, f"{name}[{i}]") for i, words in enumerate(batch)]
    for i, words in enumerate(batch):
        for j, word in enumerate(words):
            if not isinstance(word, str):
                raise InputError(f"{name}[{i}][{j}] is {type(word).__name__}, not str; convert it or leave it out")
    return batch


def check_options(max_length: Any, padding: Any, buckets: Any, multiple: Any, stride: Any) -> None:
    if padding == "max_length" and max_length is None:
        raise InputError("padding='max_length' needs max_length")
    if (padding == "buckets") != (buckets is not None):
        raise InputError("padding='buckets' and buckets=[...] go together")
    if buckets is not None and (len(buckets) == 0 or list(buckets) != sorted(buckets)):
        raise InputError(f"buckets={buckets!r}; give lengths in ascending order")
    if multiple is not None and (multiple <= 0 or padding is False):
        raise InputError(f"pad_to_multiple_of={multiple} must be positive and needs a padding")
    if stride is not None and stride < 0:
        raise InputError(f"stride={stride}; it must not be negative")
