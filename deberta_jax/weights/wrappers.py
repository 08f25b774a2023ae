"""Tensor names under wrappers: what training programs put around a model is taken off.

DataParallel, torch.compile, FSDP, Lightning, peft and hand-written modules each put words in front of the names of a
model's tensors, or between their parts. None of these words has to be known: the word table's name shows where the
model begins, and words that start with an underscore name no part of a DeBERTa model.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from deberta_jax.errors import InputError, brief, listed
from deberta_jax.weights import names as table
from deberta_jax.weights.source import Checkpoint, Tensor

_FRONT = r"((?:[^.]+\.)*?)(?:(?:deberta|bert)\.)?"
_WORDS = re.compile(_FRONT + r"embeddings\.word_embeddings\.")
_LAYERS = re.compile(
    rf"{_FRONT}(?:encoder\.(?:layer\.\d+|rel_embeddings|conv|LayerNorm)|"
    r"embeddings\.(?:position_embeddings|token_type_embeddings|embed_proj|LayerNorm))\."
)
_HEADS = re.compile(rf"((?:[^.]+\.)*?)(?:{'|'.join(table.PARTS)})\.")


class Unwrapped(NamedTuple):
    """The tensors of a file by canonical name, those outside the wrapper by their own, those left out with the patterns
    that match them, and a note on what was taken off."""

    tensors: dict[str, Tensor]
    outside: dict[str, Tensor]
    ignored: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]


def holds_encoder(name: Any) -> bool:
    """Tells whether a key of a dictionary is the name of an encoder's tensor, with or without a wrapper."""
    return isinstance(name, str) and any(pattern.match(_bare(name)[0]) for pattern in (_WORDS, _LAYERS))


def unwrap(checkpoint: Checkpoint, ignore: Sequence[str] = ()) -> Unwrapped:
    """Finds the wrapper of a checkpoint's model and takes it off.

    Args:
      ignore: patterns (``*``, ``?``, ``[...]``) of tensors to leave out, by their names with or without the wrapper.

    Raises:
      InputError: several encoders in one file, or two spellings of one name.
    """
    ignored: dict[str, tuple[str, ...]] = {}

    def left_out(tensor: str, *spellings: str) -> bool:
        patterns = tuple(p for p in ignore if any(fnmatchcase(spelling, p) for spelling in spellings))
        if patterns:
            ignored[tensor] = patterns
        return bool(patterns)

    bare = {name: _bare(name) for name in checkpoint.tensors}
    bare = {name: found for name, found in bare.items() if not left_out(name, name, found[0])}
    front = _front((name for name, _ in bare.values()), checkpoint)
    removed: dict[str, None] = {front: None} if front else {}
    tensors: dict[str, Tensor] = {}
    outside: dict[str, Tensor] = {}
    for name, (inner, words) in bare.items():
        tensor = checkpoint.tensors[name]
        removed |= dict.fromkeys(words)
        if not inner.startswith(front):
            outside[name] = tensor
            continue
        key = table.canonical(inner.removeprefix(front))
        if left_out(name, inner.removeprefix(front), key):
            continue
        if key in tensors:
            raise InputError(
                f"{checkpoint.path}: {brief(tensors[key].name, 200)} and {brief(name, 200)} are two spellings of "
                f"{brief(key, 200)}; remove one"
            )
        tensors[key] = tensor
    notes = (f"taken off the names of tensors: {listed(removed)}",) if removed else ()
    return Unwrapped(tensors, outside, ignored, notes)


def _bare(name: str) -> tuple[str, list[str]]:
    """The name without the words that only a wrapper has, and these words."""
    *words, last = name.split(".")
    wrapper = [word for word in words if word.startswith("_") or word == "module"]
    kept = [word for word in words if word not in wrapper]
    return ".".join([*kept, last]), [f"{word}." for word in wrapper]


def _front(names: Iterable[str], checkpoint: Checkpoint) -> str:
    """What stands in front of the encoder's names."""
    names = list(names)
    for pattern in (_WORDS, _LAYERS):
        fronts = list(dict.fromkeys(match[1] for name in names if (match := pattern.match(name))))
        if len(fronts) > 1:
            shown = listed(front or "no prefix" for front in fronts)
            hint = brief(next(front for front in fronts if front))
            raise InputError(
                f"{checkpoint.path}: holds several encoders (under {shown}); leave out all but one, such as with "
                f"ignore=['{hint}*'] (on the command line --ignore '{hint}*')"
            )
        if fronts:
            return fronts[0]
    # No encoder at all: an adapter that trained a head alone.
    fronts = {match[1] if (match := _HEADS.match(name)) else None for name in names}
    return fronts.pop() or "" if len(fronts) == 1 else ""
