"""``deberta-jax convert``: converts a checkpoint of any published form."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import tyro

from deberta_jax import storage
from deberta_jax.cli.text import print_text
from deberta_jax.progress import progress_bar, update_of
from deberta_jax.weights.conversion import convert
from deberta_jax.weights.report import Report


@dataclasses.dataclass(frozen=True)
class Args:
    """Converts a checkpoint of any published form, and lists what became of every tensor in it.

    SOURCE: a directory, a file of weights (safetensors or PyTorch's) beside its config.json, an Orbax checkpoint or
    training state, a peft adapter, or a hub id, org/model or org/model/file. Without --head every head in it is kept.
    """

    source: tyro.conf.Positional[str]
    """Model directory, file of weights, or hub id."""
    destination: tyro.conf.Positional[str]
    """New directory; for orbax also gs://bucket/directory. An existing model directory on a local disk is replaced."""
    to: Literal["hf", "orbax"]
    """hf: a directory that transformers loads too. orbax: params/ that restores straight into shards."""
    dtype: Literal["f32", "bf16", "f16"] | None = None
    """Dtype of the result; that of the source if not given."""
    head: str | None = None
    """Only this head, such as masked-lm or sequence-classification."""
    new_head: int | None = None
    """Seed to initialize what the file lacks of --head. Without it a missing head is an error."""
    labels: tuple[str, ...] | None = None
    """Names of the classes of --head, in order; those of config.json if not given."""
    layout: Literal["hf", "microsoft"] = "hf"
    """Names of the tensors (hf only): those of transformers or of Microsoft's code."""
    max_shard_size: str = "5GB"
    """Size at which files are split (hf only)."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str | None = None
    """Base of a peft adapter: a directory or hub id; what adapter_config.json names if not given."""
    rename: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Rule REGEX=REPL for the names of the tensors in the file, such as '^bert\\.=deberta.'; may be given several
    times, and rules are applied in order."""
    strict: bool = False
    """Refuse weights with NaN or infinity, instead of a note."""
    report: Path | None = None
    """JSON file to write the report to, with a row for every tensor."""


def run(args: Args) -> None:
    """Converts, and prints what became of every tensor."""
    if args.report is not None:
        storage.check_output_file("--report", str(args.report))
    with progress_bar(unit=" tensors", leave=False) as bar:
        report = _convert(args, update_of(bar))
    if args.report is not None:
        with storage.output_text("--report", str(args.report)) as file:
            file.write(json.dumps(report.to_json(), indent=2) + "\n")
    print_text(f"{report.text()}\nwrote {args.destination}")


def _convert(args: Args, progress: Callable[[int, int], None]) -> Report:
    return convert(
        args.source,
        args.destination,
        to=args.to,
        dtype=args.dtype,
        head=args.head,
        id2label=args.labels,
        new_head=args.new_head,
        layout=args.layout,
        max_shard_size=args.max_shard_size,
        revision=args.revision,
        strict=args.strict,
        progress=progress,
        ignore=args.ignore,
        base_model=args.base_model,
        rename=args.rename,
    )
