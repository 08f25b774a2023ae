"""Converts checkpoints tensor by tensor, so a whole model is never in memory."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.models import HEADS, head_spec
from deberta_jax.storage import AnyPath
from deberta_jax.weights import names as table
from deberta_jax.weights.account import LoadPlan
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import init_leaves, make_report, plan_all, plan_head, random_key
from deberta_jax.weights.opening import TOKENIZER_FILES, Source, open_source
from deberta_jax.weights.orbax_files import PARAMS, PendingLeaf
from deberta_jax.weights.output import check_free, staged_model
from deberta_jax.weights.report import Report
from deberta_jax.weights.safetensors_file import Pending
from deberta_jax.weights.save import TensorNames, hf_config, json_text, parse_size, torch_tensors, write_weights
from deberta_jax.weights.source import Tensor
from deberta_jax.weights.values import as_dtype, broken_note, is_finite, read_part


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: Literal["hf", "orbax"],
    dtype: Any = None,
    head: str | None = None,
    id2label: Sequence[str] | Mapping[int, str] | None = None,
    new_head: jax.Array | int | None = None,
    layout: TensorNames = "hf",
    max_shard_size: str | int = "5GB",
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    strict: bool = False,
    rename: Sequence[str] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Converts a checkpoint of any supported format to a model directory or an Orbax checkpoint.

    The files of the source are compared with the digests in its checksums.json, if it has one. A result on a local disk
    gets such a list.

    Args:
      source: a directory, a file of weights beside its config, an Orbax checkpoint or training state, a peft adapter,
        or a hub id.
      destination: a new directory, or a model directory, whose files are replaced; for ``orbax`` local or ``gs://``.
      to: ``hf`` writes config.json, model.safetensors and the tokenizer files; ``orbax`` writes config.json, the
        tokenizer files and ``params/``, an Orbax checkpoint of the parameter tree.
      dtype: f32, bf16 or f16; None keeps the dtypes of the file.
      head: the head to keep; None keeps all heads of the file.
      id2label, new_head: labels and random key or seed for a new head, as in ``from_pretrained``; only with ``head``.
      layout: for ``hf``, ``microsoft`` names tensors as Microsoft's code does.
      max_shard_size: for ``hf``, larger files are split.
      revision: branch, tag or commit of a hub id.
      ignore, base_model: as in ``from_pretrained``.
      rename: rules ``REGEX=REPL`` that are applied to the names of the file's tensors in order, as ``re.sub`` does,
        such as ``["^bert\\.=deberta."]``.
      strict: whether NaN or infinity in the weights is an error; otherwise the report notes it.
      progress: called after each tensor with the number of tensors written and the number of all.

    Returns:
      The report of what became of every tensor.

    Raises:
      InputError: as ``load``; nothing is written then.
    """
    kind = None if dtype is None else as_dtype(dtype)
    target = storage.as_path(destination)
    _check_destination(target, to, max_shard_size)
    key = _head_key(head, id2label, new_head)
    opened = open_source(source, revision=revision, ignore=ignore, base_model=base_model, check="full", rename=rename)
    plan = _plan(opened, head, id2label, key)
    broken: list[str] = []
    bare = not plan.parts and layout == "hf"
    done = itertools.count(1)
    step: Callable[[str], None] = lambda name: progress(next(done), len(tensors) if to == "hf" else len(plan.fills))
    tensors = torch_tensors(
        plan.config, plan.parts, plan.sizes["C"], plan, kind, layout, bare=bare, broken=broken, progress=step
    )
    known = opened.architectures if head is None else ()
    config = json_text(hf_config(plan.config, plan.parts, plan.sizes["C"], _widest(tensors), known))
    files = [opened.directory / name for name in TOKENIZER_FILES if (opened.directory / name).is_file()]
    if to == "orbax" and not isinstance(target, Path):
        with storage.reaching(target):
            _to_bucket(target, orbax_leaves(plan, kind, broken, step))
            _check(broken, opened, strict)
            write_other_files(target, files, config)
    else:
        with staged_model(target, PARAMS, *TOKENIZER_FILES) as stage:
            if to == "hf":
                write_weights(stage, tensors, max_shard_size)
            else:
                _write_orbax(stage / PARAMS, orbax_leaves(plan, kind, broken, step), named=str(target))
            _check(broken, opened, strict)
            write_other_files(stage, files, config)
    notes = [broken_note(broken)] if broken else []
    if not files:
        notes.append("the source has no tokenizer files; the result has none")
    return make_report(source, opened, plan, notes)


def _plan(
    source: Source, head: str | None, id2label: Sequence[str] | Mapping[int, str] | None, new_head: jax.Array | None
) -> LoadPlan:
    """Returns the plan for the head to keep, with its new leaves; for None, the plan for all heads of the source."""
    if head is None:
        return plan_all(source)
    request = HeadRequest(head, None, id2label, new_head is not None)
    return _with_new_leaves(plan_head(source, request), head, new_head)


def _check_destination(target: AnyPath, to: str, max_shard_size: str | int) -> None:
    """Raises InputError for a destination that cannot be written, or a size that is not one."""
    parse_size(max_shard_size)
    if to == "orbax" and storage.is_remote(target, ("gs",)):  # Orbax writes to no other bucket
        storage.check_output_directory("", target)
    else:
        check_free(target, overwrite=False)


def _head_key(
    head: str | None, id2label: Sequence[str] | Mapping[int, str] | None, new_head: jax.Array | int | None
) -> jax.Array | None:
    """Returns the random key of a new head. Raises InputError for labels or a new head without a head for them."""
    if head is None and (new_head is not None or id2label is not None):
        raise InputError("a new head, or labels: of which head? Name it (head=..., on the command line --head)")
    if id2label is not None and head in HEADS and not HEADS[head].named_labels:
        raise InputError(f"labels: {head} has none to choose")
    return None if new_head is None else random_key(new_head)


def write_other_files(directory: AnyPath, files: Sequence[AnyPath], config: str) -> None:
    """Copies the tokenizer files and writes config.json last: a directory without it is no model directory."""
    for file in files:
        storage.write_bytes(directory / file.name, storage.read_bytes(file, storage.LARGE))
    storage.write_text(directory / "config.json", config)


def _with_new_leaves(plan: LoadPlan, head: str, key: jax.Array | None) -> LoadPlan:
    """Returns a plan in which the missing leaves of a head are initialized, in the dtype of the word embeddings."""
    fresh = [row for row in plan.targets if row.initialised]
    if key is None or not fresh:
        return plan
    dtype = plan.dtype(table.WORD_EMBEDDINGS)
    leaves = init_leaves(head_spec(head).model(plan.config), fresh, key, {})
    drawn = {path: np.asarray(leaf).astype(dtype) for path, leaf in leaves.items()}
    fills = dict(plan.fills)
    for row in table.table(plan.config, plan.parts):
        if drawn.keys() & set(row.tree):
            read = functools.partial(row.transform.to_torch, tuple(drawn[path] for path in row.tree), plan.sizes)
            tensor = Tensor(row.torch, row.torch_shape(plan.sizes), dtype, read)
            fills |= {path: (row, index, (tensor,)) for index, path in enumerate(row.tree)}
    return dataclasses.replace(plan, fills=fills)


def orbax_leaves(
    plan: LoadPlan, dtype: np.dtype | None, broken: list[str], progress: Callable[[str], None]
) -> dict[str, PendingLeaf]:
    """Returns the leaves of a plan by path; each is read when it is written.

    Args:
      plan: where each leaf comes from.
      dtype: dtype of the leaves; None keeps those of the file.
      broken: receives the paths of leaves with NaN or infinity.
      progress: called with the path after each leaf.

    Returns:
      The leaves by path. The paths of a bare encoder have no ``deberta/`` in front.
    """
    out = {}
    for path, (row, _, _) in plan.fills.items():
        kind = dtype or plan.dtype(path)
        shown = path if plan.parts else path.removeprefix(f"{table.ENCODER}/")
        read = _reader(plan, path, kind, broken, progress)
        out[shown] = PendingLeaf(plan.shapes[path], kind, row.layered, plan.config.hidden_size, read)
    return out


def _reader(plan: LoadPlan, path: str, dtype: np.dtype, broken: list[str], progress: Callable[[str], None]):
    """Returns a function that reads layers of a leaf and checks them for NaN and infinity."""

    def read(start: int, stop: int) -> np.ndarray:
        index = (slice(start, stop),) if plan.fills[path][0].layered else ()
        value = read_part(plan, path, index, dtype)
        if path not in broken and not is_finite(value):
            broken.append(path)
        if stop in (0, plan.config.num_hidden_layers):
            progress(path)
        return value

    return read


def _to_bucket(target: AnyPath, leaves: Mapping[str, PendingLeaf]) -> None:
    """Writes ``params`` below the target. Orbax marks it as complete at the end."""
    if (target / "config.json").exists():
        raise InputError(f"{target}: holds a model already; give a new directory")
    _write_orbax(target / PARAMS, leaves)


def _write_orbax(directory: AnyPath, leaves: Mapping[str, PendingLeaf], *, named: str | None = None) -> None:
    """Writes a checkpoint as ``write_orbax`` does, which is imported here because Orbax is slow to import."""
    from deberta_jax.weights.orbax_writer import write_orbax

    write_orbax(directory, leaves, named=named)


def _check(broken: list[str], source: Source, strict: bool) -> None:
    if broken and strict:
        raise InputError(f"{source.checkpoint.path}: {broken_note(broken)}")


def _widest(tensors: Sequence[Pending]) -> np.dtype:
    """Returns the dtype for config.json: the one of the tensors with the largest item size."""
    return max((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
