"""Describes what a run would be, without running it: ``--dry-run``."""

import math
from typing import Any

import jax

from deberta_jax.training.experiment import Finetune
from deberta_jax.training.finetuning import plan_finetune
from deberta_jax.training.loop import Job, prepare_job
from deberta_jax.training.optimizers import split_frozen, warmup_steps
from deberta_jax.training.step import compile_step


def describe_job(job: Job, *, compiled: bool = True) -> dict[str, Any]:
    """Returns steps, programs, parameters, and the memory of one device. Nothing is computed or written.

    Args:
      compiled: also compile the largest program for its temporary memory.

    Returns:
      ``learning_rate`` (the highest), ``schedule``, ``warmup_steps``, ``steps``, ``examples_per_step``, ``programs``
      (shapes of ``input_ids``), ``parameters``, ``trained_parameters``, ``mesh``, ``state_bytes_per_device``;
      ``temporary_bytes_per_device`` where the compiler reports it.
    """
    prepared = prepare_job(job)
    examples = list(job.batches.examples())
    largest = max(examples, key=lambda batch: math.prod(batch["input_ids"].shape))
    parameters = job.objective.parameters
    trained = split_frozen(parameters.shapes, parameters.frozen)[0]
    o, steps = job.objective.optimization, len(job.batches)
    out: dict[str, Any] = {
        "learning_rate": o.learning_rate,
        "schedule": o.schedule,
        "warmup_steps": warmup_steps(o.warmup, steps),
        "steps": steps,
        "examples_per_step": job.batches.size(0).examples,
        "programs": [list(batch["input_ids"].shape) for batch in examples],
        "parameters": _count(parameters.shapes),
        "trained_parameters": _count(trained),
        "mesh": dict(job.mesh.shape),
        "state_bytes_per_device": sum(
            math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf, sharding in zip(jax.tree.leaves(prepared.state), jax.tree.leaves(prepared.shardings), strict=True)
        ),
    }
    if compiled:
        program = compile_step(prepared.step, prepared.state, prepared.shardings, largest, job.mesh)
        memory = program.memory_analysis()
        if memory is not None:
            out["temporary_bytes_per_device"] = int(memory.temp_size_in_bytes)
    return out


def describe_finetune(experiment: Finetune) -> dict[str, Any]:
    """Returns what ``describe_job`` returns for a fine-tuning, and the task, columns, labels and metric of it.

    A recipe's source and published score are in it too: ``recipe`` and ``published_score``, None without one.

    Raises:
      InputError: as ``training.finetuning.finetune``.
    """
    e, job = plan_finetune(experiment)
    resolved = {name: getattr(e, name) for name in ("task", "text", "label", "labels", "choices")}
    labels = job.objective.configs[0].id2label
    source = {name: getattr(e, name) or None for name in ("recipe", "published_score")}
    return {**resolved, **source, "metric": job.metric, "labels_of_model": labels, **describe_job(job)}


def _count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
