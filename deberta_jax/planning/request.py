"""Describes a program to compile, completely and without data. A request can be sent to another process."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.batches import pad_batch
from deberta_jax.data.features import Features
from deberta_jax.data.labels import SINGLE_LABEL, LabelSpec
from deberta_jax.data.text_batches import pad_texts
from deberta_jax.errors import InputError
from deberta_jax.ops.attention import expected_implementation
from deberta_jax.planning.targets import Target
from deberta_jax.tasks import Task
from deberta_jax.tasks.text_classification import TextTask
from deberta_jax.text.mlm_masking import Masking
from deberta_jax.training.experiment import Experiment, Finetune, PretrainMLM, PretrainRTD, RunOptions, compute_dtype
from deberta_jax.training.objective import masked_batch

JOBS = ("finetune", "mlm", "rtd", "predict")
BatchShapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Describes one program. Two requests with the same ``repr`` are the same program.

    Attributes:
      job: one of ``JOBS``.
      experiment: the run's experiment. Its runtime has every size of the mesh, and an attention implementation that is
        not ``auto``.
      config: the model's config; of replaced-token detection the discriminator's.
      task: the task of fine-tuning and prediction.
      target: the devices to compile for.
      batch: shape and dtype of each array of the global batch.
      steps: number of steps of the run.
      compiler_options: names and values of options for the compiler, beside its defaults.
    """

    job: str
    experiment: Experiment
    config: DebertaConfig
    task: Task | None
    target: Target
    batch: BatchShapes
    steps: int = 1000
    compiler_options: tuple[tuple[str, str], ...] = ()

    @property
    def mesh(self) -> dict[str, int]:
        """Returns the size of each mesh axis."""
        r = self.experiment.runtime
        return {"data": r.mesh_data, "fsdp": r.mesh_fsdp, "tensor": r.mesh_tensor}

    @property
    def slice_mesh(self) -> dict[str, int]:
        """Returns the size of each mesh axis within a slice; slices are the outer part of ``data``."""
        return self.mesh | {"data": self.mesh["data"] // self.target.slices}

    @property
    def xla_flags(self) -> str:
        """Returns the compiler's options as they are typed; "" where there are none."""
        return " ".join(f"{name}={value}" for name, value in self.compiler_options)

    @property
    def rows(self) -> int:
        """Returns the rows of the global batch."""
        return self.batch["input_ids"][0][0]

    @property
    def length(self) -> int:
        """Returns the tokens of a row."""
        return self.batch["input_ids"][0][-1]

    @property
    def tokens(self) -> int:
        """Returns the token slots of a step."""
        return math.prod(self.batch["input_ids"][0])

    def with_runtime(self, **changes: Any) -> "Request":
        """Returns the request with other runtime options."""
        runtime = dataclasses.replace(self.experiment.runtime, **changes)
        return dataclasses.replace(self, experiment=dataclasses.replace(self.experiment, runtime=runtime))

    def with_rows(self, rows: int) -> "Request":
        """Returns the request with another number of rows of the same length."""
        batch = {name: ((rows, *shape[1:]), dtype) for name, (shape, dtype) in self.batch.items()}
        return dataclasses.replace(self, batch=batch, experiment=dataclasses.replace(self.experiment, batch_size=rows))


def make_request(
    job: str,
    config: DebertaConfig,
    target: Target,
    *,
    batch_size: int,
    length: int,
    dtype: str,
    runtime: RunOptions,
    moment_dtype: Literal["float32", "bfloat16"] = "float32",
) -> Request:
    """Returns a request for a job with rows of ``length`` tokens; a classification has two classes.

    Raises:
      InputError: values that cannot be used.
    """
    common = {"model": "-", "from_scratch": True, "batch_size": batch_size, "max_length": length, "dtype": dtype}
    task = None
    if job in ("finetune", "predict"):
        experiment = Finetune(**common, text=("text",), label="label", batching="buckets", runtime=runtime)
        task = TextTask(("text",), ("label",), LabelSpec(SINGLE_LABEL, ("0", "1")))
        nothing = Features(
            ids=np.zeros(0, np.int32),
            types=np.zeros(0, np.int8),
            starts=np.zeros(1, np.int64),
            labels=np.zeros(0, np.int32),
        )
        example = pad_batch(nothing, np.zeros(0, np.int64), 1, length, 0)
        if job == "predict":
            example = pad_texts(nothing, (), 1, length, 0)
    else:
        experiment = (PretrainMLM if job == "mlm" else PretrainRTD)(**common, runtime=runtime)
        example = masked_batch(1, length, Masking(probability=experiment.mask_share).targets(length))
    optimization = dataclasses.replace(experiment.optimization, moment_dtype=moment_dtype)
    experiment = dataclasses.replace(experiment, optimization=optimization)
    experiment.check()
    # Shapes from one row: a large batch would take memory for nothing.
    request = Request(job=job, experiment=experiment, config=config, task=task, target=target, batch=shapes(example))
    return request.with_rows(batch_size).with_runtime(attention=named_implementation(runtime.attention, target, dtype))


def shapes(example: Mapping[str, np.ndarray]) -> BatchShapes:
    """Returns shape and dtype of each array."""
    return {name: (tuple(array.shape), str(array.dtype)) for name, array in example.items()}


def named_implementation(attention: str, target: Target, dtype: str, *, whole_scores: bool = False) -> str:
    """Returns the attention implementation of a run on the target, whose devices are not here, in place of ``auto``.

    Args:
      whole_scores: the run reads attention weights, as a distillation with a loss between them does.
    """
    if attention != "auto":
        return attention
    platform = "gpu" if target.platform == "cuda" else target.platform
    return expected_implementation(platform, compute_dtype(dtype), whole_scores=whole_scores)


def check_mesh(request: Request) -> None:
    """Checks that the mesh has as many chips as the target, and divides the model and the batch.

    Raises:
      InputError: it does not; the message has an option that would.
    """
    m, chips, c = request.mesh, request.target.chips, request.config
    typed, flag = request.target.mesh_flags, request.target.batch_flag
    if math.prod(m.values()) != chips:
        raise InputError(
            f"{typed(m)}: is {math.prod(m.values())} chips, {request.target.name} has {chips}; "
            f"give for example {typed({'fsdp': chips // request.target.slices})} or {typed({'data': chips})}"
        )
    if m["data"] % request.target.slices and request.target.card is None:
        raise InputError(
            f"{typed(m)}: data is not a multiple of the {request.target.slices} slices; fsdp and tensor stay within a "
            f"slice of {chips // request.target.slices} chips"
        )
    for name, size, axis in (
        ("attention heads", c.num_attention_heads, "tensor"),
        ("feed-forward width", c.intermediate_size, "tensor"),
        ("vocabulary", c.vocab_size, "tensor"),
        ("width", c.hidden_size, "fsdp"),
    ):
        if size % m[axis]:
            fits = [n for n in range(1, m[axis]) if size % n == 0 and chips % n == 0]
            raise InputError(
                f"{typed({axis: m[axis]})}: does not divide the model's {name} of {size}; "
                f"give {typed({axis: fits[-1]})}"
            )
    parts = m["data"] * m["fsdp"] * request.experiment.runtime.accumulate
    if request.rows % parts:
        raise InputError(
            f"{flag} {request.rows}: is not a multiple of the {parts} parts it is computed in "
            f"(data x fsdp x --accumulate); give {flag} {-(-request.rows // parts) * parts}"
        )
