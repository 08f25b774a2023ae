"""Merges LoRA adapters of the ``peft`` library, from adapter files or from files of models that were not merged.

The update of a weight is added when the weight is read (Hu et al. 2021: W + alpha / r B A; with DoRA, Liu et al. 2024,
each row is then scaled to a trained norm). The result is an ordinary model.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax.config_json import read_json_object
from deberta_jax.errors import InputError, brief, listed, shown
from deberta_jax.storage import AnyPath
from deberta_jax.weights.report import SourceRow
from deberta_jax.weights.source import Folded, Tensor, kind

CONFIG = "adapter_config.json"
FILES = ("adapter_model.safetensors", "adapter_model.bin")

_UPDATE = re.compile(
    r"(.+)\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)(?:\.(?!weight$)([^.]+))?(?:\.weight)?"
)
_BASE = ".base_layer."
_SAVED = re.compile(r"(.+)\.modules_to_save\.([^.]+)\.(.+)")

# Settings with which a merged weight is not W + scale B A, or the base is not the named one.
_OTHER_METHODS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)
_INITIAL = (None, True, False, "gaussian", "eva", "orthogonal")


@dataclasses.dataclass(frozen=True)
class Merged:
    """Holds the tensors of a model after updates were merged."""

    tensors: dict[str, Tensor]
    """Tensors by canonical name."""
    rows: tuple[SourceRow, ...] = ()
    """Report rows of the tensors that were merged or replaced."""
    notes: tuple[str, ...] = ()
    """Notes for the report."""


def find_adapter(directory: Path, file: str | None, *, whole: bool) -> Path | None:
    """Returns the file of weights of an adapter, or None if the model is none.

    Args:
      directory: the directory of the model.
      file: the file in it that the caller named, if any.
      whole: whether the directory also has the weights of a whole model.

    Raises:
      InputError: the directory has both a whole model and an adapter, and the caller named no file.
    """
    if file is not None:
        return directory / file if file in FILES else None
    found = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if found is not None and whole:
        raise InputError(
            f"{directory}: holds a whole model and an adapter; name the file, {found} for the model with the adapter"
        )
    return found


def read_adapter_config(directory: Path) -> dict[str, Any]:
    """Returns the contents of adapter_config.json, or {} if there is none.

    Raises:
      InputError: the file is no JSON object.
    """
    path = directory / CONFIG
    return read_json_object(path)[0] if path.is_file() else {}


def overlay(base: Mapping[str, Tensor], adapter: Mapping[str, Tensor]) -> Merged:
    """Adds an adapter's tensors to those of its base. A tensor of the same name, such as a head's, is replaced."""
    own = {name.replace(_BASE, "."): tensor for name, tensor in adapter.items()}
    rows = tuple(_row(base[name], "dropped", "the adapter has its own") for name in own if name in base)
    return Merged({**base, **own}, rows)


def holds_updates(names: Iterable[str]) -> bool:
    """Returns whether tensor names are those of a peft model: an adapter, or a whole model that was not merged."""
    words = {word for name in names for word in name.split(".")}
    return bool(words & {"lora_A", "lora_B", "lora_embedding_A", "base_layer", "modules_to_save"})


def merge_updates(found: Mapping[str, Tensor], config: Mapping[str, Any], where: AnyPath, *, own_base: bool) -> Merged:
    """Adds LoRA updates to the weights that they belong to.

    Args:
      found: tensors by canonical name; updates have the names that peft gives them.
      config: the contents of adapter_config.json.
      where: the file, for messages.
      own_base: whether the file itself contains the base weights, as they were after training.

    Raises:
      InputError: the method is not LoRA, there are several adapters, or an update does not fit its weight.
    """
    _check_method(config, where, own_base=own_base)
    out: dict[str, Tensor] = {}
    rows: list[SourceRow] = []
    updates: dict[str, dict[str, Tensor]] = {}
    adapters: dict[str, None] = {}
    for name, tensor in found.items():
        update, saved = _UPDATE.fullmatch(name), _SAVED.fullmatch(name)
        if update is not None:
            module, part, adapter = update.groups()
            adapters |= {adapter: None} if adapter else {}
            updates.setdefault(module, {})[part] = tensor
            rows.append(_row(tensor, "folded", f"LoRA's update of {module}"))
        elif saved is not None:
            adapters[saved[2]] = None
            out[f"{saved[1]}.{saved[3]}"] = tensor
        elif ".original_module." in name:
            rows.append(_row(tensor, "dropped", "what training began with; modules_to_save replaces it"))
        else:
            out.setdefault(name.replace(_BASE, "."), tensor)
    if len(adapters) > 1:
        other = brief(next(iter(adapters)))
        raise InputError(
            f"{where}: holds several adapters ({listed(adapters)}); leave out all but one, such as with "
            f"ignore=['*.{other}*'] (on the command line --ignore '*.{other}*')"
        )
    if updates and "lora_alpha" not in config:
        raise InputError(f"{where}: has LoRA's updates but not their scale; put peft's {CONFIG} beside it")
    alphas = _Alphas(config, where)
    for module, parts in updates.items():
        name = f"{module}.weight"
        if name not in out:
            raise InputError(f"{where}: has an update of {brief(module, 200)}, which the base model does not have")
        out[name] = _updated(out[name], parts, alphas.of(module), bool(config.get("use_rslora")), where)
    notes = (f"LoRA's updates of {len(updates)} weights are added to them",) if updates else ()
    return Merged(out, tuple(rows), notes)


def _check_method(config: Mapping[str, Any], where: AnyPath, *, own_base: bool) -> None:
    """Checks that an adapter is one that can be merged. Raises InputError otherwise."""
    method = config.get("peft_type", "LORA")
    used = [name for name in _OTHER_METHODS if config.get(name)]
    if method != "LORA" or used:
        what = f"{brief(method)} adapter" if method != "LORA" else f"LoRA adapter with {', '.join(used)}"
        raise InputError(
            f"{where}: is a {what}, which cannot be added to the weights here; merge it with peft "
            "(merge_and_unload) and save the model"
        )
    initial = config.get("init_lora_weights")
    if not own_base and initial not in _INITIAL:
        raise InputError(
            f"{where}: init_lora_weights={shown(initial)} changed the base's weights before training; merge it "
            "with peft (merge_and_unload) and save the model"
        )


class _Alphas:
    """Gives alpha of each module: that of the first pattern that its name ends with, as in peft, or lora_alpha.

    Raises:
      InputError: lora_alpha or a value of alpha_pattern is no number, or a pattern is more than the end of a name.
    """

    def __init__(self, config: Mapping[str, Any], where: AnyPath):
        self.where = where
        self.default = config.get("lora_alpha")
        patterns = config.get("alpha_pattern") or {}
        if not isinstance(patterns, Mapping):
            raise InputError(f"{where}: alpha_pattern is {shown(patterns)}; expected an object")
        self.order: dict[str, tuple[int, Any]] = {}
        for index, (pattern, value) in enumerate(patterns.items()):
            plain = pattern.removeprefix("^").replace("\\.", ".")
            if not re.fullmatch(r"[\w.]+", plain):
                raise InputError(f"{where}: alpha_pattern {brief(pattern)!r} is a regular expression; merge with peft")
            self.order.setdefault(plain, (index, value))

    def of(self, module: str) -> float:
        """Returns alpha of the module with this name."""
        starts = [0, *(match.end() for match in re.finditer(r"\.", module))] if self.order else []
        endings = (module[start:] for start in starts)
        first = min(
            (self.order[ending] for ending in endings if ending in self.order), key=lambda x: x[0], default=None
        )
        alpha = self.default if first is None else first[1]
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise InputError(f"{self.where}: lora_alpha is {shown(alpha)}; expected a number")
        return float(alpha)


def _updated(weight: Tensor, parts: Mapping[str, Tensor], alpha: float, stable: bool, where: AnyPath) -> Folded:
    """Returns a weight with its update, computed when it is read.

    Args:
      weight: the weight of the base.
      parts: the tensors of the update by peft's names.
      alpha: the numerator of the scale.
      stable: whether the scale is alpha / sqrt(rank) (rsLoRA) instead of alpha / rank.
      where: the file, for messages.
    """
    embedding = "lora_embedding_A" in parts
    a, b = (parts.get(f"lora_embedding_{x}" if embedding else f"lora_{x}") for x in "AB")
    magnitude = parts.get("lora_magnitude_vector")
    if a is None or b is None or not _fit(a, b) or (embedding and magnitude is not None):
        raise InputError(
            f"{where}: the update of {brief(weight.name, 200)} lacks lora_A or lora_B, or is of a kind that cannot be "
            "added here; merge it with peft (merge_and_unload) and save the model"
        )
    rank = a.shape[0]
    scale = alpha / (math.sqrt(rank) if stable else rank)
    shape = (a.shape[1], b.shape[0]) if embedding else (b.shape[0], *a.shape[1:])
    if shape != weight.shape or (magnitude is not None and magnitude.shape != weight.shape[:1]):
        raise InputError(
            f"{where}: the update of {brief(weight.name, 200)} has shape {list(shape)}, the weight {list(weight.shape)}"
        )

    @np.errstate(over="ignore", invalid="ignore", divide="ignore")  # the caller checks for NaN and infinity
    def read() -> np.ndarray:
        first, second = (t.read().astype(np.float32) for t in (a, b))
        update = second.reshape(second.shape[:2]) @ first.reshape(rank, -1)
        update = update.T if embedding else update.reshape(shape)
        total = weight.read().astype(np.float32) + np.float32(scale) * update
        if magnitude is not None:
            length = np.sqrt(np.sum(np.square(total), axis=1, keepdims=True))
            total = total * (magnitude.read().astype(np.float32)[:, None] / length)
        return total.astype(dtype)

    dtype = weight.dtype if weight.dtype == a.dtype == b.dtype else np.dtype(np.float32)
    return Folded(weight.name, weight.shape, dtype, read, f"with LoRA's update of rank {rank}, scaled by {scale:g}")


def _fit(a: Tensor, b: Tensor) -> bool:
    """Returns whether A [r, in, ...] and B [out, r], or [out, r, 1] for a convolution, can be multiplied."""
    return len(a.shape) >= 2 and len(b.shape) >= 2 and a.shape[0] == b.shape[1] > 0 and math.prod(b.shape[2:]) == 1


def _row(tensor: Tensor, fate: Any, reason: str) -> SourceRow:
    return SourceRow(tensor.name, tensor.shape, kind(tensor.dtype), fate, reason)
