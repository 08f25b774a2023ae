"""Loads a trained model for inference: its weights on all devices, prepared, and its tokenizer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from deberta_jax import hub
from deberta_jax.compilation import use_compilation_cache
from deberta_jax.errors import InputError
from deberta_jax.inference.devices import Device, devices_of
from deberta_jax.models import Model, Runtime, logical_axes, prepare_for_inference
from deberta_jax.sharding import make_mesh, replicated, tree_shardings
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.weights import Check, load, tokenizer_directory


class InferenceModel(NamedTuple):
    """Holds a model that is prepared for inference.

    Attributes:
      model, params: as ``prepare_for_inference`` returns them, with a copy of the parameters on every ``mesh_fsdp``
        devices.
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
    mesh_fsdp: int = 1,
) -> InferenceModel:
    """Loads a model directory or a hub id with a head.

    Args:
      head: a key of ``models.HEADS``.
      model, ignore, base_model, revision, allow_non_finite, check: as for ``from_pretrained``.
      runtime: how the model is computed.
      tokenizer: a tokenizer, or the directory or hub id of one; None: the model's.
      device, mesh_fsdp: as for ``pipeline``.

    Raises:
      InputError: the directory is not a model, has no such head, or has weights that are NaN or infinite; there is no
        such device, or ``mesh_fsdp`` does not divide the devices or the model.
    """
    use_compilation_cache()
    mesh = make_mesh(fsdp=mesh_fsdp, devices=devices_of(device))
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
        shardings=None if mesh_fsdp == 1 else lambda network: _divided(network, mesh),
        allow_non_finite=allow_non_finite,
        check=check,
    )
    network, params = prepare_for_inference(network, params)
    return InferenceModel(network, placed(params, specs_of(params), mesh), tokenizer, directory, mesh)


def _divided(network: Model, mesh: Mesh) -> Any:
    """Returns the shardings of parameters that are divided over ``fsdp``."""
    parts, config = mesh.shape["fsdp"], network.config
    for width in (config.hidden_size, config.embedding_width):
        if width % parts:
            raise InputError(f"mesh_fsdp={parts}: does not divide the model's width, {width}")
    return tree_shardings(logical_axes(network), mesh)


def specs_of(params: Any) -> Any:
    """Returns how each parameter is divided over a mesh: a tree of PartitionSpecs, which does not name devices."""
    return jax.tree.map(lambda leaf: getattr(leaf.sharding, "spec", PartitionSpec()), params)


def placed(params: Any, specs: Any, mesh: Mesh) -> Any:
    """Returns parameters on the devices of a mesh, divided as ``specs_of`` says."""
    if mesh.shape["fsdp"] == 1:
        return replicated(params, mesh)
    return jax.tree.map(lambda leaf, spec: jax.device_put(leaf, jax.NamedSharding(mesh, spec)), params, specs)
