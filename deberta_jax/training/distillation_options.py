"""Defines the options of distillation, as fields that an experiment holds."""

import dataclasses
import itertools

from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation:
    """Configures distillation: a student is trained on the outputs of a teacher, and on the labels."""

    teacher: str = ""
    """Model directory or hub id of a model that is trained for the task, whose outputs the run's model learns as well.
    Its tokenizer and labels must be the same."""
    student_layers: tuple[int, ...] = ()
    """Layers of --model that the student keeps, counted from 0; all if not given. --model is then the teacher if it is
    not given."""
    temperature: float = 2.0
    """Temperature that divides the logits of teacher and student before they are compared."""
    teacher_weight: float = 0.5
    """Weight of the loss to the teacher's outputs; that of the labels has 1 minus this."""
    hidden_weight: float = 0.0
    """Weight of the loss to the teacher's hidden states; 0 turns it off."""
    attention_weight: float = 0.0
    """Weight of the loss to the teacher's attention weights; 0 turns it off."""

    def check(self, *, sift: bool, from_scratch: bool) -> None:
        """Raises InputError for the first value that cannot be used."""
        if not self.teacher:
            if self != Distillation():
                raise InputError(
                    "--student-layers, --temperature and the weights of distillation go with --teacher; give it"
                )
            return
        if sift:
            raise InputError("--sift: does not go with --teacher; leave one of them out")
        if self.temperature <= 0:
            raise InputError(f"--temperature {self.temperature}: must be above 0")
        if not 0 <= self.teacher_weight <= 1:
            raise InputError(f"--teacher-weight {self.teacher_weight}: must lie in [0, 1]")
        for name in ("hidden_weight", "attention_weight"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be below 0")
        layers = self.student_layers
        if layers and from_scratch:
            raise InputError(
                "--student-layers: are read from --model, and with --from-scratch nothing is; leave one out"
            )
        if any(a >= b for a, b in itertools.pairwise(layers)) or any(layer < 0 for layer in layers):
            raise InputError(f"--student-layers {' '.join(map(str, layers))}: give ascending numbers from 0 on")

    def check_layers(self, count: int, model: str) -> None:
        """Raises InputError if a layer of the student is not among the ``count`` layers of ``model``."""
        if self.student_layers and self.student_layers[-1] >= count:
            raise InputError(
                f"--student-layers {self.student_layers[-1]}: {model} has {count} layers, 0 to {count - 1}"
            )

    @property
    def loss_weights(self) -> dict[str, float]:
        """Returns the weights of the terms of the loss."""
        if not self.teacher:
            return {}
        weights = {"task": 1 - self.teacher_weight, "teacher": self.teacher_weight}
        return weights | {"hidden": self.hidden_weight, "attention": self.attention_weight}
