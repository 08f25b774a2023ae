"""``deberta-jax export``: writes a model in a format that runs without this package."""

import dataclasses
from typing import Literal

import tyro

from deberta_jax.cli.text import print_text
from deberta_jax.compilation import use_compilation_cache
from deberta_jax.export import OnnxExport, export_onnx


@dataclasses.dataclass(frozen=True)
class Args:
    """Writes a model as ONNX, for ONNX Runtime, Optimum and transformers.js.

    The destination gets onnx/model.onnx, config.json and the tokenizer's files. One file serves every batch size and
    length. It is checked, run in ONNX Runtime and compared with the model before the destination appears.
    """

    source: tyro.conf.Positional[str]
    """Model directory, file of weights, or hub id."""
    destination: tyro.conf.Positional[str]
    """New directory."""
    to: Literal["onnx"]
    """The format."""
    head: str | None = None
    """The head, such as sequence-classification; the one that config.json names if not given."""
    dtype: Literal["float32", "float16", "int8"] = "float32"
    """float16 takes half the space. int8 takes about a quarter: products with weights are computed in 8 bits."""
    keep_embeddings: bool = False
    """With int8: keep the word embeddings in float32."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""


def run(args: Args) -> None:
    """Exports, and prints the size of the file and its difference from the model."""
    use_compilation_cache()
    done = export_onnx(
        args.source,
        args.destination,
        head=args.head,
        dtype=args.dtype,
        keep_embeddings=args.keep_embeddings,
        revision=args.revision,
        ignore=args.ignore,
        base_model=args.base_model,
    )
    print_text(_summary(done))


def _summary(done: OnnxExport) -> str:
    size = f"{done.nbytes / 1e6:,.1f} MB"
    return (
        f"{done.head}, {done.dtype}, {size}; differs from the model by {done.difference:.1e} of the largest output\n"
        f"wrote {done.directory}"
    )
