"""``deberta-jax plan``: will it fit, what will bind, what will it cost; from the compiler, without the devices."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

import jax
from tqdm import tqdm

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.ops.dropout import LONGEST
from deberta_jax.planning.chips import target_of
from deberta_jax.planning.compiling import check_compiler
from deberta_jax.planning.page import Point, extended, point_of, write_page
from deberta_jax.planning.planner import make_plan, sweep
from deberta_jax.planning.programs import objective_of
from deberta_jax.planning.report import Plan, as_json
from deberta_jax.planning.request import Request, check_mesh, make_request
from deberta_jax.planning.sweep import candidates
from deberta_jax.planning.table import describe, ranking, size
from deberta_jax.presets import PRESETS
from deberta_jax.sharding import MESH_AXES
from deberta_jax.training.experiment import Runtime
from deberta_jax.weights import load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Compiles the step of a run for devices that are not here, and says what it needs and costs. Nothing is run.

    All figures are the compiler's estimates, not measurements. A TPU slice needs libtpu: `pip install 'jax[tpu]'`."""

    model: str
    """Name of a released architecture, model directory or hub id; weights are not read."""
    topology: str
    """TPU slice, v5e:4x4 or as it is rented v5e-16 (v4, v5e, v5p, v6e); cuda:8; or cpu:8."""
    job: Literal["finetune", "mlm", "rtd", "predict"] = "finetune"
    mesh: str = ""
    """Such as data=2,fsdp=8: sizes not given are 1, data what is left. Not given: of those that fit by sums on paper
    the one that should be quickest; --sweep compares."""
    batch: int = 0
    """Rows of a step on all chips together; 8 a chip if not given, with --sweep more as well."""
    length: int = 512
    """Tokens of a row."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    remat: Literal["", "none", "dots", "full"] = ""
    """What the backward pass computes again. Not given: the least that fits by sums on paper; --sweep compares."""
    attention: Literal["auto", "reference", "shift", "blocked", "pallas"] = "auto"
    """auto: what a run takes on such devices if they pass their check; --sweep compares."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
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
    _check(args)
    # Where libtpu is installed, JAX would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    request = request_of(args)
    check_compiler(request)
    capacity = 1e9 * args.device_memory
    if args.mesh:
        check_mesh(request)
    guesses = candidates(
        request,
        free_mesh=not args.mesh,
        free_remat=not args.remat and args.job != "predict",
        free_body=args.attention == "auto",
        free_rows=args.sweep and not args.batch,
        capacity=capacity,
    )
    if args.sweep:
        with _bar(args.candidates) as bar:
            tried = guesses[: args.candidates]
            plans, failed = sweep(tried, capacity=capacity, done=bar.update, tick=bar.refresh)
        if not plans:
            raise InputError(failed[0][1])
        text = f"{ranking(plans, failed)}\n\n"
    else:
        with _bar(1) as bar:
            plans = [make_plan(guesses[0].request, capacity=capacity, tick=bar.refresh)]
            bar.update()
        text = ""
    best = plans[0]
    found = as_json(best, tokens=args.tokens, price=args.price_per_chip_hour)
    found["model"] = args.model
    if args.sweep:
        found |= {"ranked_by": "time" if best.seconds else "memory", "ranked": [as_json(plan) for plan in plans]}
        if not best.seconds:
            found["notes"].append("no time is known, so plans are ranked by memory alone")
    text += describe(best, found)
    if args.html:
        write_page(Path(args.html), args.model, text, best, _scaling(best))
    print(json.dumps(found) if args.json else text)


def _check(args: Args) -> None:
    """Raises InputError for the first argument that cannot be used, whatever the others name."""
    storage.check_output_file("--html", args.html or "-")
    for flag, value, least in (
        ("batch", args.batch, 0),
        ("length", args.length, 8),
        ("accumulate", args.accumulate, 1),
        ("candidates", args.candidates, 1),
        ("tokens", args.tokens, 0),
        ("device-memory", args.device_memory, 0),
        ("price-per-chip-hour", args.price_per_chip_hour, 0),
    ):
        if not value >= least:  # NaN is refused as well
            raise InputError(f"--{flag} {value}: must be at least {least}")
    if args.length > LONGEST:
        raise InputError(f"--length {args.length}: must be at most {LONGEST}, for attention drops weights in no more")
    if args.price_per_chip_hour and not args.tokens:
        raise InputError("--price-per-chip-hour: goes with --tokens, the number to be trained on")
    if args.accumulate > 1 and args.job == "predict":
        raise InputError("--accumulate: goes with training; prediction computes a batch at once")
    target = target_of(args.topology)
    if args.device_memory and target.chip:
        raise InputError(f"--device-memory: is for cuda and cpu; a chip of {args.topology} has {size(target.chip.hbm)}")
    if args.attention == "pallas" and target.platform == "cpu":
        raise InputError("--attention pallas: has no kernel for CPUs; give auto, blocked, shift or reference")


def request_of(args: Args) -> Request:
    """Raises InputError for arguments that cannot be used."""
    target = target_of(args.topology)
    known = args.model in PRESETS and not Path(args.model).is_dir()
    config = PRESETS[args.model] if known else load_config(args.model)
    mesh = mesh_of(args.mesh, target.chips)
    runtime = Runtime(
        mesh_data=mesh["data"],
        mesh_fsdp=mesh["fsdp"],
        mesh_tensor=mesh["tensor"],
        remat=args.remat or "none",
        attention=args.attention,
        accumulate=args.accumulate,
    )
    batch = args.batch or 8 * target.chips * args.accumulate
    request = make_request(
        args.job, config, target, batch_size=batch, length=args.length, dtype=args.dtype, runtime=runtime
    )
    for c in objective_of(request).configs:
        longest = c.max_position_embeddings
        if c.has_position_table and args.length > longest:
            raise InputError(
                f"--length {args.length}: the model has absolute positions for {longest} tokens; give at most that"
            )
    return request


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
    if plan.request.target.platform != "tpu" or plan.costs is None:
        return []
    name = plan.request.target.topology.partition(":")[0]
    m, plans = plan.request.mesh, []
    rows, shared = plan.request.rows // (m["data"] * m["fsdp"]), m["fsdp"] * m["tensor"]
    for slice_ in ("8", "256") if name in ("v5e", "v6e") else ("16", "512"):
        target = target_of(f"{name}-{slice_}")
        if target.chips % shared:
            continue
        data = target.chips // shared
        wider = plan.request.with_runtime(mesh_data=data).with_rows(rows * data * m["fsdp"])
        with _bar(1) as bar:
            plans.append(make_plan(dataclasses.replace(wider, target=target), tick=bar.refresh))
    plans = [wider for wider in plans if wider.costs is not None]
    return [*map(point_of, plans), extended(plans[-1], 1024)] if plans else []


def _bar(total: int) -> tqdm:
    return tqdm(total=total, desc="compiling", unit="program", file=sys.stderr, leave=False, disable=None)
