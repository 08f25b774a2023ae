"""Loads a trained model for inference: its weights on all devices, prepared, and its tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from deberta_jax import hub
from deberta_jax.compilation import use_compilation_cache
from deberta_jax.inference.devices import Device, devices_of
from deberta_jax.models import Model, Runtime, prepare_for_inference
from deberta_jax.sharding import make_mesh, replicated
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.weights import Check, load, tokenizer_directory


class InferenceModel(NamedTuple):
    """Holds a model that is prepared for inference.

    Attributes:
      model, params: as ``prepare_for_inference`` returns them, with a copy of the parameters on every device.
      tokenizer: that of the directory, or of an adapter's base.
      directory: the local directory of the model.
      mesh: all devices.
    """

    model: Model
    params: Any
    tokenizer: Tokenizer
    directory: Path
    mesh: Mesh


def load_for_inference(
    head: str,
    model: str | Path,
    runtime: Runtime,
    *,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    revision: str | None = None,
    allow_non_finite: bool = False,
    check: Check = "sampled",
    tokenizer: str | Path | Tokenizer | None = None,
    device: Device = None,
) -> InferenceModel:
    """Loads a model directory or a hub id with a head.

    Args:
      head: a key of ``models.HEADS``.
      model, ignore, base_model, revision, allow_non_finite, check: as for ``from_pretrained``.
      runtime: how the model is computed.
      tokenizer: a tokenizer, or the directory or hub id of one; None: the model's.
      device: as for ``pipeline``.

    Raises:
      InputError: the directory is not a model, has no such head, or has weights that are NaN or infinite; or there is
        no such device.
    """
    use_compilation_cache()
    mesh = make_mesh(devices=devices_of(device))
    directory = hub.resolve(model, revision=revision)
    if tokenizer is None:
        tokenizer = load_tokenizer(tokenizer_directory(directory, base_model=base_model))
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(hub.resolve(tokenizer, files=hub.TEXT_FILES))
    source = model if hub.split_file(str(model))[1] else directory
    network, params, _ = load(
        source,
        head,
        runtime,
        revision=revision,
        ignore=ignore,
        base_model=base_model,
        allow_non_finite=allow_non_finite,
        check=check,
    )
    network, params = prepare_for_inference(network, params)
    return InferenceModel(network, replicated(params, mesh), tokenizer, directory, mesh)
