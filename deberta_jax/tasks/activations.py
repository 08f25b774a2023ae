"""Defines the functions that make scores of logits, under the names that a config.json gives them."""

from collections.abc import Callable
from typing import Any

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, brief, listed

Activation = Callable[[np.ndarray], np.ndarray]

# Where sentence-transformers writes the name: since version 4, in a dict with the key ``activation_fn``, and before.
_KEY, _OLDER_KEY = "sentence_transformers", "sbert_ce_default_activation_function"
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-logits)), in the dtype of the logits."""
    from scipy.special import expit

    return expit(logits)


# The last part of the name, such as that of "torch.nn.modules.activation.Sigmoid".
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": lambda logits: logits,
    "LogSigmoid": lambda logits: -np.logaddexp(0, -logits),
    "ReLU": lambda logits: np.maximum(logits, 0),
    "Sigmoid": sigmoid,
    "Softplus": lambda logits: np.logaddexp(0, logits),
    "Tanh": np.tanh,
}


def find_activation(name: Any, where: str) -> Activation:
    """Returns the function of a name. Raises InputError, which begins with ``where``, for one that is not known."""
    found = _ACTIVATIONS.get(name.rpartition(".")[2]) if isinstance(name, str) and name.startswith("torch.") else None
    if found is None:
        raise InputError(
            f"{where}: its scores are made by {brief(str(name))}, which is not known here (known: "
            f"{listed(sorted(_ACTIVATIONS))})"
        )
    return found


def saved_activation(config: DebertaConfig) -> Any:
    """Returns the name that a model's config gives; by default that of the sigmoid for one label, else the identity."""
    newer = config.extra.get(_KEY)
    name = newer.get("activation_fn") if isinstance(newer, dict) else None
    name = config.extra.get(_OLDER_KEY) if name is None else name
    if name is None:
        return SIGMOID if config.num_labels == 1 else IDENTITY
    return name


def with_activation(extra: Any, name: str) -> dict[str, Any]:
    """Returns the other keys of a config, ``DebertaConfig.extra``, with the name of the function."""
    return {key: value for key, value in extra.items() if key != _OLDER_KEY} | {_KEY: {"activation_fn": name}}
