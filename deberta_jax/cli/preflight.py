"""``deberta-jax preflight``: checks devices, versions, mesh, output and clocks of all processes before a run."""

import dataclasses

from deberta_jax.cli.output import json_text
from deberta_jax.cli.text import print_text
from deberta_jax.training.distributed import is_writer
from deberta_jax.training.preflight import PreflightOptions, preflight


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(PreflightOptions):
    """Checks what the processes of a run have: devices, versions, mesh, an output that can be written, clocks.

    Start it as the run will be started, in all processes. Process 0 prints a table with a row for each. The exit code
    is 0 if a run can start, 2 if somebody must change something, 42 if a process is late or lost."""

    json: bool = False
    """Print one JSON object."""


def run(args: Args) -> None:
    """Prints what the processes reported; ends with the line and the exit code of what is wrong."""
    found = preflight(args)
    if is_writer():
        print_text(json_text(found.to_json()) if args.json else found.text())
    found.check()
