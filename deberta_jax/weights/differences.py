"""Handles files that store an embedding table as the difference from a generator's (gradient-disentangled sharing).

In DeBERTa v3's training, ``word_embeddings._weight`` is the difference between the discriminator's and the generator's
table. Released files also contain the sum. If a file has only the difference, it is added to the table of the generator
in the same directory. Some fine-tuned models store their whole table under that name; it is recognised by the size of
its values.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.storage import AnyPath
from deberta_jax.weights.readers import GENERATOR, read_weights
from deberta_jax.weights.source import Folded, Tensor
from deberta_jax.weights.wrappers import unwrap

_TABLES = ("word_embeddings", "position_embeddings")


def fold_differences(
    found: dict[str, Tensor], config: DebertaConfig, directory: AnyPath, path: AnyPath
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Computes the ``weight`` of every embedding table that has only a ``_weight``.

    Args:
      found: tensors by canonical name.
      config: the architecture.
      directory: the directory in which the generator is searched.
      path: the file, for messages.

    Returns:
      The tensors with ``weight`` in place of ``_weight``, and a note for each.

    Raises:
      InputError: a difference has no generator.
    """
    out, notes = dict(found), []
    for table in _TABLES:
        name = f"deberta.embeddings.{table}"
        difference = found.get(f"{name}._weight")
        if difference is None or f"{name}.weight" in found:
            continue
        beside = [directory / file for file in GENERATOR] if isinstance(directory, Path) else []
        generator = next((file for file in beside if file.is_file()), None)
        del out[f"{name}._weight"]
        if generator is not None:
            base = unwrap(read_weights(generator)).tensors.get(f"{name}.weight")
            if base is None or base.shape != difference.shape:
                raise InputError(f"{generator}: has no {name}.weight of shape {list(difference.shape)} to add to")
            out[f"{name}.weight"] = _sum(difference, base, generator.name)
            notes.append(f"{table}: the difference in {path.name} was added to the table of {generator.name}")
        elif _is_whole(difference, found, config):
            reason = "taken as the whole table: too large for a difference"
            out[f"{name}.weight"] = Folded(difference.name, difference.shape, difference.dtype, difference.read, reason)
            notes.append(f"{difference.name} was {reason}; check the model's answers")
        elif table == "position_embeddings":
            # Only a mask decoder reads absolute positions; the report says that they are left out.
            out[f"{name}._weight"] = difference
        else:
            raise InputError(
                f"{path}: {difference.name} is a difference from the generator's table, which is not here; put "
                "pytorch_model.generator.bin beside it"
            )
    return out, tuple(notes)


def _sum(difference: Tensor, base: Tensor, generator: str) -> Folded:
    def read() -> np.ndarray:
        total = base.read().astype(np.float32) + difference.read().astype(np.float32)
        return total.astype(difference.dtype)

    return Folded(difference.name, difference.shape, difference.dtype, read, f"added to the table of {generator}")


def _is_whole(difference: Tensor, found: Mapping[str, Tensor], config: DebertaConfig) -> bool:
    """Returns whether a ``_weight`` is a whole table rather than a difference.

    The values of a table start with the standard deviation of the initialization and grow; a difference starts at zero.
    In a file with ``mask_predictions``, which is a discriminator after pre-training, it is always a difference.
    """
    if any(name.startswith("mask_predictions.") for name in found):
        return False
    sample = difference.read()[:4096].astype(np.float32)
    return float(np.sqrt(np.mean(np.square(sample)))) >= 0.75 * config.initializer_range
