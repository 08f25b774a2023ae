"""``deberta-jax plan``: will it fit, what will bind, what will it cost; from the compiler, without the devices."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

import jax
from tqdm import tqdm

from deberta_jax.errors import InputError
from deberta_jax.planning.chips import target_of
from deberta_jax.planning.compiling import check_compiler
from deberta_jax.planning.page import Point, extended, point_of, write_page
from deberta_jax.planning.planner import make_plan, sweep
from deberta_jax.planning.report import Plan, as_json
from deberta_jax.planning.request import Request, check_mesh, make_request
from deberta_jax.planning.sweep import candidates
from deberta_jax.planning.table import attention_note, describe, ranking
from deberta_jax.presets import PRESETS
from deberta_jax.sharding import MESH_AXES
from deberta_jax.training.experiment import Runtime
from deberta_jax.weights import load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Compiles the step of a run for devices that are not here, and says what it needs and costs. Nothing is run.

    All figures are the compiler's estimates, not measurements. A TPU slice needs libtpu: `pip install libtpu`."""

    model: str
    """Name of a released architecture, model directory or hub id; weights are not read."""
    topology: str
    """TPU slice, v5e:4x4 or as it is rented v5e-16 (v4, v5e, v5p, v6e); cuda:8; or cpu:8."""
    job: Literal["finetune", "mlm", "rtd", "predict"] = "finetune"
    mesh: str = ""
    """Such as data=2,fsdp=8: sizes not given are 1, data what is left. Chosen if not given."""
    batch: int = 0
    """Rows of a step on all chips together; 8 a chip if not given, with --sweep more as well."""
    length: int = 512
    """Tokens of a row."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["", "none", "dots", "full"] = ""
    """What the backward pass computes again; chosen if not given."""
    attention: str = "auto"
    accumulate: int = 1
    sweep: bool = False
    """Try meshes, batches, remat and attention bodies, those first that may do best, and rank them."""
    candidates: int = 6
    """The most that --sweep compiles; each takes a minute or two."""
    tokens: float = 0.0
    """Say what training on so many tokens takes."""
    price_per_chip_hour: float = 0.0
    """In any currency."""
    device_memory: float = 0.0
    """Of a device of cuda or cpu, in GB: to say whether it fits."""
    json: bool = False
    """Print one JSON object."""
    html: str = ""
    """Write a page with plots; compiles for 8 and 256 chips as well, where the slice is of a TPU."""


def run(args: Args) -> None:
    if args.html and not Path(args.html).absolute().parent.is_dir():
        raise InputError(f"--html {args.html}: its directory does not exist")
    if Path(args.html or "-").is_dir():
        raise InputError(f"--html {args.html}: is a directory; name a file in it")
    for flag, value, least in (
        ("batch", args.batch, 0), ("length", args.length, 1), ("accumulate", args.accumulate, 1),
        ("candidates", args.candidates, 1), ("tokens", args.tokens, 0), ("device-memory", args.device_memory, 0),
        ("price-per-chip-hour", args.price_per_chip_hour, 0),
    ):  # fmt: skip
        if value < least:
            raise InputError(f"--{flag} {value}: must be at least {least}")
    # Where libtpu is installed, JAX would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    request = request_of(args)
    check_compiler(request)
    capacity = 1e9 * args.device_memory
    chosen = {
        "free_remat": not args.remat, "free_body": args.attention == "auto", "free_rows": args.sweep and not args.batch
    }  # fmt: skip
    if args.mesh:
        check_mesh(request)
        guesses = candidates(request, **chosen, free_mesh=False)
    else:
        guesses = candidates(request, **chosen)
    if args.sweep:
        with _bar(args.candidates) as bar:
            tried = guesses[: args.candidates]
            plans, failed = sweep(tried, capacity=capacity, done=bar.update, tick=bar.refresh)
        if not plans:
            raise InputError(failed[0][1])
        text = ranking(plans, failed)
    else:
        with _bar(1) as bar:
            plans = [make_plan(guesses[0].request, capacity=capacity, tick=bar.refresh)]
            bar.update()
        text = ""
    best, found = plans[0], as_json(plans[0], tokens=args.tokens, price=args.price_per_chip_hour)
    text = f"{text}\n\n{describe(best, found)}".strip()
    if args.tokens and "hours" not in found:
        text += f"\n--tokens: no time is known of {args.topology}, so no hours and no cost"
    if args.html:
        write_page(Path(args.html), text, best, _scaling(best))
    found |= {"model": args.model, "attention_note": attention_note(best.request)}
    if args.sweep:
        found["ranked"] = [as_json(plan) for plan in plans]
    print(json.dumps(found) if args.json else text)


def request_of(args: Args) -> Request:
    """Raises InputError for arguments that cannot be used."""
    target = target_of(args.topology)
    known = args.model in PRESETS and not Path(args.model).is_dir()
    config = PRESETS[args.model] if known else load_config(args.model)
    mesh = mesh_of(args.mesh, target.chips)
    runtime = Runtime(
        mesh_data=mesh["data"], mesh_fsdp=mesh["fsdp"], mesh_tensor=mesh["tensor"], remat=args.remat or "none",
        attention=args.attention, accumulate=args.accumulate,
    )  # fmt: skip
    batch = args.batch or 8 * target.chips * args.accumulate
    return make_request(
        args.job, config, target, batch_size=batch, length=args.length, dtype=args.dtype, runtime=runtime
    )  # fmt: skip


def mesh_of(text: str, chips: int) -> dict[str, int]:
    """``data=2,fsdp=8`` as sizes; what is not given is 1, ``data`` what is left.

    Raises:
      InputError: another form.
    """
    sizes = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in MESH_AXES or not value.isdigit() or not int(value):
            raise InputError(f"--mesh {text}: give sizes of {', '.join(MESH_AXES)}, such as --mesh fsdp={chips}")
        sizes[name] = int(value)
    others = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    return {
        "data": sizes.get("data", max(chips // others, 1)),
        "fsdp": sizes.get("fsdp", 1),
        "tensor": sizes.get("tensor", 1),
    }


def _scaling(plan: Plan) -> list[Point]:
    """The same work a chip on 8, 256 and 1024 chips, parameters shared among as many."""
    name = plan.request.target.topology.partition(":")[0]
    if plan.request.target.platform != "tpu":
        return []
    m, points = plan.request.mesh, []
    rows = plan.request.rows // plan.request.target.chips
    for size in ("8", "256") if name in ("v5e", "v6e") else ("16", "512"):
        target = target_of(f"{name}-{size}")
        shared = m["fsdp"] * m["tensor"]
        if target.chips % shared:
            continue
        wider = plan.request.with_runtime(mesh_data=target.chips // shared).with_rows(rows * target.chips)
        with _bar(1) as bar:
            last = make_plan(dataclasses.replace(wider, target=target), tick=bar.refresh)
        points.append(point_of(last))
    return [*points, extended(last, 1024)] if points else []


def _bar(total: int) -> tqdm:
    return tqdm(total=total, desc="compiling", unit="program", file=sys.stderr, leave=False, disable=None)
