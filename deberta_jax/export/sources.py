"""Opens what is exported, and writes what stands beside it: config.json and the tokenizer's files."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import hub, storage
from deberta_jax.errors import InputError, shown
from deberta_jax.models import Model, Runtime, abstract_params, head_spec, spec_of_model
from deberta_jax.ops.quantization import dense_values, is_compressed
from deberta_jax.text import load_tokenizer
from deberta_jax.weights import load, tokenizer_directory
from deberta_jax.weights.heads import heads_of
from deberta_jax.weights.opening import TOKENIZER_FILES
from deberta_jax.weights.save import hf_config, json_text

Given = str | Path | tuple[Model, Mapping[str, Any]]
"""A model directory, file or hub id; or a model and its parameters."""


class Exportable(NamedTuple):
    """Holds a model that is exported.

    Attributes:
      model, params: the model, which computes in float32, and its parameters.
      tokenizer: an object with ``save(directory)``, or the directory that has the tokenizer's files, or None.
    """

    model: Model
    params: Mapping[str, Any]
    tokenizer: Any

    @property
    def head(self) -> str:
        """Returns the name of the head."""
        return spec_of_model(self.model)[0]


def open_exportable(
    source: Given,
    head: str | None,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    heads: Sequence[str] | None = None,
    into: str = "",
) -> Exportable:
    """Returns what is exported.

    Args:
      source: a model directory, file or hub id; or a model and its parameters.
      head: the head; None: the one that config.json names, that the weights are of, or the model's.
      tokenizer: an object with ``save(directory)``, or the directory or hub id of one; None: that of the source.
      revision, ignore, base_model: as for ``from_pretrained``.
      heads: those that can be exported; None: all.
      into: the format, for messages.

    Raises:
      InputError: the source cannot be loaded, or cannot be exported; the parameters are not the model's; or there is no
        such tokenizer.
    """

    def check_head(name: str) -> None:
        if heads is not None and name not in heads:
            raise InputError(f"head {name!r} cannot be exported to {into}; those that can be are {', '.join(heads)}")

    tokenizer = _known_tokenizer(tokenizer)
    if not isinstance(source, str | Path):
        model, params = _model_and_params(source)
        name, _ = spec_of_model(model)
        if head not in (None, name):
            raise InputError(f"head={head!r}: the model has the head {name!r}")
        check_head(name)
        if model.prepared:
            raise InputError("the parameters are prepared for inference; export the original ones")
        if model.score_modifier is not None:
            raise InputError("a model with a score_modifier cannot be exported: the function is Python code")
        _check_params(model, params)
        return Exportable(model.clone(dtype=jnp.float32), _dense(params), tokenizer)
    head = _head_of(source, head, revision=revision, ignore=ignore, base_model=base_model)
    check_head(head)
    if tokenizer is None:
        files = source if revision is None else hub.resolve(source, revision=revision)
        tokenizer = tokenizer_directory(files, base_model=base_model)
    options: Any = {"revision": revision, "ignore": ignore, "base_model": base_model}
    model, params, _ = load(source, head, Runtime(), quantization="none", **options)
    return Exportable(model, params, tokenizer)


def _known_tokenizer(tokenizer: Any) -> Any:
    """Returns a tokenizer, None, or the directory of one that is given by name. Raises InputError for anything else."""
    if isinstance(tokenizer, str | Path):
        directory = hub.resolve(tokenizer, files=hub.TEXT_FILES)
        load_tokenizer(directory)
        return directory
    if tokenizer is not None and not callable(getattr(tokenizer, "save", None)):
        raise InputError(
            f"tokenizer={shown(tokenizer)}: give a tokenizer, such as load_tokenizer returns, its directory or a hub id"
        )
    return tokenizer


def _model_and_params(source: Any) -> tuple[Any, Mapping[str, Any]]:
    """Returns the parts of a pair. Raises InputError for something else than a pair of a model and parameters."""
    if not isinstance(source, tuple) or len(source) != 2:
        raise InputError(f"cannot export {shown(source)}; give a model directory, a hub id, or (model, params)")
    model, params = source
    if isinstance(model, Model) and not isinstance(params, Mapping):
        raise InputError(f"the parameters are {shown(params)}; give (model, params), as from_pretrained returns them")
    return model, params


def _check_params(model: Model, params: Mapping[str, Any]) -> None:
    """Raises InputError for a tree that has not exactly the arrays of ``init_params(model, key)``."""

    def shapes(tree: Any) -> dict[str, Any]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_compressed)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): getattr(leaf, "shape", shown(leaf))
            for path, leaf in leaves
        }

    wanted, given = shapes(abstract_params(model)), shapes(params)
    wrong = [path for path in sorted(wanted.keys() | given.keys()) if wanted.get(path) != given.get(path)]
    if wrong:
        found = f"{given.get(wrong[0], 'missing')}, expected {wanted.get(wrong[0], 'none')}"
        more = f", and {len(wrong) - 1} more are wrong" if len(wrong) > 1 else ""
        raise InputError(f"the parameters are not those of this {type(model).__name__}: {wrong[0]} is {found}{more}")


def _dense(params: Mapping[str, Any]) -> Any:
    """Returns parameters in which quantized ones have become arrays of float32."""
    dense = lambda leaf: dense_values(leaf, jnp.float32) if is_compressed(leaf) else leaf
    return jax.tree.map(dense, params, is_leaf=is_compressed)


def _head_of(source: str | Path, head: str | None, **options: Any) -> str:
    """Returns the head that is asked for; if that is None, the one that the model has.

    Raises:
      InputError: the source cannot be opened, there is no such head, or the model may have several.
    """
    if head is not None:
        head_spec(head)
        return head
    found, *others = heads_of(source, **options)
    if others:
        raise InputError(
            f"{source}: config.json does not say which head the model has, and its weights are those of "
            f"{' and '.join([found, *others])}; name one (head=..., on the command line --head)"
        )
    return found


def check_new(directory: storage.AnyPath) -> None:
    """Raises InputError for a destination that has contents or cannot be written."""
    storage.check_output_directory("", directory)
    if directory.is_dir() and any(directory.iterdir()):
        raise InputError(f"{directory}: exists and is not empty; give a new directory")


@contextlib.contextmanager
def export_directory(directory: storage.AnyPath, exported: Exportable, dtype: str) -> Iterator[Path]:
    """Yields a temporary directory that becomes ``directory``, with config.json and the tokenizer, if the block ends.

    Args:
      directory: the destination.
      exported: the model.
      dtype: dtype of the weights, for config.json.
    """
    config = exported.model.config
    _, spec = spec_of_model(exported.model)
    with storage.staged(directory, last="config.json") as stage:
        yield stage
        _copy_tokenizer(stage, exported.tokenizer)
        contents = hf_config(config, spec.parts_in(config), spec.num_outputs(config), np.dtype(jnp.dtype(dtype)))
        storage.write_text(stage / "config.json", json_text(contents))


def _copy_tokenizer(directory: Path, tokenizer: Any) -> None:
    """Copies the tokenizer's files of a directory, or saves a tokenizer."""
    if tokenizer is None:
        return
    if not isinstance(tokenizer, Path):
        tokenizer.save(directory)
        return
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            storage.write_bytes(directory / name, storage.read_bytes(tokenizer / name, storage.LARGE))
