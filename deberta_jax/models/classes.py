"""Defines the model classes, one for each head. All are called in the same way; ``Inputs`` describes the arguments.

model = DebertaForSequenceClassification(config, dtype=jnp.bfloat16)
params = init_params(model, jax.random.key(0))
out = model.apply({"params": params}, input_ids, attention_mask=mask)
"""

import dataclasses
from typing import Any, ClassVar, TypeVar, Unpack

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from deberta_jax.config import DebertaConfig
from deberta_jax.models.backbone import Backbone, Hidden, Inputs, run_backbone
from deberta_jax.models.heads import (
    LegacyHead,
    OriginalHead,
    ReplacedTokenHead,
    classify,
    dense,
    pooled_logits,
    take_positions,
)
from deberta_jax.models.layers import Dropout, Runtime
from deberta_jax.models.outputs import EncoderOutput, FactoredOutput, HeadOutput, SpanOutput
from deberta_jax.ops.activations import activate

M = TypeVar("M", bound="Model")
Ids = Int[Array, "B T"] | None
Positions = Int[Array, "B P"] | None


class Model(nn.Module):
    """The fields that every model has.

    Attributes:
      config: the architecture.
      dtype: of the computation; scores, softmax, LayerNorm and logits are float32 whatever it is.
      param_dtype: of fresh parameters.
      attention: ``auto``, or an implementation of ``ops.attention`` by name.
      remat: ``none``, ``dots`` or ``full``: what the backward pass recomputes to save memory.
      scan: loop over layers in the program (compiles in the time of one layer) rather than unroll them.
      prepared: the parameters are those of ``prepare_for_inference``, which sets this.
    """

    config: DebertaConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    scan: bool = True
    prepared: bool = False

    reads_choices: ClassVar[bool] = False
    """The inputs have an axis of choices, [B,C,T], and the model scores each choice as a text of its own."""

    @property
    def runtime(self) -> Runtime:
        """The runtime choices as the one object that all layers are given."""
        return Runtime(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Runtime)})

    @classmethod
    def create(cls: type[M], config: DebertaConfig, runtime: Runtime) -> M:
        """Returns the model of a config with these runtime choices."""
        return cls(config, **{field.name: getattr(runtime, field.name) for field in dataclasses.fields(runtime)})

    @classmethod
    def example_shape(cls) -> tuple[int, ...]:
        """Returns the shape of the smallest ``input_ids`` that the model takes."""
        return (1, 1, 2) if cls.reads_choices else (1, 2)

    def backbone(self, input_ids, inputs: Inputs, mask_decoder: bool = False) -> Hidden:
        return Backbone(self.config, self.runtime, mask_decoder, name="deberta")(input_ids, **inputs)


class DebertaEncoder(Model):
    """The encoder without a head: EncoderOutput."""

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> EncoderOutput:
        h = run_backbone(self.config, self.runtime, input_ids, **inputs)
        return EncoderOutput(h.states, h.hidden_states, h.attentions)


class DebertaForMaskedLM(Model):
    """Vocabulary logits [B,T,V], or [B,P,V] at ``positions`` [B,P] alone (-1: none).

    With ``config.mask_decoder`` the logits come from the enhanced mask decoder, as those of released weights must.
    ``factored`` gives their factors, a FactoredOutput: ``ops.linear_cross_entropy`` computes a loss from these without
    ever holding all logits.
    """

    @nn.compact
    def __call__(
        self,
        input_ids: Ids = None,
        *,
        positions: Positions = None,
        factored: bool = False,
        **inputs: Unpack[Inputs],
    ) -> HeadOutput | FactoredOutput:
        h = self.backbone(input_ids, inputs, self.config.mask_decoder)
        states = h.states if positions is None else take_positions(h.states, positions)
        head = LegacyHead if self.config.legacy else OriginalHead
        name = "cls" if self.config.legacy else "lm_predictions"
        logits = head(self.config, self.runtime, name=name)(states, h.words, factored)
        if isinstance(logits, FactoredOutput):
            return logits
        return HeadOutput(logits, h.hidden_states, h.attentions)


class DebertaForSequenceClassification(Model):
    """Logits [B,C] of each row's text, or [B,P,C] of the texts that start at ``positions`` [B,P] of packed rows."""

    @nn.compact
    def __call__(self, input_ids: Ids = None, *, positions: Positions = None, **inputs: Unpack[Inputs]) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        read = h.starts[:, :1] if positions is None else positions
        deterministic = inputs.get("deterministic", True)
        logits = pooled_logits(self.config, self.runtime, h.states, read, self.config.num_labels, deterministic)
        return HeadOutput(logits[:, 0] if positions is None else logits, h.hidden_states, h.attentions)


class DebertaForTokenClassification(Model):
    """Logits [B,T,C]; with ``config.classifier_proj`` Microsoft's dense layer and GELU come before the classifier."""

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> HeadOutput:
        c = self.config
        h = self.backbone(input_ids, inputs)
        x = h.states
        if c.classifier_proj:
            x = activate("gelu", dense(c, self.runtime, "proj")(x))
        x = Dropout(c.hidden_dropout_prob)(x, inputs.get("deterministic", True))
        return HeadOutput(classify(c, self.runtime, "classifier", x, c.num_labels), h.hidden_states, h.attentions)


class DebertaForQuestionAnswering(Model):
    """Start and end logits [B,T] of an extracted answer: SpanOutput."""

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> SpanOutput:
        h = self.backbone(input_ids, inputs)
        logits = classify(self.config, self.runtime, "qa_outputs", h.states, 2)
        return SpanOutput(logits[..., 0], logits[..., 1], h.hidden_states, h.attentions)


class DebertaForMultipleChoice(Model):
    """One score a choice: inputs [B,C,T] give [B,C]; packed rows [B,T] with ``positions`` [B,P] give [B,P]."""

    reads_choices: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B T"] | Int[Array, "B C T"] | None = None,
        *,
        positions: Positions = None,
        **inputs: Any,
    ) -> HeadOutput:
        shape = None
        if positions is None:
            shape = (input_ids if input_ids is not None else inputs["inputs_embeds"]).shape[:2]
            flat: Any = lambda a: (
                a if a is None or isinstance(a, bool) else jnp.asarray(a).reshape(-1, *jnp.shape(a)[2:])
            )
            input_ids, inputs = flat(input_ids), {name: flat(value) for name, value in inputs.items()}
        h = self.backbone(input_ids, inputs)  # pyright: ignore[reportArgumentType]
        read = h.starts[:, :1] if positions is None else positions
        scores = pooled_logits(self.config, self.runtime, h.states, read, 1, inputs.get("deterministic", True))[..., 0]
        return HeadOutput(scores if shape is None else scores.reshape(shape), h.hidden_states, h.attentions)


class DebertaForReplacedTokenDetection(Model):
    """One logit a token [B,T], positive where it is judged replaced (DeBERTa v3's discriminator)."""

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        logits = ReplacedTokenHead(self.config, self.runtime, name="mask_predictions")(h.states, h.starts)
        return HeadOutput(logits, h.hidden_states, h.attentions)
