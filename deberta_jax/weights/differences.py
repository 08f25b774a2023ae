"""Files whose embedding table is kept as a difference from a generator's (gradient-disentangled sharing).

DeBERTa v3's training keeps ``word_embeddings._weight``, the discriminator's difference from the generator's table.
Released files hold the sum as well. A file with the difference alone has no table: it is added to the generator's where
that lies beside it. Some fine-tuned models store their whole table under that name; its size tells.
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
    """``found`` with a ``weight`` for every table that has only a ``_weight``, and a note on how each came about.

    Raises:
      InputError: a difference whose generator is not there.
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
            # Only a mask decoder reads absolute positions; the account says that they are left out.
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
    """A table starts at the spread of initialisation and grows; a difference starts at zero.

    A file with ``mask_predictions`` is a discriminator as training left it, whose ``_weight`` is a difference.
    """
    if any(name.startswith("mask_predictions.") for name in found):
        return False
    sample = difference.read()[:4096].astype(np.float32)
    return float(np.sqrt(np.mean(np.square(sample)))) >= 0.75 * config.initializer_range
