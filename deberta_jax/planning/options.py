"""Turns what a user asks of ``deberta-jax plan`` into requests, and requests into plans."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax

from deberta_jax.errors import InputError
from deberta_jax.ops.attention.dropout import MAX_LENGTH
from deberta_jax.planning.candidates import candidates
from deberta_jax.planning.compiling import check_compiler
from deberta_jax.planning.planner import make_plan, rank_candidates
from deberta_jax.planning.programs import objective_of
from deberta_jax.planning.report import Plan, as_json
from deberta_jax.planning.request import Request, check_mesh, make_request
from deberta_jax.planning.table import format_flags, format_plan, format_ranking, size
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.sharding import MESH_AXES
from deberta_jax.training.experiment import RunOptions
from deberta_jax.weights import load_config


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Holds what to plan; 0 and "" leave a choice to the planner."""

    model: str
    """Name of a released architecture, model directory or hub id; weights are not read."""
    topology: str
    """TPU slice by its shape, v5e:4x4, or by its name, v5e-16 (v4, v5e, v5p, v6e); GPUs of a host, h100:8, or of
    two, h100:8x2 (a100-40, a100-80, l4, h100, h200, b200); cuda:8 for what is known of any GPUs; or cpu:8."""
    slices: int = 1
    """Number of such TPU slices, joined by the data-centre network. They are the outer part of the mesh axis data."""
    job: Literal["finetune", "mlm", "rtd", "predict"] = "finetune"
    """Fine-tuning, pre-training by masked LM or by replaced-token detection, or prediction."""
    mesh: str = ""
    """Sizes of the mesh axes, such as data=2,fsdp=8. An axis that is not given has size 1, data has the rest. Without
    this option the planner takes, of the meshes that fit by its estimate, the one that should be quickest; --sweep
    compares."""
    batch: int = 0
    """Rows of a step on all chips together; 8 a chip if not given, with --sweep more as well."""
    length: int = 512
    """Tokens of a row."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of the computation."""
    remat: Literal["", "none", "dots", "full"] = ""
    """Activations to recompute in the backward pass. Not given: the least that fits by estimate; --sweep compares."""
    attention: Literal["auto", "reference", "xla", "blocked", "pallas"] = "auto"
    """Attention implementation. auto: what a run takes on such devices if they pass their check; --sweep compares."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which chips add up the gradients of kernels and word embeddings."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of Adam's two means."""
    accumulate: int = 1
    """Micro-batches of a step, computed one after the other to save memory."""
    sweep: bool = False
    """Try meshes, batches, remat and attention implementations, the most promising first, and rank them."""
    candidates: int = 6
    """Largest number of programs that --sweep compiles; each takes a minute or two."""
    xla_flags: tuple[str, ...] = ()
    """Sets of options of the compiler, such as "xla_tpu_scoped_vmem_limit_kib=65536". Each set is compiled and compared
    with the compiler's defaults."""
    tokens: float = 0.0
    """Print time and chip hours of training on this many tokens."""
    price_per_chip_hour: float = 0.0
    """Price of a chip for one hour, in any currency; with --tokens the cost is printed."""
    device_memory: float = 0.0
    """Memory of a cuda or cpu device in GB, to check whether the program fits."""


@dataclasses.dataclass(frozen=True)
class Plans:
    """Holds the plans that were made: the best first, and the requests that did not compile, with the reason."""

    options: PlanOptions
    plans: list[Plan]
    failed: list[tuple[Request, str]]

    @property
    def best(self) -> Plan:
        """Returns the plan to use."""
        return self.plans[0]

    def to_json(self) -> dict[str, Any]:
        """Returns the best plan as ``report.as_json`` has it; after a sweep also all plans, by rank."""
        o = self.options
        found: dict[str, Any] = as_json(self.best, tokens=o.tokens, price=o.price_per_chip_hour)
        found["model"] = o.model
        if o.xla_flags:
            found["compared"] = [as_json(plan) for plan in self.plans]
            found["refused"] = [why for _, why in self.failed]
        if o.sweep:
            timed = bool(self.best.seconds)
            found |= {"ranked_by": "time" if timed else "memory", "ranked": [as_json(plan) for plan in self.plans]}
            if not timed:
                found["notes"].append("no time is known, so plans are ranked by memory alone")
        return found

    def text(self) -> str:
        """Returns the same for a terminal."""
        text = format_plan(self.best, self.to_json())
        if self.options.xla_flags:
            return f"{text}\n\n{format_flags(self.plans, self.failed)}"
        return f"{format_ranking(self.plans, self.failed)}\n\n{text}" if self.options.sweep else text


def make_plans(
    options: PlanOptions, *, done: Callable[[], object] = lambda: None, tick: Callable[[], object] = lambda: None
) -> Plans:
    """Compiles the request, or for a sweep the most promising candidates. Takes no device but the CPU.

    Args:
      done: called when a program has been compiled.
      tick: called every second meanwhile.

    Raises:
      InputError: options that cannot be used, or a program that the compiler does not take.
    """
    # Where libtpu is installed, JAX would look for a TPU.
    jax.config.update("jax_platforms", "cpu")
    o, capacity = options, 1e9 * options.device_memory
    request = request_of(o)
    check_compiler(request)
    if o.mesh:
        check_mesh(request)
    found = candidates(
        request,
        free_mesh=not o.mesh,
        free_remat=not o.remat and o.job != "predict",
        free_attention=o.attention == "auto",
        free_rows=o.sweep and not o.batch,
        capacity=capacity,
    )
    if o.xla_flags:
        return _compare_flags(o, found[0].request, capacity=capacity, done=done, tick=tick)
    if not o.sweep:
        plan = make_plan(found[0].request, capacity=capacity, tick=tick)
        done()
        return Plans(o, [plan], [])
    plans, failed = rank_candidates(found[: o.candidates], capacity=capacity, done=done, tick=tick)
    if not plans:
        raise InputError(failed[0][1])
    return Plans(o, plans, failed)


def _compare_flags(
    o: PlanOptions, request: Request, *, capacity: float, done: Callable[[], object], tick: Callable[[], object]
) -> Plans:
    """Returns the plans of one request with the compiler's defaults, then with each set of ``--xla-flags``."""
    plans, failed = [], []
    for text in ("", *o.xla_flags):
        asked = dataclasses.replace(request, compiler_options=parse_flags(text))
        try:
            plans.append(make_plan(asked, capacity=capacity, tick=tick))
        except InputError as error:
            if not text:
                raise
            failed.append((asked, str(error)))
        done()
    return Plans(o, plans, failed)


def parse_flags(text: str) -> tuple[tuple[str, str], ...]:
    """Returns the names and values in a text such as ``xla_a=true xla_b=4``; dashes before a name are left out.

    Raises:
      InputError: another form.
    """
    found = []
    for word in text.split():
        name, separator, value = word.removeprefix("--").partition("=")
        if not re.fullmatch(r"xla_\w+", name) or not separator or not value:
            raise InputError(f"--xla-flags {text}: {word} is not of the form xla_name=value")
        found.append((name, value))
    return tuple(found)


def check_options(o: PlanOptions) -> None:
    """Checks every option by itself.

    Raises:
      InputError: the first option that cannot be used, whatever model it is for.
    """
    for flag, value, least in (
        ("batch", o.batch, 0),
        ("length", o.length, 8),
        ("accumulate", o.accumulate, 1),
        ("candidates", o.candidates, 1),
        ("tokens", o.tokens, 0),
        ("device-memory", o.device_memory, 0),
        ("price-per-chip-hour", o.price_per_chip_hour, 0),
    ):
        if not value >= least:  # NaN is refused as well
            raise InputError(f"--{flag} {value}: must be at least {least}")
    if o.length > MAX_LENGTH:
        raise InputError(f"--length {o.length}: must be at most {MAX_LENGTH}, as attention drops weights in no more")
    if o.price_per_chip_hour and not o.tokens:
        raise InputError("--price-per-chip-hour: goes with --tokens, the number to be trained on")
    if o.accumulate > 1 and o.job == "predict":
        raise InputError("--accumulate: goes with training; prediction computes a batch at once")
    target = target_of(o.topology, slices=o.slices)
    if o.device_memory and target.chip:
        raise InputError(f"--device-memory: is for cuda and cpu; a chip of {o.topology} has {size(target.chip.hbm)}")
    if o.xla_flags and o.sweep:
        raise InputError("--xla-flags: compares one program; leave --sweep out")
    if o.xla_flags and target.platform == "cuda" and target.card is None:
        raise InputError(f"--xla-flags: nothing is compiled for {o.topology}; name the GPU, such as h100:8")
    for text in o.xla_flags:
        if not parse_flags(text):
            raise InputError("--xla-flags: give options such as xla_name=value; the defaults are compiled in any case")
    if o.attention == "pallas" and target.platform == "cpu":
        raise InputError("--attention pallas: has no kernel for CPUs; give auto, blocked, xla or reference")


def request_of(o: PlanOptions) -> Request:
    """Returns the request that the options describe, with defaults for what they leave open.

    Raises:
      InputError: a model that is not there, or values that do not go together.
    """
    target = target_of(o.topology, slices=o.slices)
    known = o.model in PRESETS and not Path(o.model).is_dir()
    config = PRESETS[o.model] if known else load_config(o.model)
    mesh = parse_mesh(o.mesh, target.chips)
    runtime = RunOptions(
        mesh_data=mesh["data"],
        mesh_fsdp=mesh["fsdp"],
        mesh_tensor=mesh["tensor"],
        remat=o.remat or "none",
        attention=o.attention,
        accumulate=o.accumulate,
        gradient_dtype=o.gradient_dtype,
    )
    batch = o.batch or 8 * target.chips * o.accumulate
    request = make_request(
        o.job,
        config,
        target,
        batch_size=batch,
        length=o.length,
        dtype=o.dtype,
        runtime=runtime,
        moment_dtype=o.moment_dtype,
    )
    for c in objective_of(request).configs:
        longest = c.max_position_embeddings
        if c.has_position_table and o.length > longest:
            raise InputError(
                f"--length {o.length}: the model has absolute positions for {longest} tokens; give at most that"
            )
    return request


def parse_mesh(text: str, chips: int) -> dict[str, int]:
    """Returns the sizes in a text such as ``data=2,fsdp=8``; an axis that is missing has size 1, ``data`` the rest.

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
