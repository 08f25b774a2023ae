"""Distils a teacher into a student: the losses between their outputs, hidden states and attention weights.

The outputs are compared as by Hinton et al. 2015: the divergence of the softmax of logits / T, times T squared. Hidden
states are compared by their mean squared difference (Jiao et al. 2020) and attention weights by their divergence (Wang
et al. 2020), layer by layer.

The run's parameters are ``{"student": the student's tree, "teacher": the teacher's}``, of which the latter are frozen.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deberta_jax.config import DebertaConfig
from deberta_jax.data.labels import LabelIds
from deberta_jax.errors import InputError, listed
from deberta_jax.models import Model, Runtime, head_spec
from deberta_jax.ops.losses import F32, Items
from deberta_jax.training.distillation_options import Distillation
from deberta_jax.training.optimizers import path_of
from deberta_jax.training.state import Parameters, parameters_of
from deberta_jax.weights import load
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import open_source

_log = logging.getLogger(__name__)

# A logit of what is no class of an item, such as a token of another text: its probability is 0 in float32.
_ABSENT = -1e30


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Holds the teacher of a run.

    Attributes:
      name: directory or hub id.
      model: the teacher.
      order: for each label of the student the teacher's number of it; None: the same numbers.
      layers: for each layer of the student the teacher's layer that it is compared with.
    """

    name: str
    model: Model
    order: tuple[int, ...] | None
    layers: tuple[int, ...]

    def load(self, runtime: Runtime, head: str, shardings: Any) -> Any:
        """Returns the teacher's parameters."""
        return load(self.name, head, runtime, shardings=shardings, quantization="none")[1]


def make_teacher(d: Distillation, student: DebertaConfig, head: str, runtime: Runtime, source_layers: int) -> Teacher:
    """Returns the teacher. Reads its config and the list of its tensors, but no weights.

    Args:
      student: the student's config, with the labels of the task.
      head: the head that both have.
      source_layers: number of layers of the model that the student's layers are from.

    Raises:
      InputError: the teacher has no such head, other labels, or sizes that cannot be compared.
    """
    config = plan_head(open_source(d.teacher), HeadRequest(head)).config
    config = dataclasses.replace(config, mask_decoder=False, problem_type=student.problem_type)
    compared = (("hidden_weight", "hidden_size"), ("attention_weight", "num_attention_heads"))
    for option, name in compared:
        ours, theirs = getattr(student, name), getattr(config, name)
        if getattr(d, option) and ours != theirs:
            raise InputError(
                f"--{option.replace('_', '-')}: the {name} of the student is {ours}, that of {d.teacher} {theirs}; "
                "leave it out"
            )
    order = _label_order(d.teacher, config.id2label, student.id2label) if head_spec(head).named_labels else None
    if d.student_layers and source_layers == config.num_hidden_layers:
        layers = d.student_layers
    else:
        layers = even_layers(student.num_hidden_layers, config.num_hidden_layers)
    return Teacher(d.teacher, head_spec(head).model.create(config, runtime), order, layers)


def even_layers(student: int, teacher: int) -> tuple[int, ...]:
    """Returns for each of ``student`` layers one of ``teacher`` layers, at even distances up to the last."""
    return tuple(max(0, round((i + 1) * teacher / student) - 1) for i in range(student))


def _label_order(name: str, theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """Returns the teacher's number of each label of the task; None where the numbers are the same."""
    ids = LabelIds(theirs)
    found = [ids.find(label) for label in ours]
    if ids.unnamed and len(theirs) == len(ours) and None in found:
        _log.warning(
            "--teacher %s: config.json does not name its labels: it is assumed that label %s",
            name,
            listed(f"{i} is {label}" for i, label in enumerate(ours)),
        )
        return None
    if len(theirs) != len(ours) or None in found or len(set(found)) < len(ours):
        raise InputError(f"--teacher {name}: its labels are {listed(theirs)}, those of the task {listed(ours)}")
    order = tuple(int(i) for i in found if i is not None)
    return None if order == tuple(range(len(order))) else order


def distilled_parameters(student: Parameters, teacher: Teacher) -> Parameters:
    """Returns shapes and axes of the run's tree; the teacher is frozen."""
    own = parameters_of(teacher.model)
    paths = (path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(own.shapes)[0])
    frozen = {f"teacher/{path}" for path in paths} | {f"student/{path}" for path in student.frozen}
    shapes, axes = ({"student": a, "teacher": b} for a, b in ((student.shapes, own.shapes), (student.axes, own.axes)))
    return Parameters(shapes, axes, frozenset(frozen))


def distillation_terms(
    d: Distillation, teacher: Teacher, run: Callable[..., Any], task_loss: Callable[[Any], Items]
) -> Callable[[Any, Any, Mapping[str, Any], Mapping[str, Any], jax.Array], dict[str, Items]]:
    """Returns a function that computes the terms of the loss, each with its items and weights.

    Args:
      run: (params, inputs, key, flags) -> the student's output, with dropout.
      task_loss: computes the items of the task's loss from such an output.

    Returns:
      A function (student's params, teacher's params, inputs, batch, key) -> ``task``, ``teacher`` and, if they have a
      weight, ``hidden`` and ``attention``.
    """
    flags: dict[str, Any] = {"output_hidden_states": d.hidden_weight > 0, "output_attentions": d.attention_weight > 0}

    def terms(params: Any, of_teacher: Any, inputs: Any, batch: Any, key: jax.Array) -> dict[str, Items]:
        out = run(params, inputs, key, flags)
        target: Any = jax.lax.stop_gradient(teacher.model.apply({"params": of_teacher}, **inputs, **flags))
        value, weight = task_loss(out)
        found = {"task": (value, weight), "teacher": (output_loss(d, teacher, out, target, batch), weight)}
        real = _real_tokens(inputs)
        if d.hidden_weight:
            pairs = [(out.hidden_states[i + 1], target.hidden_states[j + 1]) for i, j in enumerate(teacher.layers)]
            found["hidden"] = hidden_loss(pairs, real)
        if d.attention_weight:
            pairs = [(out.attentions[i], target.attentions[j]) for i, j in enumerate(teacher.layers)]
            found["attention"] = attention_loss(pairs, real)
        return found

    return terms


def output_loss(d: Distillation, teacher: Teacher, out: Any, target: Any, batch: Mapping[str, Any]) -> jax.Array:
    """Returns the loss between the outputs of student and teacher, float32, for the items of the task's loss."""
    kind = teacher.model.config.problem_type
    if hasattr(out, "start_logits"):
        of = lambda s, t: soft_divergence(_of_texts(s, batch), _of_texts(t, batch), d.temperature)
        return (of(out.start_logits, target.start_logits) + of(out.end_logits, target.end_logits)) / 2
    ours, theirs = out.logits, target.logits
    if teacher.model.reads_choices:
        return soft_divergence(_of_choices(ours, batch), _of_choices(theirs, batch), d.temperature)
    if teacher.order is not None:
        theirs = theirs[..., jnp.asarray(teacher.order)]
    if kind == "regression":
        return jnp.square(ours.astype(F32) - theirs.astype(F32)).mean(-1)
    if kind == "multi_label_classification":
        return soft_binary_divergence(ours, theirs, d.temperature)
    return soft_divergence(ours, theirs, d.temperature)


def soft_divergence(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """Returns T^2 KL(softmax(teacher / T) || softmax(student / T)) over the last axis, float32 [...]."""
    log_p = jax.nn.log_softmax(teacher.astype(F32) / temperature)
    log_q = jax.nn.log_softmax(student.astype(F32) / temperature)
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(-1)


def soft_binary_divergence(student: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
    """Returns T^2 times the mean divergence of the labels' probabilities, sigmoid(logits / T), float32 [...]."""
    t, s = teacher.astype(F32) / temperature, student.astype(F32) / temperature
    p = jax.nn.sigmoid(t)
    cross = optax.sigmoid_binary_cross_entropy
    return temperature**2 * (cross(s, p) - cross(t, p)).mean(-1)


def hidden_loss(pairs: Sequence[tuple[jax.Array, jax.Array]], real: jax.Array) -> Items:
    """Returns the mean squared difference of hidden states [..., T, D] of each token, over layers and D.

    Args:
      pairs: of each layer of the student its hidden states, and those of the teacher.
      real: bool [..., T], False for padding.
    """
    values = [jnp.square(s.astype(F32) - t.astype(F32)).mean(-1) for s, t in pairs]
    weight = real.reshape(values[0].shape)
    return jnp.where(weight, sum(values) / len(values), 0.0), weight.astype(F32)


def attention_loss(pairs: Sequence[tuple[jax.Array, jax.Array]], real: jax.Array) -> Items:
    """Returns the mean of KL(teacher || student) of each query's weights [..., N, T, T] over layers and heads.

    Args:
      pairs: of each layer of the student its attention weights, and those of the teacher.
      real: bool [..., T], False for padding.
    """
    tiny = jnp.finfo(jnp.float32).tiny
    log = lambda p: jnp.log(jnp.maximum(p.astype(F32), tiny))
    values = [(t * (log(t) - log(s))).sum(-1).mean(-2) for s, t in pairs]
    weight = real.reshape(values[0].shape)
    return jnp.where(weight, sum(values) / len(values), 0.0), weight.astype(F32)


def _real_tokens(inputs: Mapping[str, Any]) -> jax.Array:
    return inputs["segment_ids"] > 0 if "segment_ids" in inputs else inputs["attention_mask"].astype(bool)


def _of_texts(logits: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """Returns logits of tokens [B,T] by the texts that they belong to: [B,T], or [B,P,T] for packed rows."""
    if "segment_ids" not in batch:
        return jnp.where(batch["attention_mask"], logits.astype(F32), _ABSENT)
    texts = jnp.arange(1, batch["labels"].shape[1] + 1, dtype=jnp.int32)[None, :, None]
    return jnp.where(batch["segment_ids"][:, None, :] == texts, logits.astype(F32)[:, None, :], _ABSENT)


def _of_choices(logits: jax.Array, batch: Mapping[str, Any]) -> jax.Array:
    """Returns logits of choices by the example that they belong to, [..., C]."""
    labels = batch["labels"]
    present = batch["positions"] >= 0 if "positions" in batch else batch["attention_mask"].any(axis=-1)
    return jnp.where(present, logits.astype(F32), _ABSENT).reshape(*labels.shape, -1)
