"""Makes the model of a fine-tuning run: its parameters, which of them are trained, and its loss."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.data.labels import LabelIds
from deberta_jax.errors import InputError, listed
from deberta_jax.inference.predict import model_inputs
from deberta_jax.models import Model, head_spec, init_params, reinitialize_layers, spec_of_model
from deberta_jax.ops.quantization import is_compressed
from deberta_jax.tasks import Task
from deberta_jax.training.distillation import Teacher, distillation_terms, distilled_parameters, make_teacher
from deberta_jax.training.experiment import Finetune, model_runtime
from deberta_jax.training.lora import Lora, find_kernels, init_lora, lora_parameters, merge
from deberta_jax.training.objective import Objective
from deberta_jax.training.optimizers import frozen_paths, path_of
from deberta_jax.training.sift import Sift, check_sift, normalized_words, sift_terms
from deberta_jax.training.state import Parameters, parameters_of
from deberta_jax.training.step import Loss
from deberta_jax.weights import Quantization, load
from deberta_jax.weights.quantization import quantized_shapes
from deberta_jax.weights.save import check_parameters

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Holds the model of a run and its parameters.

    Attributes:
      model: the model.
      parameters: shapes and axes of the run's parameters, and which of them are frozen.
      initial_params: returns the run's parameters, given their shardings.
      effective: returns the model's parameters, given the run's parameters: LoRA's updates are merged.
      lora: the kernels with LoRA's updates; None without LoRA.
      teacher: the teacher, whose parameters are in the run's ones as ``teacher``; None without distillation.
    """

    model: Model
    parameters: Parameters
    initial_params: Callable[[Any], Any]
    effective: Callable[[Any], Any]
    lora: Lora | None = None
    teacher: Teacher | None = None

    def trainable(self, params: Any) -> Any:
        """Returns the part of the run's parameters that is not the teacher's."""
        return params if self.teacher is None else params["student"]


def finetune_objective(e: Finetune, config: DebertaConfig, task: Task) -> tuple[TrainedModel, Objective]:
    """Returns the model and the objective that its training step is made from.

    Reads no data. Weights are read when ``initial_params`` is called.

    Args:
      config: the config of the model that the experiment names.

    Raises:
      InputError: an option does not go with the model or the task.
    """
    trained = make_model(e, config, task)
    return trained, Objective(
        configs=(trained.model.config,),
        parameters=trained.parameters,
        initial_params=trained.initial_params,
        loss=make_loss(e, task, trained),
        loss_weights={"sift": e.sift, **e.distillation.loss_weights},
        optimization=e.optimization,
    )


def make_model(e: Finetune, config: DebertaConfig, task: Task) -> TrainedModel:
    """Returns the model for a task with its parameters. Raises InputError as ``finetune_objective``."""
    student, d = _make_student(e, config, task), e.distillation
    if not d.teacher:
        return student
    runtime, head = model_runtime(e), task.head
    teacher = make_teacher(d, student.model.config, head, runtime, config.num_hidden_layers)
    return TrainedModel(
        student.model,
        distilled_parameters(student.parameters, teacher),
        lambda shardings: {
            "student": student.initial_params(shardings["student"]),
            "teacher": teacher.load(runtime, head, shardings["teacher"]),
        },
        lambda params: student.effective(params["student"]),
        student.lora,
        teacher,
    )


def _make_student(e: Finetune, config: DebertaConfig, task: Task) -> TrainedModel:
    """Returns the model that is trained, without a teacher."""
    d = e.distillation
    d.check_layers(config.num_hidden_layers, e.model)
    source, config = (
        config,
        dataclasses.replace(config, num_hidden_layers=len(d.student_layers) or config.num_hidden_layers),
    )
    # The mask decoder of a pre-trained model, and the absolute positions that it reads, belong to its masked-LM head.
    configured = dataclasses.replace(
        task.configure(config), mask_decoder=False, cls_dropout=config.cls_dropout if e.dropout is None else e.dropout
    )
    kept = config.num_hidden_layers - e.optimization.freeze_layers
    if e.reinit_layers > max(0, kept):
        rest = f", {e.optimization.freeze_layers} of them frozen" if e.optimization.freeze_layers else ""
        raise InputError(f"--reinit-layers {e.reinit_layers}: the model has {config.num_hidden_layers}{rest}")
    model = head_spec(task.head).model.create(configured, model_runtime(e))
    initial_params = lambda shardings: _initial_params(e, model, task.head, source, shardings)
    base = parameters_of(model)
    check_parameters(model, base.shapes)
    base = dataclasses.replace(base, frozen=frozen_paths(e.optimization, base.shapes))
    if e.reinit_layers and any("/layers/" in path for path in base.frozen):
        raise InputError("--reinit-layers: --freeze would leave layers as they are initialized; leave one of them out")
    if not e.lora:
        return TrainedModel(model, base, initial_params, lambda params: params)
    if e.optimization.layer_decay != 1.0 or e.optimization.freeze_layers:
        raise InputError("--lora: freezes the encoder; --layer-decay and --freeze-layers do not go with it")
    lora = find_kernels(base, e.lora_targets, e.lora, e.lora_alpha)
    if e.quantization:
        base = _quantized(base, model, frozen_quantization(e, model))

    def initial_lora(shardings):
        key = jax.random.fold_in(jax.random.key(e.seed), 1)
        update = jax.jit(lambda: init_lora(lora, key), out_shardings=shardings["lora"])()
        return {"base": initial_params(shardings["base"]), "lora": update}

    return TrainedModel(model, lora_parameters(base, lora), initial_lora, lambda params: merge(params, lora), lora)


def frozen_quantization(e: Finetune, model: Model) -> Quantization:
    """Returns how the frozen kernels are quantized: those of the encoder, because the head is trained."""
    _, spec = spec_of_model(model)
    return Quantization(scheme=e.quantization, keep=spec.parts_in(model.config))


def _quantized(base: Parameters, model: Model, quantization: Quantization) -> Parameters:
    """Returns the description of parameters of which some are quantized; every device has these whole."""
    shapes = quantized_shapes(model, quantization)
    whole = lambda array: (None,) * len(array.shape)
    axes = jax.tree.map(
        lambda leaf, names: jax.tree.map(whole, leaf) if is_compressed(leaf) else names,
        shapes,
        base.axes,
        is_leaf=is_compressed,
    )
    return dataclasses.replace(base, shapes=shapes, axes=axes)


def _initial_params(e: Finetune, model: Model, head: str, source: DebertaConfig, shardings: Any) -> Any:
    """Returns the parameters that training starts from: initialized, or read from the model directory.

    Args:
      source: the directory's config.
      shardings: a tree of ``jax.sharding.Sharding``, one for each parameter.
    """
    key, spec = jax.random.key(e.seed), head_spec(head)
    if e.from_scratch:
        return jax.jit(lambda: init_params(model, key), out_shardings=shardings)()
    names = None if spec.classifier and not spec.named_labels else model.config.id2label
    _, params, report = load(
        e.model,
        head,
        model_runtime(e),
        id2label=names,
        new_head=key,
        shardings=shardings,
        ignore=e.ignore,
        base_model=e.base_model or None,
        quantization=frozen_quantization(e, model) if e.quantization else "none",
    )
    classifier = f"{spec.classifier.partition('.')[0]}/"
    if any(row.path.startswith(classifier) and not row.initialised for row in report.targets):
        log_assumed_names(e.model, source.id2label, names or ())
    if e.distillation.student_layers:
        params = _keep_layers(params, e.distillation.student_layers, shardings)
        _log.info(
            "student: %d of the %d layers of %s", model.config.num_hidden_layers, source.num_hidden_layers, e.model
        )
    if not e.reinit_layers:
        return params
    _log.info("reinitialized: the last %d of %d layers", e.reinit_layers, model.config.num_hidden_layers)
    # A different key: with the seed of a pre-training run from scratch, ``key`` gives that run's initial parameters.
    layers_key = jax.random.fold_in(key, 2)
    reinitialize = lambda old: reinitialize_layers(model, old, layers_key, e.reinit_layers)
    return jax.jit(reinitialize, out_shardings=shardings, donate_argnums=0)(params)


def _keep_layers(params: Any, layers: tuple[int, ...], shardings: Any) -> Any:
    """Returns the parameters of a model with some of the layers alone."""

    def keep(keys: Any, leaf: jax.Array) -> jax.Array:
        return leaf[np.asarray(layers)] if "/layers/" in path_of(keys) else leaf

    return jax.jit(lambda tree: jax.tree_util.tree_map_with_path(keep, tree), out_shardings=shardings)(params)


def log_assumed_names(model: str, model_labels: Sequence[str], task_labels: Sequence[str]) -> None:
    """Warns if a trained classifier without names for its labels is trained further with the names of the task.

    Only the order of the labels then tells which label is which.

    Args:
      model: the model directory, for the message.
      model_labels, task_labels: the names of the labels in the model's config and in the task.
    """
    ids = LabelIds(model_labels)
    if any(ids.find(name) != i for i, name in enumerate(task_labels)):
        _log.warning(
            "%s: its classifier is trained further, but config.json does not name its labels: it is assumed that "
            "label %s; where that is not so, name them there (id2label)",
            model,
            listed(f"{i} is {name}" for i, name in enumerate(task_labels)),
        )


def make_loss(e: Finetune, task: Task, trained: TrainedModel) -> Loss:
    """Returns the loss of the task, and that of SiFT if the experiment asks for it.

    Raises:
      InputError: SiFT does not work with the task or the model.
    """
    apply = trained.model.apply

    def run(params, inputs, key, flags=None):
        return apply({"params": params}, **inputs, **(flags or {}), deterministic=False, rngs={"dropout": key})

    def plain(params, batch, key):
        return {"task": task.loss(run(trained.effective(params), model_inputs(batch), key), batch)}

    if trained.teacher is not None:
        return _distilled(e, task, trained, trained.teacher, run)
    if not e.sift:
        return plain
    if task.sift is None:
        raise InputError(f"--sift: compares logits of classes or numbers, which --task {e.task} does not have")
    check_sift(trained.model.config)
    sift = Sift(e.sift, e.sift_sigma, e.sift_step, task.sift == "numbers")

    def with_sift(params, batch, key):
        params = trained.effective(params)
        inputs = model_inputs(batch)
        z = normalized_words(params, inputs.pop("input_ids"), trained.model.dtype)
        forward = lambda p, x, k: run(p, {**inputs, "inputs_embeds": x}, k)
        return sift_terms(forward, lambda out: task.loss(out, batch), params, z, key, sift)

    return with_sift


def _distilled(e: Finetune, task: Task, trained: TrainedModel, teacher: Teacher, run: Callable[..., Any]) -> Loss:
    """Returns the loss of the task and those to the teacher."""

    def loss(params, batch, key):
        terms = distillation_terms(e.distillation, teacher, run, lambda out: task.loss(out, batch))
        return terms(trained.effective(params), params["teacher"], model_inputs(batch), batch, key)

    return loss
