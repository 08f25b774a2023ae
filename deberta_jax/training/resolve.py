"""Finds the model config and the tokenizer that an experiment of any kind names."""

from pathlib import Path

from deberta_jax import hub
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import Finetune, Pretraining
from deberta_jax.weights import load_config, tokenizer_directory


def resolve_config(e: Finetune | Pretraining) -> DebertaConfig:
    """Returns the config of the experiment's model directory, hub id or preset. Reads no weights.

    Raises:
      InputError: ``--model`` names a preset, which has no weights, and ``--from-scratch`` is not given.
    """
    if e.model in PRESETS and not Path(e.model).is_dir():
        if not e.from_scratch:
            raise InputError(
                f"--model {e.model}: is an architecture without weights; give a directory or a hub id such as "
                f"microsoft/{e.model}, or add --from-scratch"
            )
        return PRESETS[e.model]
    return load_config(e.model, base_model=e.base_model or None)


def resolve_tokenizer(e: Finetune | Pretraining) -> Path:
    """Returns the directory of the tokenizer: the one given, else the model's; for an adapter without one, its base's.

    Raises:
      InputError: no such directory or hub id.
    """
    if e.tokenizer:
        return hub.resolve(e.tokenizer, files=hub.TEXT_FILES)
    named = e.model in PRESETS and not Path(e.model).is_dir()
    return tokenizer_directory(f"microsoft/{e.model}" if named else e.model, base_model=e.base_model or None)
