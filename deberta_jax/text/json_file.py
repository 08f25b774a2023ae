"""Checks tokenizer.json before the `tokenizers` library gets it: some of what it does not expect makes it panic."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from deberta_jax.errors import InputError, brief, shown
from deberta_jax.text.charsmap import check_charsmap
from deberta_jax.text.declared import check_pieces, check_vocabulary, declared_token, listed_tokens

# A chain of replacements multiplies: 40 of "a" by "aa" would fill any memory.
MOST_GROWTH = 1 << 12


def check_content(content: dict[str, Any], where: str) -> dict[str, Any]:
    """Checks the model, the added tokens and the replacements of a tokenizer.json.

    Args:
        content: the parsed file.
        where: its name, for messages.

    Returns:
        The content as it is used: without truncation, padding and template, which callers choose, and without dropout,
        which would leave the ids of a text to chance.

    Raises:
        InputError: the model is no BPE and no Unigram, or anything in it has a wrong form.
    """
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") not in ("BPE", "Unigram"):
        raise InputError(f"{where} holds neither a BPE nor a Unigram model; it is not DeBERTa's")
    if model["type"] == "BPE":
        vocab: Any = check_vocabulary(model.get("vocab"), f"{where}: the vocabulary")
        if model.get("unk_token") is not None and (
            type(model["unk_token"]) is not str or model["unk_token"] not in vocab
        ):
            raise InputError(f"{where}: unk_token is {shown(model['unk_token'])}, which is no piece")
        model = model | {"dropout": None}
    else:
        vocab = check_pieces(model.get("vocab"), f"{where}: the vocabulary")
        unknown = model.get("unk_id")
        if type(unknown) is not int or not 0 <= unknown < len(vocab):
            raise InputError(f"{where}: unk_id is {shown(unknown)}; it must be the number of a piece")
    tokens = listed_tokens(content, where)
    for entry in tokens:
        declared_token(entry, entry.get("id"), where)
    for step in ("normalizer", "decoder"):
        if _growth(content.get(step), where) > MOST_GROWTH:
            raise InputError(f"{where}: its {step} makes a text more than {MOST_GROWTH} times as long; fetch it again")
    return content | {
        "model": model,
        "truncation": None,
        "padding": None,
        "post_processor": None,
        "added_tokens": tokens,
    }


def vocabulary_of(model: dict[str, Any]) -> dict[str, int]:
    """Returns piece -> id of a checked model."""
    return model["vocab"] if model["type"] == "BPE" else {entry[0]: i for i, entry in enumerate(model["vocab"])}


def _growth(step: Any, where: str) -> int:
    """Returns how many times as long a normalizer or decoder makes a text at most; it may be nested.

    Raises:
        InputError: a table of characters is damaged.
    """
    if not isinstance(step, dict):
        return 1
    factor = 1
    for part in step.values():
        if isinstance(part, list):
            for inner in part:
                factor = min(factor * _growth(inner, where), MOST_GROWTH + 1)
    if isinstance(step.get("content"), str):
        pattern = step.get("pattern")
        plain = pattern.get("String") if isinstance(pattern, dict) else None
        # A regular expression may match the empty text between any two characters.
        shortest = len(plain) if isinstance(plain, str) else 0
        factor *= len(step["content"]) // shortest + 1 if shortest else len(step["content"]) + 1
    if isinstance(step.get("prepend"), str):
        factor *= len(step["prepend"]) + 1
    if step.get("type") == "Precompiled":
        check_charsmap(where, _decoded(step.get("precompiled_charsmap"), where))
    return factor


def _decoded(text: Any, where: str) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError(f"it is {type(text).__name__}")
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InputError(f"{where}: its precompiled_charsmap is not base64 ({brief(error)}); fetch it again") from None
