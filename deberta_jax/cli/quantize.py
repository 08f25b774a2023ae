"""``deberta-jax quantize``: writes a copy of a model with weights of 8 or 4 bits."""

import dataclasses

import tyro

from deberta_jax.cli.output import json_text
from deberta_jax.cli.text import print_text
from deberta_jax.inference.trained import TrainedOptions, metrics_of_copy
from deberta_jax.progress import progress_bar, update_of
from deberta_jax.tasks import TaskOptions
from deberta_jax.training.experiment import compute_dtype
from deberta_jax.weights import Quantization, quantize_model
from deberta_jax.weights.quantization import scheme_of_bits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(TaskOptions):
    """Writes a copy of a model with weights of 8 or 4 bits, in the layout of bitsandbytes' checkpoints.

    Every command loads the copy, and its weights stay small in memory. The options of tasks are those of ``evaluate``;
    they are for --evaluate alone."""

    source: tyro.conf.Positional[str]
    """Model directory, file of weights, or hub id."""
    destination: tyro.conf.Positional[str]
    """New directory. The files of another model in it are replaced; the source itself is refused."""
    bits: int | None = None
    """8 (int8) or 4 (nf4)."""
    scheme: str | None = None
    """int8: one scale for each output. nf4 and int4: one for each 64 inputs; nf4 is the more accurate of the two."""
    double_quant: bool = False
    """Store the scales of 4-bit weights in 8 bits."""
    block: int = 64
    """Number of inputs of a 4-bit matrix that share a scale."""
    quantize_embeddings: bool = False
    """Also quantize the word embeddings, to 8 bits, whatever the scheme."""
    keep: tuple[str, ...] = ()
    """Modules to keep in float, such as pooler or attention.self, or patterns of names of tensors; apart by spaces or
    commas."""
    evaluate: str | None = None
    """Labelled file, as finetune reads it; print the metrics on it before and after."""
    max_shard_size: str = "5GB"
    """Size at which files are split."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""


def run(args: Args) -> None:
    """Writes the copy, and prints its size and the metrics."""
    quantization = Quantization(
        scheme=scheme_of_bits(args.bits, args.scheme),
        double=args.double_quant,
        block=args.block,
        embeddings=args.quantize_embeddings,
        keep=[part.strip() for entry in args.keep for part in entry.split(",") if part.strip()],
    )
    if args.evaluate is None:
        _quantize(args, quantization)
        return
    before, after = metrics_of_copy(
        _evaluation(args),
        args.evaluate,
        dtype=compute_dtype("float32"),
        rewrite=lambda: _quantize(args, quantization),
    )
    print(json_text({"before": before, "after": after}))


def _evaluation(args: Args) -> TrainedOptions:
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(TaskOptions)}
    return TrainedOptions(model=args.source, ignore=args.ignore, base_model=args.base_model, **given)


def _quantize(args: Args, quantization: Quantization) -> str:
    with progress_bar(unit=" tensors", leave=False) as bar:
        result = quantize_model(
            args.source,
            args.destination,
            quantization,
            max_shard_size=args.max_shard_size,
            revision=args.revision,
            ignore=args.ignore,
            base_model=args.base_model,
            progress=update_of(bar),
        )
    print_text(f"{result.text()}\nwrote {args.destination}")
    return args.destination
