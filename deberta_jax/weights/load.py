"""Loads a model directory, file or hub id: returns the model, its parameters, and a report of every tensor."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from deberta_jax.errors import InputError, printable, shown
from deberta_jax.models import (
    DebertaEncoder,
    DebertaForMaskedLM,
    DebertaForMultipleChoice,
    DebertaForQuestionAnswering,
    DebertaForReplacedTokenDetection,
    DebertaForSequenceClassification,
    DebertaForTokenClassification,
    Model,
    Runtime,
    head_spec,
    init_params,
)
from deberta_jax.ops.quantization import QuantizedArray
from deberta_jax.sharding import check_not_forked, sharded
from deberta_jax.weights import names as table
from deberta_jax.weights.account import Foreign, LoadPlan, plan_load
from deberta_jax.weights.checking import Check
from deberta_jax.weights.choose import Choice, HeadRequest, choose_all, choose_head
from deberta_jax.weights.names import ENCODER
from deberta_jax.weights.opening import Source, open_source
from deberta_jax.weights.quantization import Quantization, QuantizedLeaves, as_quantization, other_schemes
from deberta_jax.weights.report import Report, TargetRow
from deberta_jax.weights.trees import leaves_by_path, nested
from deberta_jax.weights.values import as_dtype, broken_note, broken_tensors, is_finite, read_part

logger = logging.getLogger(__name__)


def plan_head(source: Source, request: HeadRequest) -> LoadPlan:
    """Returns the plan for loading one head. No weights are read.

    For the encoder alone tensors of unknown heads are dropped.

    Raises:
      InputError: a tensor or a leaf is not explained, or the file cannot serve the head.
    """
    choice = choose_head(request, source.config, source.found, labelled=source.labelled, where=source.checkpoint.path)
    foreign: Foreign = "dropped" if request.head == "encoder" else "refused"
    return _plan(source, choice, may_be_new=request.new_head, foreign=foreign)


def plan_all(source: Source, *, foreign: Foreign = "refused") -> LoadPlan:
    """Returns the plan for loading every head that the file has. Raises InputError as ``plan_head``."""
    single = any("MultipleChoice" in name for name in source.architectures)
    choice = choose_all(source.config, source.found, labelled=source.labelled or single)
    return _plan(source, choice, may_be_new=False, foreign=foreign)


def _plan(source: Source, choice: Choice, *, may_be_new: bool, foreign: Foreign) -> LoadPlan:
    return plan_load(
        source.checkpoint,
        source.found,
        choice.config,
        choice.parts,
        choice.labels,
        new=choice.new,
        may_be_new=may_be_new,
        notes=(*source.notes, *choice.notes),
        outside=source.outside,
        rows=source.rows,
        foreign=foreign,
    )


def make_report(name: str | Path, source: Source, plan: LoadPlan, notes: Sequence[str] = ()) -> Report:
    """Returns the report of loading a source, called ``name`` in it, with the plan's notes and more."""
    files = tuple(file.name for file in source.checkpoint.files)
    return Report(str(name), files, plan.config, plan.parts, plan.tensors, plan.targets, (*plan.notes, *notes))


def load(
    name: str | Path,
    head: str = "encoder",
    runtime: Runtime = Runtime(),
    *,
    num_labels: int | None = None,
    id2label: Sequence[str] | Mapping[int, str] | None = None,
    new_head: jax.Array | int | None = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    shardings: Any = None,
    allow_non_finite: bool = False,
    check: Check = "sampled",
    quantization: Quantization | str | None = None,
) -> tuple[Model, dict[str, Any], Report]:
    """Loads a model as ``from_pretrained`` does, and also returns a report.

    Args:
      runtime: how the model is computed, and the dtype of its parameters.
      shardings: a tree like that of the parameters with a ``jax.sharding.Sharding`` for each, or a function that
        returns it for the model; every array is put on its devices before the next is read. Where they span several
        processes, all must call, and each reads the parts of its own devices. None: the default device.
      All others: as for ``from_pretrained``.

    Raises:
      InputError: as ``from_pretrained``.
    """
    check_not_forked()
    spec = head_spec(head)
    as_dtype(runtime.dtype)
    options = None if quantization == "none" else as_quantization(quantization)
    param_dtype = as_dtype(runtime.param_dtype)
    source = open_source(name, revision=revision, ignore=ignore, base_model=base_model, check=check)
    if check == "full":
        source.require_checked()
    if new_head is not None:
        new_head = random_key(new_head)
    plan = plan_head(source, HeadRequest(head, num_labels, id2label, new_head is not None))
    model = spec.model.create(plan.config, runtime)
    sharding_of = _flatten(shardings(model) if callable(shardings) else shardings, head)
    leaves: dict[str, Any] = {}
    broken: list[str] = []
    if options is not None and (others := other_schemes(plan, options.scheme)):
        logger.warning(
            "%s: is quantized already (%s) and now quantized again (%s), from values that are rounded twice",
            printable(str(name)),
            ", ".join(others),
            options.scheme,
        )
    quantized = QuantizedLeaves(plan, options)
    if options is not None:
        options.check_keep(plan.config, plan.parts)
    for path in plan.fills:
        value = None if quantization == "none" else quantized.leaf(path)
        if value is None:
            value = _leaf(source, plan, path, param_dtype, sharding_of.get(path), broken)
        else:
            value = _quantized_leaf(value, path, sharding_of, broken)
        leaves[path] = value
    broken = _broken_anywhere(list(plan.fills), broken, sharding_of)
    if broken and not allow_non_finite:
        names = table.collapse(broken_tensors(plan, broken))
        raise InputError(f"{source.checkpoint.path}: {broken_note(names)}")
    initialized = [row for row in plan.targets if row.initialised]
    if new_head is not None and initialized:
        leaves |= init_leaves(model, initialized, new_head, sharding_of)
    report = make_report(name, source, plan, [broken_note(broken)] if broken else [])
    for line in (*(f"initialised {row.path}: {row.reason}" for row in initialized), *report.notes):
        logger.info("%s: %s", name, printable(line))
    params = nested(leaves)
    return model, params[ENCODER] if head == "encoder" else params, report


class LoadOptions(TypedDict, total=False):
    """Holds the keyword arguments of ``from_pretrained``, which describes them."""

    dtype: Any
    param_dtype: Any
    attention: str
    remat: str
    scan: bool
    num_labels: int | None
    id2label: Sequence[str] | Mapping[int, str] | None
    new_head: jax.Array | int | None
    revision: str | None
    ignore: Sequence[str]
    base_model: str | Path | None
    allow_non_finite: bool
    check: Check
    quantization: Quantization | str | None


@overload
def from_pretrained(
    name_or_dir: str | Path, head: Literal["encoder"] = "encoder", **options: Unpack[LoadOptions]
) -> tuple[DebertaEncoder, dict[str, Any]]: ...
@overload
def from_pretrained(
    name_or_dir: str | Path, head: Literal["masked-lm"], **options: Unpack[LoadOptions]
) -> tuple[DebertaForMaskedLM, dict[str, Any]]: ...
@overload
def from_pretrained(
    name_or_dir: str | Path, head: Literal["sequence-classification"], **options: Unpack[LoadOptions]
) -> tuple[DebertaForSequenceClassification, dict[str, Any]]: ...
@overload
def from_pretrained(
    name_or_dir: str | Path, head: Literal["token-classification"], **options: Unpack[LoadOptions]
) -> tuple[DebertaForTokenClassification, dict[str, Any]]: ...
@overload
def from_pretrained(
    name_or_dir: str | Path, head: Literal["question-answering"], **options: Unpack[LoadOptions]
) -> tuple[DebertaForQuestionAnswering, dict[str, Any]]: ...
@overload
def from_pretrained(
    name_or_dir: str | Path, head: Literal["multiple-choice"], **options: Unpack[LoadOptions]
) -> tuple[DebertaForMultipleChoice, dict[str, Any]]: ...
@overload
def from_pretrained(
    name_or_dir: str | Path, head: Literal["replaced-token-detection"], **options: Unpack[LoadOptions]
) -> tuple[DebertaForReplacedTokenDetection, dict[str, Any]]: ...
@overload
def from_pretrained(
    name_or_dir: str | Path, head: str, **options: Unpack[LoadOptions]
) -> tuple[Model[Any], dict[str, Any]]: ...
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
    new_head: jax.Array | int | None = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    allow_non_finite: bool = False,
    check: Check = "sampled",
    quantization: Quantization | str | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Loads a model with the weights of a directory, a file of weights, or a hub id.

    Prefixes that training programs add to the names of a model's tensors are removed, which is logged.

    Args:
      name_or_dir: a model directory (Hugging Face's layout or ours, or a peft adapter's), a file of weights beside its
        config, ``org/model`` on the hub, or ``org/model/file``.
      head: ``encoder``, ``masked-lm``, ``sequence-classification``, ``token-classification``, ``question-answering``,
        ``multiple-choice`` or ``replaced-token-detection``; or a head that was added to ``models.HEADS``.
      dtype: dtype of the computation.
      param_dtype: dtype of the parameters, whatever the file stores.
      attention, remat, scan: fields of the model, see ``models.Model``.
      num_labels, id2label: the labels of the classifier. If the file's classifier has others, ``new_head`` is needed.
      new_head: a random key, or the seed of one. Head tensors that the file lacks are initialized with it, and logged.
        Without it they are an error.
      revision: branch, tag or commit of a hub id.
      ignore: patterns (``*``, ``?``) of tensors to leave out, such as ``["crf.*"]`` for a head that is not known here.
        Not needed for the encoder alone.
      base_model: the base of a peft adapter, a directory or hub id; None: the one that its adapter_config.json names.
      allow_non_finite: whether weights may be NaN or infinite, which is then logged; otherwise they are an error.
      check: ``save_pretrained`` and ``convert`` list digests of the files in checksums.json. ``sampled`` compares all
        sizes, small files and a few blocks of large ones with that list, if there is one; ``full`` compares every byte.
      quantization: ``int8``, ``int4`` or ``nf4``, or a ``Quantization``: how the matrices of dense layers are
        quantized; they are dequantized layer by layer where they are used, and cannot be trained. ``none``: a quantized
        model is dequantized. None: everything is as in the file.

    Returns:
      The model and its parameters, a plain nested dict of arrays; quantized ones are ``QuantizedArray``.

    Raises:
      InputError: the source cannot be read; a tensor of the file or of the model is not explained (the message lists
        all of them); the file lacks the head; the masked-LM head of a discriminator is asked for; a file is damaged; a
        weight is NaN or infinite; or a full check is not possible, because the weights are on no list.
    """
    model, params, _ = load(
        name_or_dir,
        head,
        Runtime(dtype, param_dtype, attention, remat, scan),
        num_labels=num_labels,
        id2label=id2label,
        new_head=new_head,
        revision=revision,
        ignore=ignore,
        base_model=base_model,
        allow_non_finite=allow_non_finite,
        check=check,
        quantization=quantization,
    )
    return model, params


def random_key(value: jax.Array | int) -> jax.Array:
    """Returns a random key, made from a seed if one is given. Raises InputError for another value."""
    if isinstance(value, int) and not isinstance(value, bool):
        return jax.random.key(value)
    if not isinstance(value, jax.Array):
        raise InputError(f"new_head={shown(value)}: give a seed, such as 0, or a random key")
    return value


def _leaf(source: Source, plan: LoadPlan, path: str, dtype: np.dtype, sharding: Any, broken: list[str]) -> jax.Array:
    """Returns one leaf on its devices. Appends its path to ``broken`` if it has a NaN or an infinity."""
    if source.checkpoint.read_sharded is not None:
        value = source.checkpoint.read_sharded(path, dtype, sharding)
        if not bool(jnp.isfinite(value).all()):
            broken.append(path)
        return value

    def read(index: Sequence[slice]) -> np.ndarray:
        array = read_part(plan, path, index, dtype)
        if not is_finite(array):
            broken.append(path)
        return array

    return jax.device_put(read(())) if sharding is None else sharded(plan.shapes[path], sharding, read)


def _quantized_leaf(
    leaf: QuantizedArray, path: str, sharding_of: Mapping[str, Any], broken: list[str]
) -> QuantizedArray:
    """Returns a quantized leaf on its devices. Appends its path to ``broken`` if a scale is NaN or infinite."""
    scales = (leaf.scales, leaf.nested_scales, leaf.offset)
    if not all(np.isfinite(array).all() for array in scales if array is not None and array.dtype.kind == "f"):
        broken.append(path)

    def put(keys: Any, array: np.ndarray) -> jax.Array:
        sharding = sharding_of.get(f"{path}/{keys[0].key}")
        return jax.device_put(array) if sharding is None else sharded(array.shape, sharding, array.__getitem__)

    return jax.tree_util.tree_map_with_path(put, leaf)


def _broken_anywhere(paths: Sequence[str], broken: Sequence[str], shardings: Mapping[str, Any]) -> list[str]:
    """Returns the paths of leaves that have a NaN or an infinity in any process: each reads its own parts alone."""
    if all(sharding.is_fully_addressable for sharding in shardings.values()):
        return list(broken)
    found = multihost_utils.process_allgather(np.array([path in broken for path in paths]))
    return [path for path, wrong in zip(paths, np.any(found, axis=0), strict=True) if wrong]


def init_leaves(
    model: Model, rows: Sequence[TargetRow], key: jax.Array, shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Initializes the leaves that a file lacks.

    Args:
      rows: the leaves.
      key: random key.
      shardings: from paths to shardings; leaves without one are put on the default device.

    Returns:
      The leaves by path, in the model's ``param_dtype``.
    """

    # The compiler removes the computation of all other leaves.
    def initialize(key: jax.Array) -> dict[str, jax.Array]:
        tree = init_params(model, key)
        return {row.path: _lookup(tree, row.path) for row in rows}

    return jax.jit(initialize, out_shardings={row.path: shardings.get(row.path) for row in rows})(key)


def _lookup(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _flatten(tree: Any, head: str) -> dict[str, Any]:
    """Returns the leaves of a tree by path. Paths of an encoder alone get the prefix ``deberta/``, as rows have it."""
    if tree is None:
        return {}
    return leaves_by_path({ENCODER: tree} if head == "encoder" else tree)
