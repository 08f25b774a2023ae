"""``deberta-jax plan``: estimates memory, speed and cost of a run by compiling it for devices that are not here."""

import dataclasses

import tyro
from tqdm import tqdm

from deberta_jax import storage
from deberta_jax.cli.output import json_text
from deberta_jax.cli.text import print_text
from deberta_jax.planning.options import PlanOptions, check_options, make_plans
from deberta_jax.planning.page import write_page
from deberta_jax.planning.scaling import scaling_points
from deberta_jax.progress import progress_bar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(PlanOptions):
    """Compiles the step of a run for devices that are not here, and prints what it needs and costs. Nothing is run.

    All figures are the compiler's estimates, not measurements. A TPU slice needs libtpu: `pip install 'jax[tpu]'`."""

    xla_flags: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Options of the compiler, such as "xla_a=true xla_b=4"; may be given several times. Each set is compiled and
    compared with the compiler's defaults."""
    json: bool = False
    """Print one JSON object."""
    html: str = ""
    """Write a page with plots; for a TPU slice this compiles for a small and a large slice as well."""


def run(args: Args) -> None:
    """Makes the plan and prints it."""
    storage.check_output_file("--html", args.html or "-")
    check_options(args)
    with _bar(args.candidates if args.sweep else 1 + len(args.xla_flags)) as bar:
        found = make_plans(args, done=bar.update, tick=bar.refresh)
    if args.html:
        with _bar(1) as bar:
            points = scaling_points(found.best, tick=bar.refresh)
        write_page(args.html, args.model, found.text(), found.best, points)
    print_text(json_text(found.to_json()) if args.json else found.text())


def _bar(total: int) -> tqdm:
    return progress_bar(total=total, desc="compiling", unit="program", leave=False)
