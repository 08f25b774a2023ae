"""Writes a quantized copy of a model directory."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.weights import names as table
from deberta_jax.weights.account import LoadPlan
from deberta_jax.weights.conversion import write_other_files
from deberta_jax.weights.load import make_report, plan_all
from deberta_jax.weights.opening import TOKENIZER_FILES, Source, open_source
from deberta_jax.weights.output import check_free, staged_model
from deberta_jax.weights.quantization import Quantization, Quantizer, quantized_names
from deberta_jax.weights.report import Report
from deberta_jax.weights.save import hf_config, json_text, parse_size, torch_tensors, write_weights
from deberta_jax.weights.source import kind
from deberta_jax.weights.values import broken_note, is_finite


@dataclasses.dataclass(frozen=True)
class Quantized:
    """Describes what ``quantize_model`` wrote.

    Attributes:
      report: what became of every tensor of the source.
      scheme: the scheme of the dense layers.
      quantized, kept: number of values that are quantized, and that stay in float.
      before, after: size of all weights in bytes, in float32 and as they were written.
    """

    report: Report
    scheme: str
    quantized: int
    kept: int
    before: int
    after: int

    def text(self) -> str:
        """Returns the line that ``deberta-jax quantize`` prints."""
        return (
            f"{self.scheme}: {self.quantized:,} of {self.quantized + self.kept:,} values quantized; "
            f"{self.after / 1e6:.1f} MB, {self.after / self.before:.3f} of float32"
        )


def quantize_model(
    source: str | Path,
    destination: str | Path,
    quantization: Quantization,
    *,
    max_shard_size: str | int = "5GB",
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Quantized:
    """Writes a quantized copy of a model, in the layout of bitsandbytes' checkpoints, with all its heads.

    ``from_pretrained`` and every command load the result, whose matrices stay quantized in memory; ``convert`` makes a
    float model of it.

    Args:
      source, revision, ignore, base_model: as for ``from_pretrained``.
      destination: a new directory, or another model's, whose files are replaced.
      quantization: how.
      max_shard_size: larger files are split.
      progress: called after each tensor with the number of tensors done and the number of all.

    Raises:
      InputError: as ``load``; the destination is the source; the model is quantized already; it has NaN or infinity;
        a matrix has no whole blocks; nothing is left to quantize. Nothing is written then.
    """
    target = storage.as_path(destination)
    parse_size(max_shard_size)
    check_free(target, overwrite=False)
    opened = open_source(source, revision=revision, ignore=ignore, base_model=base_model, check="full")
    # The float weights would be lost, and no copy of 4 or 8 bits gives them back.
    origins = [opened.directory, *(file.parent for file in opened.checkpoint.files)]
    if str(target).rstrip("/") == str(source).rstrip("/") or target.resolve() in [path.resolve() for path in origins]:
        raise InputError(f"{destination}: has the float weights, which would be lost; give another directory")
    plan = plan_all(opened)
    _check_float(plan, opened)
    names = [name for row in table.table(plan.config, plan.parts) for name in row.names(plan.config)]
    quantization.check_keep(plan.config, plan.parts)
    quantizer, broken = _quantizer(quantization, names, progress, opened.checkpoint.path), []
    labels = plan.sizes["C"]
    tensors = torch_tensors(
        plan.config, plan.parts, labels, plan, None, "hf", bare=not plan.parts, broken=broken, quantizer=quantizer
    )
    files = [opened.directory / name for name in TOKENIZER_FILES if (opened.directory / name).is_file()]
    dtype = plan.dtype(table.WORD_EMBEDDINGS)
    config = hf_config(plan.config, plan.parts, labels, dtype, opened.architectures) | quantizer.config()
    with staged_model(target, *TOKENIZER_FILES) as stage:
        write_weights(stage, tensors, max_shard_size)
        if broken:
            raise InputError(f"{opened.checkpoint.path}: {broken_note(broken)}")
        write_other_files(stage, files, json_text(config))
    values = sum(int(np.prod(shape)) for shape in plan.shapes.values())
    count = sum(matrix.shape[0] * matrix.shape[1] for matrix in quantizer.matrices.values())
    return Quantized(
        make_report(source, opened, plan),
        quantization.scheme,
        count,
        values - count,
        4 * values,
        sum(tensor.nbytes for tensor in tensors),
    )


def _check_float(plan: LoadPlan, source: Source) -> None:
    """Raises InputError for a model of which some matrices are quantized already."""
    schemes = sorted(set(quantized_names(plan).values()))
    if schemes:
        raise InputError(
            f"{source.checkpoint.path}: is quantized already ({', '.join(schemes)}); give the float model, or make one "
            "of it with `deberta-jax convert`"
        )


def _quantizer(
    quantization: Quantization, names: Sequence[str], progress: Callable[[int, int], None], where: storage.AnyPath
) -> Quantizer:
    """Returns the quantizer of a model's tensors, which refuses those with NaN or infinity in the file ``where``."""
    total = len(names)

    def quantized(row, layer, name, compute):
        # A name in the file may lack the prefix that patterns of ``keep`` are written with.
        whole = row.torch.format(i=layer)
        progress(names.index(whole) + 1, total)
        scheme = quantization.scheme_of(row, whole)
        if scheme is None:
            return None
        values = compute()
        if not is_finite(values):
            raise InputError(f"{where}: {broken_note([name])} ({kind(values.dtype)})")
        return quantization.quantize(values, scheme, name)

    return Quantizer(quantized)
