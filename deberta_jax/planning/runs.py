"""Plans the run that an experiment describes, before it starts: ``--plan`` of ``finetune`` and ``pretrain``."""

import contextlib
import dataclasses
import logging
import math
import os

import jax

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.planning.planner import make_plan
from deberta_jax.planning.report import as_json
from deberta_jax.planning.request import BatchShapes, Request, named_implementation, shapes
from deberta_jax.planning.table import causes, format_plan, size
from deberta_jax.planning.targets import Target, target_of
from deberta_jax.progress import quiet
from deberta_jax.tasks import Task
from deberta_jax.training.experiment import Experiment, Finetune, Pretraining, PretrainMLM, PretrainRTD
from deberta_jax.training.finetune_data import read_inputs
from deberta_jax.training.objective import masked_batch
from deberta_jax.training.pretrain_objectives import masked_lm_config, rtd_configs
from deberta_jax.training.pretraining import begin, masking_of
from deberta_jax.training.resolve import resolve_experiment

_log = logging.getLogger(__name__)
HERE = "here"
_JOBS = {Finetune: "finetune", PretrainMLM: "mlm", PretrainRTD: "rtd"}


@dataclasses.dataclass(frozen=True)
class RunShape:
    """Holds what planning needs of a run.

    Attributes:
      config: the model's config; of replaced-token detection the discriminator's.
      task: the task of a fine-tuning; None for pre-training.
      batch: shape and dtype of each array of the largest batch.
      steps: number of steps.
    """

    config: DebertaConfig
    task: Task | None
    batch: BatchShapes
    steps: int


def starts_after_plan(e: Experiment) -> bool:
    """Logs the plan of a run, if ``--plan`` asks for one.

    Returns:
      True where the run is to start: no plan was asked for, or the run fits the devices that are here.

    Raises:
      InputError: a run that does not fit, with the numbers; or that cannot be planned.
    """
    if not e.runtime.plan:
        return True
    here = e.runtime.plan == HERE
    target, capacity = _this_machine() if here else (target_of(e.runtime.plan, "--plan"), 0.0)
    whole = dataclasses.replace(e.runtime, mesh_data=-1, mesh_fsdp=1, mesh_tensor=1)
    # A run that starts here logs the same messages once more.
    with quiet() if here else contextlib.nullcontext():
        shape = shape_of_run(dataclasses.replace(e, runtime=whole))
    plan = make_plan(request_of_run(e, shape, target), capacity=capacity)
    _log.info("%s", format_plan(plan, as_json(plan) | {"model": e.model}))
    if plan.fits is False:
        raise InputError(
            f"--plan {e.runtime.plan}: a device would need {size(plan.needed)} ({causes(plan)}) and has "
            f"{size(plan.capacity)}; share parameters with --mesh-fsdp, or use --remat full, --accumulate or a smaller "
            "--batch-size"
        )
    return here


def _this_machine() -> tuple[Target, float]:
    """Returns this process's devices, which must be CPUs, and the bytes of memory for each."""
    count, platform = jax.device_count(), jax.default_backend()
    if platform != "cpu":
        raise InputError("--plan here: is for CPUs; name the slice instead, such as --plan v5e:4x4")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Target("cpu", f"cpu:{count}", count, flag="--plan"), memory / count


def shape_of_run(e: Experiment) -> RunShape:
    """Resolves an experiment as far as its program is concerned.

    A fine-tuning reads its training table, for the lengths of the examples decide the shapes of batches. A pre-training
    reads no text: its rows have one length. No weights are read.

    Raises:
      InputError: files, columns, labels, model or options that cannot be used.
    """
    if isinstance(e, Finetune):
        inputs = read_inputs(resolve_experiment(e))
        largest = max(inputs.batches.examples(), key=lambda batch: math.prod(batch["input_ids"].shape))
        return RunShape(inputs.config, inputs.task, shapes(largest), len(inputs.batches))
    begin(e)
    config = masked_lm_config(e) if isinstance(e, PretrainMLM) else rtd_configs(e)[-1]
    return RunShape(config, None, pretraining_batch(e), e.steps)


def pretraining_batch(e: Pretraining) -> BatchShapes:
    """Returns shape and dtype of each array of a pre-training's batches."""
    targets = masking_of(e, "mask").targets(e.max_length)
    # Shapes from one row: a large batch would take memory for nothing.
    example = shapes(masked_batch(1, e.max_length, targets, e.layout))
    return {name: ((e.batch_size, *dims[1:]), dtype) for name, (dims, dtype) in example.items()}


def request_of_run(e: Experiment, shape: RunShape, target: Target) -> Request:
    """Returns the request for the run's largest batch on the target, with every size of the mesh resolved."""
    r = e.runtime
    data = r.mesh_data if r.mesh_data > 0 else max(target.chips // (r.mesh_fsdp * r.mesh_tensor), 1)
    whole = isinstance(e, Finetune) and e.distillation.attention_weight > 0
    attention = named_implementation(r.attention, target, e.dtype, whole_scores=whole)
    named = dataclasses.replace(r, mesh_data=data, attention=attention)
    request = Request(
        job=_JOBS[type(e)],
        experiment=dataclasses.replace(e, runtime=named),
        config=shape.config,
        task=shape.task,
        target=target,
        batch=shape.batch,
        steps=shape.steps,
    )
    if not isinstance(e, Finetune):
        return request
    # A fine-tuning adds rows of padding until its mesh divides the batch.
    parts = data * r.mesh_fsdp * r.accumulate
    rows = -(-request.rows // parts) * parts
    batch = {name: ((rows, *dims[1:]), dtype) for name, (dims, dtype) in request.batch.items()}
    return dataclasses.replace(request, batch=batch)
