"""What a run would be, without running it: ``--dry-run``."""

import math
from typing import Any

import jax

from deberta_jax.training.loop import Job, prepare_job
from deberta_jax.training.optimizers import split
from deberta_jax.training.step import compile_step


def describe(job: Job, *, compiled: bool = True) -> dict[str, Any]:
    """Steps, programs, parameters, and the bytes of one device: of the state, and by the compiler's account of the
    largest program's temporary arrays, where it gives one. Nothing is computed or written."""
    prepared = prepare_job(job)
    examples = list(job.batches.examples())
    largest = max(examples, key=lambda batch: math.prod(batch["input_ids"].shape))
    parameters = job.objective.parameters
    trained = split(parameters.shapes, parameters.frozen)[0]
    out: dict[str, Any] = {
        "steps": len(job.batches),
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


def _count(shapes: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
