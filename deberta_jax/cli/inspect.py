"""``deberta-jax inspect``: shows what a checkpoint holds."""

import dataclasses
import json as jsonlib

import tyro

from deberta_jax.cli.text import print_text
from deberta_jax.errors import InputError
from deberta_jax.weights.inspection import inspect


@dataclasses.dataclass(frozen=True)
class Args:
    """Shows what a checkpoint holds: generation, sizes, parameters, dtypes, heads, and what each head is good for."""

    source: tyro.conf.Positional[str]
    """A directory, a file of weights beside its config.json, an Orbax checkpoint, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""
    json: bool = False
    """Print one JSON object, with a row for every tensor."""


def run(args: Args) -> None:
    """Prints what the checkpoint holds. Raises InputError afterwards if it cannot be loaded."""
    found = inspect(args.source, revision=args.revision, ignore=args.ignore, base_model=args.base_model)
    print_text(jsonlib.dumps(found.to_json(), indent=2) if args.json else found.text())
    if found.problem:
        raise InputError(f"{args.source}: {found.problem}")
