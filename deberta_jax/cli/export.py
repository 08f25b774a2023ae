"""``deberta-jax export``: writes a model in a format that runs without this package."""

import dataclasses
from typing import Any, Literal

import tyro

from deberta_jax.cli.text import print_text
from deberta_jax.compilation import use_compilation_cache
from deberta_jax.errors import InputError
from deberta_jax.export import export_onnx, export_stablehlo


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a model as ONNX, for ONNX Runtime, Optimum and transformers.js; or as StableHLO, for JAX alone.

    onnx: onnx/model.onnx for every batch size and length. stablehlo: in stablehlo/ a program for each of --lengths and
    any batch size, on CPUs, GPUs and TPUs, and the weights. Both have config.json and the tokenizer's files beside
    them. What is written is run and compared with the model before the destination appears.
    """

    source: tyro.conf.Positional[str]
    """Model directory, file of weights, or hub id."""
    destination: tyro.conf.Positional[str]
    """New directory."""
    to: Literal["onnx", "stablehlo"]
    """The format."""
    head: str | None = None
    """The head, such as sequence-classification; the one that config.json names, or that the weights are of, if not
    given."""
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """onnx: float32, float16 (half the space) or int8 (about a quarter: products with weights have 8 bits).
    stablehlo: float32 or bfloat16."""
    keep_embeddings: bool = False
    """With int8: keep the word embeddings in float32."""
    lengths: tuple[int, ...] = ()
    """stablehlo: numbers of tokens that get a program, for rows padded to it; 128 and 512 if not given."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""


def run(args: Args) -> None:
    """Exports, and prints the size of what was written and its difference from the model."""
    use_compilation_cache()
    given: Any = {name: getattr(args, name) for name in ("head", "dtype", "revision", "ignore", "base_model")}
    if args.to == "onnx":
        if args.lengths:
            raise InputError("--lengths is for --to stablehlo: one ONNX file serves every length")
        done = export_onnx(args.source, args.destination, keep_embeddings=args.keep_embeddings, **given)
    else:
        if args.keep_embeddings:
            raise InputError("--keep-embeddings is for --to onnx --dtype int8")
        lengths = {"lengths": args.lengths} if args.lengths else {}
        done = export_stablehlo(args.source, args.destination, **lengths, **given)
    written = f"{done.head}, {args.dtype}, {done.nbytes / 1e6:,.1f} MB"
    print_text(f"{written}; differs from the model by {done.difference:.1e} of the largest output")
    print_text(f"wrote {done.directory}")
