"""Opens models by name: their weights under canonical names and their config, before a head is chosen."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deberta_jax import hub, storage
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, brief, listed
from deberta_jax.storage import AnyPath
from deberta_jax.weights import adapters
from deberta_jax.weights.checking import Check, Checked, check_files
from deberta_jax.weights.differences import fold_differences
from deberta_jax.weights.directories import explain_directory
from deberta_jax.weights.orbax_files import find_orbax, read_orbax
from deberta_jax.weights.quantized_tensors import fold_quantized
from deberta_jax.weights.readers import find_weights, has_standard, read_weights
from deberta_jax.weights.rename import rename_tensors
from deberta_jax.weights.report import SourceRow
from deberta_jax.weights.source import Checkpoint, Tensor, kind
from deberta_jax.weights.wrappers import unwrap

_log = logging.getLogger(__name__)

_LONGEST_PATH = 4096

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spm.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "bpe_encoder.bin",
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Holds an opened model: its directory, its weights under canonical names, and its config."""

    directory: AnyPath
    """The directory that has the config and the tokenizer."""
    checkpoint: Checkpoint
    """The opened files."""
    found: Mapping[str, Tensor]
    """The tensors of the model by canonical name."""
    outside: Mapping[str, Tensor]
    """Tensors of the file that are outside the wrapped model, by their own names."""
    ignored: Mapping[str, tuple[str, ...]]
    """Names of tensors that the caller leaves out, with the patterns that match them."""
    config: DebertaConfig
    labelled: bool
    """Whether config.json gives the labels or their number."""
    architectures: tuple[str, ...]
    """The transformers classes that config.json names."""
    rows: tuple[SourceRow, ...]
    """Report rows of tensors whose use does not depend on the head: left out, or merged into others."""
    notes: tuple[str, ...]
    """Notes for the report."""
    checked: tuple[Checked, ...] = ()
    """The results of comparing its directories with the digests listed there; empty if nothing was to be compared."""
    renamed: bool = False
    """Whether tensors were renamed by rules of the caller."""

    def require_checked(self) -> None:
        """Checks that no file of weights is missing in the lists of digests. A stale list is accepted.

        Raises:
          InputError: a file is not listed.
        """
        files = [file for checked in self.checked for file in checked.files]
        for weights in map(storage.absolute, self.checkpoint.files):
            known = any(weights == file or weights in file.parents for file in files)
            if not known and not any(checked.stale for checked in self.checked):
                raise InputError(
                    f"{weights}: a full check is not possible, no {storage.CHECKSUMS} lists it; load it without one"
                )


def load_config(
    name: str | Path, *, revision: str | None = None, base_model: str | Path | None = None
) -> DebertaConfig:
    """Loads the config of a model directory or hub id without its weights. An adapter has the config of its base.

    Args:
      name: a directory, a file in one, a hub id, or the URL of one in a bucket.
      revision: branch, tag or commit of a hub id.
      base_model: the base of an adapter; None is the one that its adapter_config.json names.

    Raises:
      InputError: there is no such directory or hub id, or its config.json cannot be used.
    """
    file = hub.split_file(str(name))[1]
    directory = hub.resolve(name, revision=revision, files=["*.json"])
    if _config_file(directory, file or "") is None and (directory / adapters.CONFIG).is_file():
        return _read_config(_base_directory(directory, base_model, files=["*.json"]), "", None)[0]
    return _read_config(directory, file or "", None)[0]


def tokenizer_directory(name: str | Path, *, base_model: str | Path | None = None) -> Path:
    """Returns the directory that has the tokenizer of a model: its own, or that of an adapter's base.

    The weights of a hub id are not downloaded.

    Raises:
      InputError: there is no such directory or hub id, it holds no model, or the base cannot be opened.
    """
    directory = hub.resolve(name, files=hub.TEXT_FILES)
    if _has_tokenizer(directory):
        return directory
    if not (directory / adapters.CONFIG).is_file():
        said = explain_directory(directory)
        if said is not None:
            raise InputError(f"{directory}: {said}")
        return directory
    base = _base_directory(directory, base_model, files=hub.TEXT_FILES)
    _log.info("%s: has no tokenizer; that of its base model %s is used", directory, base)
    return base


def open_source(
    name: str | Path,
    *,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    must_match: bool = True,
    check: Check | None = "sampled",
    rename: Sequence[str] = (),
) -> Source:
    """Opens a directory or a file in one, local or in a bucket, or a hub id. Reads no weights yet.

    Args:
      name: the name of the model.
      revision: branch, tag or commit of a hub id.
      ignore: glob patterns of tensors to leave out.
      base_model: the base of a peft adapter; None is the one that its adapter_config.json names.
      must_match: whether a pattern of ``ignore`` that matches no tensor is an error.
      check: how thoroughly the files are compared with the digests listed beside them, see ``weights.checking``; None:
        not at all.
      rename: rules ``REGEX=REPL`` for the names of the tensors in a file of weights, see ``weights.rename``.

    Raises:
      InputError: the model cannot be read, or its files are damaged.
    """
    for option, value in (("ignore", ignore), ("rename", rename)):
        if isinstance(value, str):
            raise InputError(f"{option}={value!r}: give a list of patterns")
    orbax = _orbax_in_bucket(name)
    if orbax is not None:
        with storage.reaching(name) as path:
            source = _open_orbax(path, orbax, ignore, check)
    else:
        file = hub.split_file(str(name))[1]
        directory = hub.resolve(name, revision=revision)
        adapter = adapters.find_adapter(directory, file, whole=has_standard(directory))
        if adapter is not None:
            source = _open_adapter(directory, adapter, base_model, ignore, check)
        elif base_model is not None:
            raise InputError(f"{name}: is no peft adapter; a base model goes with an adapter alone")
        else:
            source = _open_whole(directory, file, ignore, check, rename)
    if rename and not source.renamed:
        raise InputError(f"{name}: tensors are renamed in files of weights alone, not in an adapter or for Orbax")
    used = {pattern for patterns in source.ignored.values() for pattern in patterns}
    idle = [pattern for pattern in ignore if pattern not in used]
    if idle and must_match:
        raise InputError(f"{source.checkpoint.path}: ignore {listed(idle)}: matches no tensor of the file")
    return source


def _open_whole(
    directory: Path, file: str | None, ignore: Sequence[str], check: Check | None, rename: Sequence[str] = ()
) -> Source:
    """Opens a local model that is no adapter."""
    orbax = None if file or has_standard(directory) else find_orbax(directory)
    if orbax is not None:
        return _open_orbax(directory, orbax, ignore, check)
    said = None if file else explain_directory(directory)
    if said is not None:
        raise InputError(f"{directory}: {said}")
    checked = () if check is None else (check_files(directory, check),)
    checkpoint = read_weights(directory / file if file else find_weights(directory))
    config, raw = _read_config(directory, checkpoint.path.name, checkpoint.config)
    checkpoint, notes = rename_tensors(checkpoint, rename)
    source = _make_source(directory, checkpoint, config, raw, ignore)
    return dataclasses.replace(source, checked=checked, notes=(*notes, *source.notes), renamed=bool(rename))


def _orbax_in_bucket(name: str | Path) -> AnyPath | None:
    """Returns the Orbax checkpoint in a bucket, which is read there; None for files, which are copied first."""
    if not storage.is_remote(name):
        return None
    with storage.reaching(name) as path:
        return None if path.is_file() or has_standard(path) else find_orbax(path)


def _open_orbax(directory: AnyPath, orbax: AnyPath, ignore: Sequence[str], check: Check | None) -> Source:
    """Opens an Orbax checkpoint; its config is in the directory or at most three levels above."""
    above = (directory, *storage.absolute(directory).parents[:3])
    home = next((path for path in above if _config_file(path, "")), directory)
    checked: tuple[Checked, ...] = ()
    if check is not None:
        # The list of a converted checkpoint, and of a step of a training state, is beside the directory of the arrays.
        arrays = next(
            (path for path in (orbax, storage.absolute(orbax).parent) if (path / storage.CHECKSUMS).is_file()), orbax
        )
        checked = (check_files(arrays, check),)
        if storage.absolute(arrays) != storage.absolute(home):
            checked = (*checked, check_files(home, check, ("config.json", *TOKENIZER_FILES)))
    config, raw = _read_config(home, "", None)
    return dataclasses.replace(_make_source(directory, read_orbax(orbax, config), config, raw, ignore), checked=checked)


def _open_adapter(
    directory: Path, path: Path, base_model: str | Path | None, ignore: Sequence[str], check: Check | None
) -> Source:
    """Opens a base model and merges an adapter into it. The adapter's own config and tokenizer come first."""
    home = _base_directory(directory, base_model)
    base = _open_whole(home, hub.split_file(str(base_model))[1] if base_model is not None else None, ignore, check)
    checked = () if check is None else (check_files(directory, check),)
    checkpoint = read_weights(path)
    own = unwrap(checkpoint, ignore)
    both = adapters.overlay(base.found, own.tensors)
    merged = adapters.merge_updates(both.tensors, adapters.read_adapter_config(directory), path, own_base=False)
    config, labelled, architectures = base.config, base.labelled, base.architectures
    if _config_file(directory, ""):
        config, raw = _read_config(directory, "", None)
        labelled, architectures = _said(raw)
    elif (head := own.tensors.get("classifier.weight")) is not None and head.shape[:1] != (config.num_labels,):
        labelled = False  # the adapter's classifier has other labels than the base
    files = (path, *base.checkpoint.files)
    return Source(
        directory if _has_tokenizer(directory) else base.directory,
        # Without ``read_sharded``: the arrays of the base are not those of the merged model.
        Checkpoint(path, files, {**base.checkpoint.tensors, **checkpoint.tensors}, left=base.checkpoint.left),
        merged.tensors,
        {**base.outside, **own.outside},
        {**base.ignored, **own.ignored},
        config,
        labelled,
        architectures,
        (*base.rows, *both.rows, *_left_out(checkpoint, own.ignored), *merged.rows),
        (*base.notes, f"a peft adapter of the base model {home}", *own.notes, *merged.notes),
        (*checked, *base.checked),
    )


def _make_source(
    directory: AnyPath, checkpoint: Checkpoint, config: DebertaConfig, raw: Mapping[str, Any], ignore: Sequence[str]
) -> Source:
    """Brings the tensors of a checkpoint to canonical names and merges updates and differences into them."""
    own = unwrap(checkpoint, ignore)
    quantized = fold_quantized(own.tensors, checkpoint.path)
    merged = adapters.Merged(quantized.tensors)
    if adapters.holds_updates(quantized.tensors):
        settings = adapters.read_adapter_config(directory) if isinstance(directory, Path) else {}
        merged = adapters.merge_updates(quantized.tensors, settings, checkpoint.path, own_base=True)
    found, notes = fold_differences(merged.tensors, config, directory, checkpoint.path)
    notes = (*own.notes, *quantized.notes, *merged.notes, *notes)
    if checkpoint.left:
        notes = (*notes, f"not weights, not read: {listed(checkpoint.left)}")
    return Source(
        directory,
        checkpoint,
        found,
        own.outside,
        own.ignored,
        config,
        *_said(raw),
        (*_left_out(checkpoint, own.ignored), *quantized.rows, *merged.rows),
        notes,
    )


def _left_out(checkpoint: Checkpoint, ignored: Mapping[str, tuple[str, ...]]) -> tuple[SourceRow, ...]:
    """Returns the report rows of tensors that the caller leaves out."""
    tensors = ((checkpoint.tensors[name], patterns) for name, patterns in ignored.items())
    return tuple(
        SourceRow(t.name, t.shape, kind(t.dtype), "dropped", f"left out by ignore {listed(patterns)}")
        for t, patterns in tensors
    )


def _said(raw: Mapping[str, Any]) -> tuple[bool, tuple[str, ...]]:
    """Returns whether a config gives labels, and the transformers classes that it names."""
    labelled = any(raw.get(key) is not None for key in ("id2label", "label2id", "num_labels"))
    classes = raw.get("architectures")
    names = classes if isinstance(classes, list) else ()
    return labelled, tuple(name for name in names if isinstance(name, str))


def model_directories(name: str | Path, *, base_model: str | Path | None = None) -> list[Path]:
    """Returns the directories that a model is loaded from: its own, and of an adapter that of its base model.

    Raises:
      InputError: as ``open_source``.
    """
    directory = hub.resolve(name)
    if base_model is None and not (directory / adapters.CONFIG).is_file():
        return [directory]
    return [directory, _base_directory(directory, base_model)]


def _base_directory(directory: Path, base_model: str | Path | None, files: Sequence[str] | None = None) -> Path:
    """Returns the directory of an adapter's base model: ``base_model``, or the one in adapter_config.json."""
    settings = adapters.read_adapter_config(directory)
    named = base_model if base_model is not None else settings.get("base_model_name_or_path")
    advice = "give it (base_model=..., on the command line --base-model DIR)"
    if not isinstance(named, str | Path) or not 0 < len(str(named)) <= _LONGEST_PATH or not str(named).isprintable():
        raise InputError(f"{directory}: a peft adapter that names no base model; {advice}")
    beside = directory / named
    if base_model is None and not Path(named).is_dir() and beside.is_dir():
        return beside
    revision = settings.get("revision") if base_model is None else None
    try:
        return hub.resolve(named, revision=revision if isinstance(revision, str) else None, files=files)
    except InputError as error:
        why = str(error).removeprefix(f"{named}: ")
        raise InputError(f"{directory}: a peft adapter of the base model {brief(named)}: {why}; {advice}") from None


def _has_tokenizer(directory: Path) -> bool:
    return any((directory / file).is_file() for file in TOKENIZER_FILES)


def _read_config(
    directory: AnyPath, file: str, inside: Mapping[str, Any] | None
) -> tuple[DebertaConfig, Mapping[str, Any]]:
    """Returns the config of a file of weights, parsed and as it is stored.

    Args:
      directory: the directory of the model.
      file: name of the file of weights, or "".
      inside: a config that the file of weights contains, used if there is no other.
    """
    path = _config_file(directory, file)
    if path is None and inside is not None:
        return DebertaConfig.from_hf(inside), inside
    said = explain_directory(directory) if path is None and isinstance(directory, Path) else None
    if said is not None:
        raise InputError(f"{directory}: {said}")
    path = path or directory / "config.json"
    if isinstance(path, Path):
        return DebertaConfig.from_hf(path), storage.read_json_object(path)
    raw = storage.read_json_object(path)
    return DebertaConfig.from_hf(raw), raw


def _config_file(directory: AnyPath, file: str) -> AnyPath | None:
    """Returns the path of the config of a file of weights, or None if there is none."""
    names = ["config.json", "model_config.json"]
    if "generator" in file:
        names.insert(0, "generator_config.json")
    return next((directory / name for name in names if (directory / name).is_file()), None)
