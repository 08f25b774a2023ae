"""Removes from tensor names what training programs add to them.

DataParallel, torch.compile, FSDP, Lightning, peft and hand-written modules add components in front of the names of a
model's tensors, or between their components. A list of these is not needed: the name of the word embeddings shows
where the model begins, and components that start with an underscore never belong to a DeBERTa model.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from deberta_jax.errors import InputError, brief, listed
from deberta_jax.models import all_parts
from deberta_jax.weights import names as table
from deberta_jax.weights.source import Checkpoint, Tensor

_FRONT = r"((?:[^.]+\.)*?)(?:(?:deberta|bert)\.)?"
_WORD_EMBEDDINGS = re.compile(_FRONT + r"embeddings\.word_embeddings\.")
_LAYERS = re.compile(
    rf"{_FRONT}(?:encoder\.(?:layer\.\d+|rel_embeddings|conv|LayerNorm)|"
    r"embeddings\.(?:position_embeddings|token_type_embeddings|embed_proj|LayerNorm))\."
)


class Unwrapped(NamedTuple):
    """Holds the tensors of a file after ``unwrap``."""

    tensors: dict[str, Tensor]
    """Tensors of the model by canonical name."""
    outside: dict[str, Tensor]
    """Tensors outside the wrapped model, by their own names."""
    ignored: dict[str, tuple[str, ...]]
    """Names of tensors that were left out, with the patterns that match them."""
    notes: tuple[str, ...]
    """A note that lists what was removed from names."""


def holds_encoder(name: Any) -> bool:
    """Returns whether a dictionary key is the name of an encoder's tensor, with or without a wrapper."""
    return isinstance(name, str) and any(pattern.match(_bare(name)[0]) for pattern in (_WORD_EMBEDDINGS, _LAYERS))


def unwrap(checkpoint: Checkpoint, ignore: Sequence[str] = ()) -> Unwrapped:
    """Finds the wrapper around the model of a checkpoint and removes it from the names.

    Args:
      checkpoint: the opened file.
      ignore: glob patterns (``*``, ``?``, ``[...]``) of tensors to leave out, which may match the name with or without
        the wrapper.

    Raises:
      InputError: the file has several encoders, or two names become the same.
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
    """Returns a name without the components that only wrappers add, and these components."""
    *words, last = name.split(".")
    wrapper = [word for word in words if word.startswith("_") or word == "module"]
    kept = [word for word in words if word not in wrapper]
    return ".".join([*kept, last]), [f"{word}." for word in wrapper]


def _front(names: Iterable[str], checkpoint: Checkpoint) -> str:
    """Returns the prefix of the encoder's names. Raises InputError if there are several."""
    names = list(names)
    for pattern in (_WORD_EMBEDDINGS, _LAYERS):
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
    # There is no encoder: an adapter in which only a head was trained.
    heads = re.compile(rf"((?:[^.]+\.)*?)(?:{'|'.join(map(re.escape, all_parts()))})\.")
    fronts = {match[1] if (match := heads.match(name)) else None for name in names}
    return fronts.pop() or "" if len(fronts) == 1 else ""
