"""How fast this machine is: the steps that training and prediction run, timed on random weights and made-up texts."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.batches import pad_batch
from deberta_jax.data.features import Features
from deberta_jax.data.labels import SINGLE_LABEL, LabelSpec
from deberta_jax.data.packing import Packing, pack, packed_batch
from deberta_jax.errors import InputError
from deberta_jax.inference.predict import Predictor
from deberta_jax.inference.tasks import TextTask
from deberta_jax.models import init_params, prepare_for_inference
from deberta_jax.sharding import global_batch, make_mesh
from deberta_jax.training.experiment import Finetune, Runtime, compute_dtype
from deberta_jax.training.finetune import finetune_objective
from deberta_jax.training.flops import forward_flops, peak_flops
from deberta_jax.training.objective import prepare
from deberta_jax.training.state import make_state
from deberta_jax.training.step import compile_step

_TASK = TextTask(("text",), ("label",), LabelSpec(SINGLE_LABEL, ("0", "1")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One line of the benchmark.

    Attributes:
      name, config: of the model, with random weights.
      job: ``forward``, prediction by a classifier; or ``train``, a step of fine-tuning it, AdamW and dropout included.
      length: tokens of a row. rows: of a batch, on all devices together.
      texts: ``fixed``, each row one text of that length; or ``mixed``, rows packed with texts of log-normal lengths,
        a median of an eighth of a row.
    """

    name: str
    config: DebertaConfig
    job: str
    length: int
    rows: int
    dtype: str
    texts: str
    attention: str = "auto"


def cases(
    models: dict[str, DebertaConfig],
    jobs: Sequence[str],
    lengths: Sequence[int],
    dtypes: Sequence[str],
    texts: Sequence[str],
    *,
    tokens: int,
    attention: str,
) -> list[Case]:
    """All combinations; a batch has about ``tokens`` places, in a number of rows that the devices divide."""
    if tokens < 1 or min(lengths) < 8:
        raise InputError("--tokens and --lengths: a batch has at least 1 token, a row at least 8")
    count = jax.device_count()
    rows = {length: -(-max(1, tokens // length) // count) * count for length in lengths}
    return [
        Case(
            name=name,
            config=config,
            job=job,
            length=length,
            rows=rows[length],
            dtype=dtype,
            texts=kind,
            attention=attention,
        )
        for name, config in models.items()
        for dtype in dtypes
        for job in jobs
        for length in lengths
        for kind in texts
    ]


def measure(case: Case, *, steps: int, peak: float) -> dict[str, Any]:
    """A case's figures; ``error`` in place of most where the devices' memory is too small.

    Args:
      steps: timed one by one, after one that is not; their median counts.
      peak: what a product of matrices reaches here, in FLOP/s, from ``product_peak``.

    Returns:
      tokens_per_second (of texts, not of padding), padding; ``mfu``, the model's arithmetic on all places as a share of
      the devices' peak by their data sheets, None where that is not known, and ``share_of_products``, of ``peak``;
      compile_seconds; program_bytes, arguments and temporary arrays of one device by the compiler's account, and
      device_peak_bytes, the most that the process ever held there, where it can be asked.
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
        compiled, run = (_forward if case.job == "forward" else _train)(case, batch)
        row["compile_seconds"] = round(time.perf_counter() - began, 2)
        run()
        taken = statistics.median(_seconds(run) for _ in range(steps))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row | {"error": "out of memory"}
    places, tokens = batch["input_ids"].size, int(_real(batch).sum())
    done = forward_flops(case.config, places, case.length) * (1 if case.job == "forward" else 3) / taken
    known, memory = peak_flops(0.0), compiled.memory_analysis()
    held = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return row | {
        "tokens_per_second": round(tokens / taken, 1),
        "padding": round(1 - tokens / places, 3),
        "mfu": round(done / known, 4) if known else None,
        "share_of_products": round(done / peak, 4),
        "program_bytes": None if memory is None else memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "device_peak_bytes": held,
    }


def make_batch(case: Case) -> dict[str, np.ndarray]:
    """Random tokens and labels, the same every time."""
    random = np.random.default_rng(0)
    if case.texts == "fixed":
        lengths = np.full(case.rows, case.length)
    else:
        drawn = np.exp(random.normal(np.log(case.length / 8), 0.8, 64 * case.rows)).astype(np.int64)
        lengths = np.clip(drawn, 4, case.length)
        lengths = lengths[np.cumsum(lengths) <= 0.97 * case.rows * case.length]
    slots = case.length // 4
    row_of, _ = pack(lengths, case.length, slots)
    here = np.flatnonzero(row_of < case.rows)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    features = Features(
        ids=random.integers(5, case.config.vocab_size, starts[-1]).astype(np.int32),
        types=np.zeros(starts[-1], np.int8),
        starts=starts,
        labels=random.integers(0, 2, len(lengths)).astype(np.int32),
    )
    if case.texts == "fixed":
        return pad_batch(features, here, case.rows, case.length, 0)
    shape = Packing(case.length, int(np.bincount(row_of[here]).max()), (case.rows,))
    return packed_batch(features, here, row_of[here], np.arange(case.rows), shape, 0)


def _real(batch: dict[str, np.ndarray]) -> np.ndarray:
    return batch["segment_ids"] > 0 if "segment_ids" in batch else batch["attention_mask"]


def _experiment(case: Case) -> Finetune:
    return Finetune(
        model="-",
        from_scratch=True,
        text=("text",),
        label="label",
        batch_size=case.rows,
        max_length=case.length,
        dtype=case.dtype,
        runtime=Runtime(attention=case.attention),  # pyright: ignore[reportArgumentType]
    )


def _forward(case: Case, batch: dict[str, np.ndarray]) -> tuple[Any, Callable[[], Any]]:
    mesh = make_mesh()
    model = finetune_objective(_experiment(case), case.config, _TASK)[0].model
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    model, params = prepare_for_inference(model, jax.jit(lambda: init_params(model, jax.random.key(0)))())
    params = jax.device_put(params, everywhere)
    batch = {name: array for name, array in batch.items() if name != "labels"}
    program = Predictor(model, 0, max_length=case.length, batch_size=case.rows, mesh=mesh, read=_TASK.read).forward
    with jax.set_mesh(mesh):
        placed = global_batch(batch, mesh)
        compiled = program.lower(params, placed).compile()
    return compiled, lambda: jax.block_until_ready(compiled(params, placed))


def _train(case: Case, batch: dict[str, np.ndarray]) -> tuple[Any, Callable[[], Any]]:
    mesh, objective = make_mesh(), finetune_objective(_experiment(case), case.config, _TASK)[1]
    prepared = prepare(objective, mesh, steps=1000)
    compiled = compile_step(prepared.step, prepared.state, prepared.shardings, batch, mesh)
    params = objective.initial_params(prepared.shardings.params)
    make = jax.jit(lambda p: make_state(p, prepared.optimizer, 0), out_shardings=prepared.shardings, donate_argnums=0)
    held, placed = [make(params)], global_batch(batch, mesh)

    def run():
        held[0], measured = compiled(held[0], placed)
        jax.block_until_ready((held[0], measured))

    return compiled, run


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def product_peak(dtype: str, size: int = 2048) -> float:
    """Best FLOP/s of ten products of square matrices on one device, times the devices."""
    a = jnp.ones((size, size), compute_dtype(dtype))
    product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    run = lambda: jax.block_until_ready(product(a))
    run()
    return 2.0 * size**3 / min(_seconds(run) for _ in range(10)) * jax.device_count()


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The rows for a terminal."""
    yield f"{'model':24} {'job':8} {'shape':>9} {'dtype':9} {'texts':6} {'tokens/s':>12} {'mfu':>7} " + (
        f"{'of products':>11} {'memory':>9} {'compile':>8}"
    )
    share = lambda x: "-" if x is None else f"{100 * x:.1f} %"
    for r in rows:
        first = f"{r['model']:24} {r['job']:8} {r['shape']:>9} {r['dtype']:9} {r['texts']:6}"
        if "error" in r:
            yield f"{first} {r['error']}"
            continue
        size = r["device_peak_bytes"] or r["program_bytes"]
        size = "-" if size is None else f"{size / 1e9:.2f} GB"
        yield (
            f"{first} {r['tokens_per_second']:12,.0f} {share(r['mfu']):>7} {share(r['share_of_products']):>11}"
            f" {size:>9} {r['compile_seconds']:6.1f} s"
        )


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Tokens a second by shape, a group of bars for each job; the format is that of the file's name."""
    done = [r for r in rows if "error" not in r]
    figure = matplotlib.figure.Figure(figsize=(9, 1.2 + 0.32 * max(1, len(done))), layout="constrained")
    axes = figure.add_subplot()
    names = [f"{r['model']} {r['job']} {r['shape']} {r['dtype']} {r['texts']}" for r in done]
    bars = axes.barh(names, [r["tokens_per_second"] for r in done], color="#4477aa")
    axes.bar_label(bars, [f"{100 * r['share_of_products']:.0f} %" for r in done], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("tokens of text a second; beside each bar, the share of what matrix products reach here")
    with storage.output_file("--plot", path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)
