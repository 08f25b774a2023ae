"""One checkpoint into another, tensor by tensor: nothing of a model's size is ever in memory."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from deberta_jax.errors import InputError
from deberta_jax.weights import names as table
from deberta_jax.weights.account import Plan
from deberta_jax.weights.choose import Wish
from deberta_jax.weights.load import Source, make_report, open_source, plan_all, plan_head
from deberta_jax.weights.orbax_files import PARAMS, PendingLeaf, write_orbax
from deberta_jax.weights.output import check_free, staged
from deberta_jax.weights.report import Report
from deberta_jax.weights.safetensors_file import Pending
from deberta_jax.weights.save import Layout, hf_config, json_text, parse_size, torch_tensors, write_weights
from deberta_jax.weights.values import as_dtype, broken_note, is_finite, read_layers

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "spm.model",
    "vocab.json", "merges.txt", "vocab.txt", "bpe_encoder.bin",
)  # fmt: skip


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    to: Literal["hf", "orbax"],
    dtype: Any = None,
    head: str | None = None,
    layout: Layout = "hf",
    max_shard_size: str | int = "5GB",
    revision: str | None = None,
    strict: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Writes a checkpoint of any published form as a model directory, or as an Orbax checkpoint.

    Args:
      source: a directory, a file of weights beside its config, an Orbax checkpoint or training state, a hub id.
      destination: a new directory (or a model directory, whose files are replaced); for ``orbax`` also ``gs://...``.
      to: ``hf``: config.json, model.safetensors and the tokenizer's files. ``orbax``: config.json, the tokenizer's
        files and ``params/``, an Orbax checkpoint of the parameter tree.
      dtype: f32, bf16 or f16; None keeps what the file has.
      head: one head; None keeps every head the file has.
      layout: for ``hf``, ``microsoft`` names tensors as Microsoft's code does.
      max_shard_size: for ``hf``, larger files are split.
      revision: of a hub id.
      strict: NaN or infinity in the weights is an error; otherwise the report notes it.
      progress: called with the number of tensors written, and of all, after each.

    Returns:
      The account.

    Raises:
      InputError: as ``load``; nothing is written then.
    """
    kind = None if dtype is None else as_dtype(dtype)
    cloud = to == "orbax" and "://" in str(destination)
    target = Path(destination).expanduser()
    parse_size(max_shard_size)
    if not cloud:
        check_free(target, overwrite=False)
    opened = open_source(source, revision=revision)
    plan = plan_all(opened) if head is None else plan_head(opened, Wish(head))
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
    if cloud:
        _to_cloud(epath.Path(str(destination)), plan, kind, config, files, broken, step)
        _check(broken, opened, strict)
    else:
        with staged(target) as stage:
            if to == "hf":
                write_weights(stage, tensors, max_shard_size)
            else:
                write_orbax(stage / PARAMS, orbax_leaves(plan, kind, broken, step))
            _check(broken, opened, strict)
            for file in files:
                shutil.copyfile(file, stage / file.name)
            (stage / "config.json").write_text(config, encoding="utf-8")
    notes = [broken_note(broken)] if broken else []
    if not files:
        notes.append("the source has no tokenizer files; the result has none")
    return make_report(source, opened, plan, notes)


def orbax_leaves(
    plan: Plan, dtype: np.dtype | None, broken: list[str], progress: Callable[[str], None]
) -> dict[str, PendingLeaf]:
    """The leaves of a plan, read when they are written. A bare encoder's tree is the encoder itself."""
    out = {}
    for path, (row, _, _) in plan.fills.items():
        kind = dtype or plan.dtype(path)
        shown = path if plan.parts else path.removeprefix(f"{table.ENCODER}/")
        read = _reader(plan, path, kind, broken, progress)
        out[shown] = PendingLeaf(plan.shapes[path], kind, row.layered, plan.config.hidden_size, read)
    return out


def _reader(plan: Plan, path: str, dtype: np.dtype, broken: list[str], progress: Callable[[str], None]):
    def read(start: int, stop: int) -> np.ndarray:
        value = read_layers(plan, path, start, stop, dtype)
        if path not in broken and not is_finite(value):
            broken.append(path)
        if stop in (0, plan.config.num_hidden_layers):
            progress(path)
        return value

    return read


def _to_cloud(
    target: epath.Path, plan: Plan, dtype: np.dtype | None, config: str, files: Sequence[Path], broken: list[str],
    progress: Callable[[str], None],
) -> None:  # fmt: skip
    """Orbax commits ``params`` at the end; config.json comes last, and without it nothing is a model directory."""
    if (target / "config.json").exists():
        raise InputError(f"{target}: holds a model already; give a new directory")
    write_orbax(target / PARAMS, orbax_leaves(plan, dtype, broken, progress))
    for file in files:
        (target / file.name).write_bytes(file.read_bytes())
    (target / "config.json").write_text(config)


def _check(broken: list[str], source: Source, strict: bool) -> None:
    if broken and strict:
        raise InputError(f"{source.checkpoint.path}: {broken_note(broken)}")


def _widest(tensors: Sequence[Pending]) -> np.dtype:
    """What config.json calls the dtype: that of the file, or the widest in it."""
    return max((tensor.dtype for tensor in tensors), key=lambda dtype: dtype.itemsize)
