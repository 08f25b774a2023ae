"""Times the steps that training and prediction run, on random weights and random tokens."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.benchmarking.cases import Case, count_tokens, make_batch
from deberta_jax.data.labels import SINGLE_LABEL, LabelSpec
from deberta_jax.inference.predict import Predictor
from deberta_jax.models import init_params, prepare_for_inference
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.tasks import TextTask
from deberta_jax.training.experiment import Finetune, RunOptions, compute_dtype
from deberta_jax.training.finetune_model import finetune_objective
from deberta_jax.training.flops import forward_flops, peak_flops
from deberta_jax.training.objective import prepare_step
from deberta_jax.training.state import init_state
from deberta_jax.training.step import compile_step

_TASK = TextTask(("text",), ("label",), LabelSpec(SINGLE_LABEL, ("0", "1")))


def measure_all(cases: Sequence[Case], *, steps: int) -> Iterator[dict[str, Any]]:
    """Yields what ``measure`` returns for each case, with the matmul throughput measured once for each dtype."""
    peaks = {dtype: matmul_throughput(dtype) for dtype in dict.fromkeys(case.dtype for case in cases)}
    for case in cases:
        yield measure(case, steps=steps, peak=peaks[case.dtype])


def measure(case: Case, *, steps: int, peak: float) -> dict[str, Any]:
    """Returns the figures of a case; where the devices' memory is too small, ``error`` instead of most of them.

    Args:
      steps: number of timed steps; their median counts. One step before them is not timed.
      peak: matmul throughput of this machine in FLOP/s, from ``matmul_throughput``.

    Returns:
      ``tokens_per_second``, padding not counted; ``padding``, as a fraction of the token slots; ``mfu``, the model's
      FLOP/s on all token slots as a fraction of the devices' peak by their data sheets, None where that is not known;
      ``share_of_products``, the same as a fraction of ``peak``; ``compile_seconds``; ``program_bytes``, the arguments
      and temporary arrays of one device by the compiler's account; ``device_peak_bytes``, the most that the process
      ever held on a device, None where the device does not report it.
    """
    batch = make_batch(case)
    row = {
        "model": case.name,
        "job": case.job,
        "shape": f"{case.rows}x{case.length}",
        "dtype": case.dtype,
        "texts": case.texts,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }
    began = time.perf_counter()
    try:
        compiled, run = (_compile_forward if case.job == "forward" else _compile_train)(case, batch)
        row["compile_seconds"] = round(time.perf_counter() - began, 2)
        run()
        taken = statistics.median(_seconds(run) for _ in range(steps))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"error": "out of memory"}
    slots, tokens = batch["input_ids"].size, count_tokens(batch)
    done = forward_flops(case.config, slots, case.length) * (1 if case.job == "forward" else 3) / taken
    known, memory = peak_flops(0.0), compiled.memory_analysis()
    held = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return row | {
        "tokens_per_second": round(tokens / taken, 1),
        "padding": round(1 - tokens / slots, 3),
        "mfu": round(done / known, 4) if known else None,
        "share_of_products": round(done / peak, 4),
        "program_bytes": None if memory is None else memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "device_peak_bytes": held,
    }


def _experiment(case: Case) -> Finetune:
    return Finetune(
        model="-",
        from_scratch=True,
        text=("text",),
        label="label",
        batch_size=case.rows,
        max_length=case.length,
        dtype=case.dtype,
        runtime=RunOptions(attention=case.attention),  # pyright: ignore[reportArgumentType]
    )


def _compile_forward(case: Case, batch: dict[str, np.ndarray]) -> tuple[Any, Callable[[], Any]]:
    mesh = make_mesh()
    model = finetune_objective(_experiment(case), case.config, _TASK)[0].model
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model, params = prepare_for_inference(model, jax.jit(lambda: init_params(model, jax.random.key(0)))())
    params = jax.device_put(params, everywhere)
    batch = {name: array for name, array in batch.items() if name != "labels"}
    program = Predictor(model, 0, max_length=case.length, batch_size=case.rows, mesh=mesh).forward
    with jax.set_mesh(mesh):
        arrays = global_batch(batch, mesh)
        compiled = program.lower(params, arrays).compile()
    return compiled, lambda: jax.block_until_ready(compiled(params, arrays))


def _compile_train(case: Case, batch: dict[str, np.ndarray]) -> tuple[Any, Callable[[], Any]]:
    mesh, objective = make_mesh(), finetune_objective(_experiment(case), case.config, _TASK)[1]
    prepared = prepare_step(objective, mesh, steps=1000)
    compiled = compile_step(prepared.step, prepared.state, prepared.shardings, batch, mesh)
    params = objective.initial_params(prepared.shardings.params)
    state, arrays = [init_state(params, prepared.optimizer)], global_batch(batch, mesh)

    def run():
        state[0], measured = compiled(state[0], arrays)
        jax.block_until_ready((state[0], measured))

    return compiled, run


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def matmul_throughput(dtype: str, size: int = 2048) -> float:
    """Returns the best FLOP/s of ten products of square matrices on one device, times the number of devices."""
    a = jnp.ones((size, size), compute_dtype(dtype))
    matmul = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    run = lambda: jax.block_until_ready(matmul(a))
    run()
    return 2.0 * size**3 / min(_seconds(run) for _ in range(10)) * jax.device_count()
