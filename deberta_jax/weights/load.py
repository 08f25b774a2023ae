"""A model directory, file or hub id -> a model, its parameters, and the account of how they came about."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import hub
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.models import MODELS, Model, init_params
from deberta_jax.weights.account import Plan, by_canonical_name, make_plan
from deberta_jax.weights.choose import Wish, choose_all, choose_head
from deberta_jax.weights.cloud import Place, is_cloud, reaching
from deberta_jax.weights.differences import fold_differences
from deberta_jax.weights.names import ENCODER
from deberta_jax.weights.orbax_files import find_orbax, read_orbax
from deberta_jax.weights.readers import find_weights, has_standard, read_weights
from deberta_jax.weights.report import Report, TargetRow
from deberta_jax.weights.source import Checkpoint, Tensor
from deberta_jax.weights.values import as_dtype, broken_note, is_finite, read_leaf

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened model: its directory, its weights under canonical names, and what its config says."""

    directory: Place
    checkpoint: Checkpoint
    found: Mapping[str, Tensor]
    config: DebertaConfig
    labelled: bool
    """The config names its labels, or at least their number."""
    architectures: tuple[str, ...]
    """The classes of transformers that the config names."""
    notes: tuple[str, ...]


def load_config(name: str | Path, *, revision: str | None = None) -> DebertaConfig:
    """The architecture of a model directory or hub id, without its weights.

    Raises:
      InputError: no such directory or hub id, or a config.json that cannot be used.
    """
    if is_cloud(name):
        with reaching(name) as place:
            return _read_config(place, "", None)[0]
    file = hub.split(str(name))[1]
    directory = hub.resolve(name, revision=revision, files=["*.json"])
    return _read_config(directory, file or "", None)[0]


def open_source(name: str | Path, *, revision: str | None = None) -> Source:
    """Opens a directory, a file in one, a hub id, or an Orbax checkpoint at ``gs://...``: headers, no weights.

    Raises:
      InputError: anything that cannot be read, in one line.
    """
    if is_cloud(name):
        with reaching(name) as place:
            return _open_cloud(place)
    file = hub.split(str(name))[1]
    directory = hub.resolve(name, revision=revision)
    orbax = None if file or has_standard(directory) else find_orbax(directory)
    if orbax is not None:
        return _open_orbax(directory, orbax)
    checkpoint = read_weights(directory / file if file else find_weights(directory))
    return _make_source(directory, checkpoint, *_read_config(directory, checkpoint.path.name, checkpoint.config))


def _open_cloud(directory: Place) -> Source:
    orbax = find_orbax(directory)
    if orbax is None:
        raise InputError(f"{directory}: no Orbax checkpoint there; files of any other form must be on a local disk")
    return _open_orbax(directory, orbax)


def _open_orbax(directory: Place, orbax: Place) -> Source:
    above = (directory, *directory.absolute().parents[:3])
    home = next((place for place in above if _config_file(place, "")), directory)
    config, raw = _read_config(home, "", None)
    return _make_source(directory, read_orbax(orbax, config), config, raw)


def _make_source(
    directory: Place, checkpoint: Checkpoint, config: DebertaConfig, raw: Mapping[str, Any]
) -> Source:  # fmt: skip
    found, notes = fold_differences(by_canonical_name(checkpoint), config, directory, checkpoint.path)
    if checkpoint.left:
        notes = (*notes, f"not weights, not read: {', '.join(checkpoint.left)}")
    labelled = any(raw.get(key) is not None for key in ("id2label", "label2id", "num_labels"))
    classes = raw.get("architectures")
    architectures = tuple(map(str, classes)) if isinstance(classes, list) else ()
    return Source(directory, checkpoint, found, config, labelled, architectures, notes)


def _read_config(
    directory: Place, file: str, inside: Mapping[str, Any] | None
) -> tuple[DebertaConfig, Mapping[str, Any]]:
    """The config that belongs to a file of weights, and what it was read from."""
    path = _config_file(directory, file)
    if path is None and inside is not None:
        return DebertaConfig.from_hf(inside), inside
    path = path or directory / "config.json"
    if isinstance(path, Path):
        return DebertaConfig.from_hf(path), json.loads(path.read_text(encoding="utf-8"))
    raw = json.loads(path.read_text(encoding="utf-8"))
    return DebertaConfig.from_hf(raw), raw


def _config_file(directory: Place, file: str) -> Place | None:
    names = ["config.json", "model_config.json"]
    if "generator" in file:
        names.insert(0, "generator_config.json")
    return next((directory / name for name in names if (directory / name).is_file()), None)


def plan_head(source: Source, wish: Wish) -> Plan:
    """The account for one head, before anything is read. Raises InputError where it does not add up."""
    choice = choose_head(wish, source.config, source.found, labelled=source.labelled, where=source.checkpoint.path)
    return make_plan(
        source.checkpoint, source.found, choice.config, choice.parts, choice.labels,
        new=choice.new, may_be_new=wish.new_head, notes=(*source.notes, *choice.notes),
    )  # fmt: skip


def plan_all(source: Source) -> Plan:
    """The account for every head that the file has. Raises InputError where it does not add up."""
    single = any("MultipleChoice" in name for name in source.architectures)
    choice = choose_all(source.config, source.found, labelled=source.labelled or single)
    return make_plan(
        source.checkpoint, source.found, choice.config, choice.parts, choice.labels,
        new={}, may_be_new=False, notes=(*source.notes, *choice.notes),
    )  # fmt: skip


def make_report(name: str | Path, source: Source, plan: Plan, notes: Sequence[str] = ()) -> Report:
    files = tuple(file.name for file in source.checkpoint.files)
    return Report(str(name), files, plan.config, plan.parts, plan.tensors, plan.targets, (*plan.notes, *notes))


def load(
    name: str | Path,
    head: str = "encoder",
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    attention: str = "auto",
    remat: str = "none",
    scan: bool = True,
    num_labels: int | None = None,
    id2label: Sequence[str] | Mapping[int, str] | None = None,
    new_head: jax.Array | None = None,
    revision: str | None = None,
    shardings: Any = None,
    strict: bool = False,
) -> tuple[Model, dict[str, Any], Report]:
    """``from_pretrained`` with the account of it.

    Args:
      shardings: a tree of ``jax.sharding.Sharding`` like that of the parameters; each array is put there as soon as it
        is read, so that the host never holds two of them. None: the default device.
      strict: NaN or infinity in the weights is an error; otherwise the report notes it.

    Raises:
      InputError: as ``from_pretrained``.
    """
    as_dtype(dtype)
    source = open_source(name, revision=revision)
    plan = plan_head(source, Wish(head, num_labels, id2label, new_head is not None))
    model = MODELS[head](plan.config, dtype, param_dtype, attention, remat, scan)
    placed = _flatten(shardings, head)
    params: dict[str, Any] = {}
    broken: list[str] = []
    for path in plan.fills:
        value = _leaf(source, plan, path, as_dtype(param_dtype), placed.get(path), broken)
        _insert(params, path, value)
    if broken and strict:
        raise InputError(f"{source.checkpoint.path}: {broken_note(broken)}")
    fresh = [row for row in plan.targets if row.initialised]
    if new_head is not None and fresh:
        for path, value in draw_leaves(model, fresh, new_head, placed).items():
            _insert(params, path, value)
    report = make_report(name, source, plan, [broken_note(broken)] if broken else [])
    for line in (*(f"initialised {row.path}: {row.reason}" for row in fresh), *report.notes):
        logger.info("%s: %s", name, line)
    return model, params[ENCODER] if head == "encoder" else params, report


def from_pretrained(
    name_or_dir: str | Path,
    head: str = "encoder",
    *,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
    attention: str = "auto",
    remat: str = "none",
    scan: bool = True,
    num_labels: int | None = None,
    id2label: Sequence[str] | Mapping[int, str] | None = None,
    new_head: jax.Array | None = None,
    revision: str | None = None,
) -> tuple[Model, dict[str, Any]]:
    """A model with the weights of a directory, a file of weights, or a hub id.

    Args:
      name_or_dir: a model directory (Hugging Face's layout or ours), a file of weights beside its config, ``org/model``
        on the hub, or ``org/model/file``.
      head: ``encoder``, ``masked-lm``, ``sequence-classification``, ``token-classification``, ``question-answering``,
        ``multiple-choice`` or ``replaced-token-detection``.
      dtype: of the computation. param_dtype: of the parameters, whatever the file stores.
      attention, remat, scan: fields of the model, see ``models.Model``.
      num_labels, id2label: of the classifier. Where the file's classifier is another, an error unless ``new_head``.
      new_head: a key. Head tensors that the file lacks are initialised with it, and logged; without it their absence
        is an error.
      revision: of a hub id: branch, tag or commit.

    Returns:
      The model and its parameters, a plain nested dict of arrays.

    Raises:
      InputError: what cannot be read; a tensor of the file or of the model without an explanation (the message lists
        all of them); a head that the file lacks; the masked-LM head of a discriminator.
    """
    model, params, _ = load(
        name_or_dir, head, dtype=dtype, param_dtype=param_dtype, attention=attention, remat=remat, scan=scan,
        num_labels=num_labels, id2label=id2label, new_head=new_head, revision=revision,
    )  # fmt: skip
    return model, params


def _leaf(
    source: Source, plan: Plan, path: str, dtype: np.dtype, sharding: Any, broken: list[str]
) -> jax.Array:  # fmt: skip
    """One leaf on its devices; ``broken`` gets its path if it has a NaN or an infinity."""
    if source.checkpoint.place is not None:
        value = source.checkpoint.place(path, dtype, sharding)
        if not bool(jnp.isfinite(value).all()):
            broken.append(path)
        return value
    array = read_leaf(plan, path, dtype)
    if not is_finite(array):
        broken.append(path)
    return jax.device_put(array, sharding)


def draw_leaves(
    model: Model, fresh: Sequence[TargetRow], key: jax.Array, placed: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Fresh values by path of the leaves that a file lacks, on the devices that ``placed`` names, float32 by default.

    The compiler drops the draws of all others.
    """

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        tree = init_params(model, key)
        return {row.path: _lookup(tree, row.path) for row in fresh}

    return jax.jit(draw, out_shardings={row.path: placed.get(row.path) for row in fresh})(key)


def _insert(tree: dict[str, Any], path: str, value: Any) -> None:
    *groups, last = path.split("/")
    for group in groups:
        tree = tree.setdefault(group, {})
    tree[last] = value


def _lookup(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _flatten(tree: Any, head: str) -> dict[str, Any]:
    """Leaves of a tree by path; a bare encoder's paths get the word ``deberta`` in front, as the table's have it."""
    if tree is None:
        return {}
    if head == "encoder":
        tree = {ENCODER: tree}
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(key.key for key in path): leaf for path, leaf in leaves}
