"""Finds out what of a source is exported: its head, and its tokenizer's files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, head_spec
from deberta_jax.weights.opening import TOKENIZER_FILES, open_source


def head_of(
    source: str | Path,
    head: str | None,
    *,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> str:
    """Returns the head that is asked for, or if that is None the one that config.json names.

    Raises:
      InputError: the source cannot be opened, there is no such head, or config.json names none that is known.
    """
    if head is not None:
        head_spec(head)
        return head
    opened = open_source(source, revision=revision, ignore=ignore, base_model=base_model)
    for name, spec in HEADS.items():
        classes = [f"{prefix}{spec.transformers}" for prefix in ("Deberta", "DebertaV2")]
        if spec.transformers and set(classes) & set(opened.architectures):
            return name
    raise InputError(f"{source}: config.json does not say which head the model has; name it: one of {', '.join(HEADS)}")


def copy_tokenizer(directory: Path, files: Path | None, tokenizer: Any) -> None:
    """Copies the tokenizer's files of a model directory, or saves the tokenizer that is given."""
    if tokenizer is not None:
        tokenizer.save(directory)
        return
    for name in TOKENIZER_FILES if files is not None else ():
        if files is not None and (files / name).is_file():
            storage.write_bytes(directory / name, storage.read_bytes(files / name, storage.LARGE))
