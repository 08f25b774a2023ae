"""Exports a model to a directory with StableHLO programs, their weights, the config and the tokenizer."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from deberta_jax import storage
from deberta_jax.errors import InputError, check_choice, shown
from deberta_jax.export.sources import Given, check_new, export_directory, open_exportable
from deberta_jax.export.stablehlo.programs import (
    PLATFORMS,
    Arrays,
    export_program,
    function_of,
    input_names,
)
from deberta_jax.models import Model, prepare_for_inference, spec_of_model
from deberta_jax.ops.attention.dropout import MAX_LENGTH
from deberta_jax.weights.safetensors_file import Pending, write_safetensors
from deberta_jax.weights.trees import leaves_by_path

DTYPES = ("float32", "bfloat16")
"""The choices of ``dtype``."""

LENGTHS = (128, 512)
"""Numbers of tokens that programs are made for if none are given."""

TOLERANCES: dict[str, float] = {"float32": 1e-4, "bfloat16": 0.1}
"""The largest difference with which a program is written, relative to the largest output."""

WEIGHTS, MANIFEST = "weights.safetensors", "programs.json"


@dataclasses.dataclass(frozen=True)
class StableHloExport:
    """Describes an exported model.

    Attributes:
      directory: where it was written.
      head: the head.
      lengths: the numbers of tokens that have a program.
      nbytes: size of the weights and the programs.
      difference: the largest difference between outputs of the programs and of the model on random inputs, relative to
        the largest output.
    """

    directory: storage.AnyPath
    head: str
    lengths: tuple[int, ...]
    nbytes: int
    difference: float


def export_stablehlo(
    source: Given,
    destination: str | Path,
    *,
    head: str | None = None,
    lengths: Sequence[int] = LENGTHS,
    dtype: str = "float32",
    tokenizer: Any = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> StableHloExport:
    """Writes a model as StableHLO, which JAX loads on CPUs, NVIDIA GPUs and TPUs without this package.

    The directory has ``stablehlo/length_128.bin`` for each length, ``stablehlo/weights.safetensors``,
    ``stablehlo/programs.json``, config.json and the tokenizer's files. A program takes any number of rows, for all
    three platforms in one file. ``jax.export.deserialize(bytes).call(weights, inputs)`` runs it: weights by name,
    inputs by name, int32 [B,T], or [B,C,T] for multiple choice; it returns the outputs by name in float32.

    Before the directory appears, the programs are deserialized, run and compared with the model.

    Args:
      source: a model directory, file or hub id, as for ``from_pretrained``; or a model and its parameters.
      destination: a new directory.
      head: the head; None: the one that config.json names in ``architectures`` or that the weights are of, or the
        model's.
      lengths: numbers of tokens; each gets a program, for rows that are padded to it.
      dtype: ``float32`` or ``bfloat16``: dtype of the weights and of the computation.
      tokenizer: an object with ``save(directory)``, or the directory or hub id of one; None: that of the source.
      revision, ignore, base_model: as for ``from_pretrained``.

    Returns:
      The size of the files and their difference from the model.

    Raises:
      InputError: the destination has contents; the source cannot be loaded or exported; a length is no number of
        tokens that the model can read, or needs more memory than there is; or the programs do not compute what the
        model does.
    """
    check_choice("dtype", dtype, DTYPES)
    target = storage.as_path(destination)
    _check_numbers(lengths)
    check_new(target)
    exported = open_exportable(source, head, tokenizer, revision=revision, ignore=ignore, base_model=base_model)
    model, params = exported.model, exported.params
    _check_lengths(model, lengths)
    weights_model, weights = _prepared(model, params, jnp.dtype(dtype))
    with export_directory(target, exported, dtype) as stage:
        folder = stage / "stablehlo"
        storage.make_directory(folder)
        difference = 0.0
        for length in lengths:
            with _enough_memory(length):
                program = export_program(weights_model, weights, length).serialize()
                storage.write_bytes(folder / _file(length), bytes(program))
                run = export.deserialize(program).call
                difference = max(difference, _difference(run, weights, model, params, length))
        if difference > TOLERANCES[dtype]:
            raise InputError(
                f"the {dtype} programs differ from the model by {difference:.2g} of the largest output, more than "
                f"{TOLERANCES[dtype]:g}; nothing is written"
            )
        _write_weights(folder / WEIGHTS, weights)
        storage.write_json(folder / MANIFEST, _manifest(weights_model, weights, lengths))
        size = sum(path.stat().st_size for path in folder.iterdir())
    return StableHloExport(target, exported.head, tuple(lengths), size, difference)


def _file(length: int) -> str:
    return f"length_{length}.bin"


@contextlib.contextmanager
def _enough_memory(length: int) -> Iterator[None]:
    """Raises InputError in place of the compiler's or the device's error about a lack of memory."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(f"lengths: {length} tokens need more memory than there is here; give fewer") from error


def _check_numbers(lengths: Sequence[int]) -> None:
    if isinstance(lengths, str) or not isinstance(lengths, Sequence):
        raise InputError(f"lengths={shown(lengths)}: give a list of numbers of tokens, such as [128, 512]")
    for length in lengths:
        if type(length) is not int or length < 1:
            raise InputError(f"lengths: {shown(length)} is no number of tokens")
        if length > MAX_LENGTH:
            raise InputError(f"lengths: {shown(length)} tokens are too many; give at most {MAX_LENGTH}")
    if not lengths or len(set(lengths)) != len(lengths):
        raise InputError(f"lengths={shown(list(lengths))}: give one or more different numbers of tokens")


def _check_lengths(model: Model, lengths: Sequence[int]) -> None:
    c = model.config
    for length in lengths:
        if c.has_position_table and length > c.max_position_embeddings:
            raise InputError(
                f"lengths: {length} tokens, but this model has absolute positions for {c.max_position_embeddings}"
            )


def _prepared(model: Model, params: Mapping[str, Any], dtype: Any) -> tuple[Model, dict[str, Any]]:
    """Returns the model as it is traced, and its weights by path, with the relative tables projected beforehand."""
    # ``auto`` would choose by the machine that exports; xla is on all platforms.
    model = model.clone(dtype=dtype, param_dtype=dtype, attention="xla", remat="none")
    model, params = prepare_for_inference(model, dict(params))
    return model, {path: jnp.asarray(leaf, dtype) for path, leaf in leaves_by_path(params).items()}


def _inputs(model: Model, rows: int, length: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields random inputs without padding and with padding."""
    random = np.random.default_rng(0)
    shape = (rows, 2, length) if spec_of_model(model)[1].model.reads_choices else (rows, length)
    ids = random.integers(0, model.config.vocab_size, shape)
    types = random.integers(0, max(1, model.config.type_vocab_size), shape)
    padded = np.arange(length) < random.integers(1, length + 1, (*shape[:-1], 1))
    for mask in (np.ones(shape, bool), padded):
        values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        yield {name: values[name].astype(np.int32) for name in input_names(model)}


def _difference(run: Any, weights: Arrays, model: Model, params: Mapping[str, Any], length: int) -> float:
    """Returns the largest difference of a program's outputs from the model's, relative to the largest output."""
    ours = jax.jit(function_of(model))
    largest, given = 0.0, leaves_by_path(params)
    for inputs in _inputs(model, 3, length):
        expected, found = ours(given, inputs), jax.jit(run)(weights, inputs)
        for name, value in expected.items():
            value, other = np.asarray(value), np.asarray(found[name])
            if not (np.isfinite(value).all() and np.isfinite(other).all()):
                raise InputError("the outputs of the model or of its program are NaN or infinite; nothing is written")
            largest = max(largest, float(np.abs(other - value).max() / max(1.0, np.abs(value).max())))
    return largest


def _write_weights(file: Path, weights: Mapping[str, Any]) -> None:
    def pending(name: str, leaf: Any) -> Pending:
        return Pending(name, leaf.shape, np.dtype(leaf.dtype), lambda: np.asarray(leaf))

    write_safetensors(file, [pending(name, leaf) for name, leaf in weights.items()], {})


def _manifest(model: Model, weights: Arrays, lengths: Sequence[int]) -> dict[str, Any]:
    """Returns the contents of programs.json."""
    choices = spec_of_model(model)[1].model.reads_choices
    one = jax.eval_shape(function_of(model), weights, next(_inputs(model, 1, lengths[0])))
    return {
        "programs": {str(length): _file(length) for length in lengths},
        "weights": WEIGHTS,
        "inputs": dict.fromkeys(
            input_names(model), "int32[batch,choices,length]" if choices else "int32[batch,length]"
        ),
        "outputs": dict.fromkeys(one, "float32"),
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
    }
