"""``deberta-jax verify``: compares two checkpoints, layer by layer."""

import dataclasses
from pathlib import Path

import tyro

from deberta_jax.cli.text import print_text
from deberta_jax.compilation import use_compilation_cache
from deberta_jax.weights.verification import verify


@dataclasses.dataclass(frozen=True)
class Args:
    """Runs a checkpoint on fixed inputs and compares every layer; exit code 0 if all are within tolerance, else 1.

    Without --against, the weights are compared with themselves after a conversion to PyTorch's layout and back.
    """

    source: tyro.conf.Positional[str]
    """A directory, a file of weights beside its config.json, an Orbax checkpoint, or a hub id."""
    against: str | None = None
    """Another such source, or an .npz file that --record wrote."""
    tolerance: float | None = None
    """Largest absolute difference that passes. If not given 1e-4; between a model and its copy in bf16 or f16, 0.1 or
    0.01."""
    record: Path | None = None
    """Write the outputs to this .npz file."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""


def run(args: Args) -> None:
    """Compares, prints the result, and exits with 1 where a layer differs by more than the tolerance."""
    use_compilation_cache()
    result = verify(
        args.source,
        args.against,
        tolerance=args.tolerance,
        record=args.record,
        revision=args.revision,
        ignore=args.ignore,
        base_model=args.base_model,
    )
    print_text(result.text())
    if not result.passed:
        raise SystemExit(1)
