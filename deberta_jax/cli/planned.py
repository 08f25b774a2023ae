"""``--plan`` of ``finetune`` and ``pretrain``: the run about to start, planned; refused if it cannot fit."""

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator

import jax

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.inference.tasks import Task, settle_task
from deberta_jax.planning.chips import Target, target_of
from deberta_jax.planning.planner import make_plan
from deberta_jax.planning.report import as_json
from deberta_jax.planning.request import Experiment, Request, named_body, shapes
from deberta_jax.planning.table import causes, describe, size
from deberta_jax.training.experiment import Finetune, PretrainMLM, PretrainRTD
from deberta_jax.training.finetune import keep_order, make_job, read
from deberta_jax.training.loop import Job
from deberta_jax.training.pretrain import begin, mlm_job, rtd_job
from deberta_jax.training.resolve import resolve_config

_log = logging.getLogger(__name__)
HERE = "here"


def starts_after_plan(e: Experiment) -> bool:
    """Shows the plan that ``--plan`` asks for, if it does. True if the run is to start: it fits, and was planned for
    the devices that are here.

    Raises:
      InputError: a run that cannot fit, with the numbers; or that cannot be planned.
    """
    if not e.runtime.plan:
        return True
    target, capacity = _here() if e.runtime.plan == HERE else (target_of(e.runtime.plan, "--plan"), 0.0)
    whole = dataclasses.replace(e.runtime, mesh_data=-1, mesh_fsdp=1, mesh_tensor=1)
    # What the run itself is going to say is not said twice.
    with _quiet() if e.runtime.plan == HERE else contextlib.nullcontext():
        job, config, task = _job(dataclasses.replace(e, runtime=whole))
    request = _request(e, job, config, task, target)
    plan = make_plan(request, capacity=capacity)
    _log.info("%s", describe(plan, as_json(plan) | {"model": e.model}))
    if plan.fits is False:
        raise InputError(
            f"--plan {e.runtime.plan}: a device would need {size(plan.needed)} ({causes(plan)}) and has "
            f"{size(plan.capacity)}; share parameters with --mesh-fsdp, or use --remat full, --accumulate or a smaller "
            "--batch-size"
        )
    return e.runtime.plan == HERE


def _here() -> tuple[Target, float]:
    """This process's devices, which must be CPUs, and the memory that each may have."""
    count, platform = jax.device_count(), jax.default_backend()
    if platform != "cpu":
        raise InputError("--plan here: is for CPUs; name the slice instead, such as --plan v5e:4x4")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Target("cpu", f"cpu:{count}", count, "--plan"), memory / count


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("deberta_jax")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)


def _job(e: Experiment) -> tuple[Job, DebertaConfig, Task | None]:
    if isinstance(e, Finetune):
        e, record, train, held_out = read(e)
        config = resolve_config(e)
        job = make_job(e, record, storage.output_directory("--output", e.output), train, held_out)
        return job, config, keep_order(settle_task(e, train), config)
    record, directory = begin(e)
    job = mlm_job(e, record, directory) if isinstance(e, PretrainMLM) else rtd_job(e, record, directory)
    return job, job.objective.configs[-1], None


def _request(e: Experiment, job: Job, config: DebertaConfig, task: Task | None, target: Target) -> Request:
    """Of the run's largest batch."""
    r = e.runtime
    data = r.mesh_data if r.mesh_data > 0 else max(target.chips // (r.mesh_fsdp * r.mesh_tensor), 1)
    named = dataclasses.replace(r, mesh_data=data, attention=named_body(r.attention, target, e.dtype))
    kinds = {Finetune: "finetune", PretrainMLM: "mlm", PretrainRTD: "rtd"}
    largest = max(job.batches.examples(), key=lambda batch: math.prod(batch["input_ids"].shape))
    request = Request(
        job=kinds[type(e)],
        experiment=dataclasses.replace(e, runtime=named),
        config=config,
        task=task,
        target=target,
        batch=shapes(largest),
        steps=len(job.batches),
    )
    if not isinstance(e, Finetune):
        return request
    # Rows of padding fill up what its mesh divides.
    parts = data * r.mesh_fsdp * r.accumulate
    rows = -(-request.rows // parts) * parts
    batch = {name: ((rows, *shape[1:]), dtype) for name, (shape, dtype) in request.batch.items()}
    return dataclasses.replace(request, batch=batch)
