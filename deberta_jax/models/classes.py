"""Defines the model classes, one for each head. All are called in the same way; ``Inputs`` describes the arguments.

Letters of shapes: B rows, T tokens, D hidden width, E embedding width, V vocabulary, P positions, C labels or choices.

model = DebertaForSequenceClassification(config, dtype=jnp.bfloat16)
params = init_params(model, jax.random.key(0))
out = model.apply({"params": params}, input_ids, attention_mask=mask)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, Unpack

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from deberta_jax.config import DebertaConfig
from deberta_jax.models.backbone import Backbone, BackboneOutput, Inputs, run_backbone
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
from deberta_jax.models.outputs import EncoderOutput, HeadOutput, ProjectionInputs, SpanOutput
from deberta_jax.ops.activations import activate

M = TypeVar("M", bound="Model")
Ids = Int[Array, "B T"] | None
Positions = Int[Array, "B P"] | None


class Model(nn.Module):
    """Holds the fields that every model has.

    Attributes:
      config: the architecture.
      dtype: dtype of the computation; scores, softmax, LayerNorm and logits are always float32.
      param_dtype: dtype of initialized parameters.
      attention: ``auto``, or the name of an implementation of ``ops.attention``.
      remat: what the backward pass recomputes to save memory: ``none``, ``dots`` (all but the results of the
        projections) or ``full`` (all but the inputs of the layers).
      scan: True compiles one layer and loops over it; False unrolls all layers into the program.
      score_modifier: ``(scores, *, layer, query_index, key_index) -> scores`` changes the scaled attention scores
        [B,N,T,T] before the softmax, in float32. ``layer`` counts from 0 and is an array; the indices are int32
        [1,1,T,1] and [1,1,1,T]. It needs ``auto``, or an implementation that holds whole scores (``reference``,
        ``xla``).
      prepared: the parameters come from ``prepare_for_inference``, which sets this field.
    """

    config: DebertaConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    scan: bool = True
    prepared: bool = False
    score_modifier: Callable[..., Any] | None = None

    reads_choices: ClassVar[bool] = False
    """True if the inputs have an axis of choices, [B,C,T], and the model scores each choice as one text."""

    @property
    def runtime(self) -> Runtime:
        """Returns the runtime choices as one object, which all layers take."""
        return Runtime(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Runtime)})

    @classmethod
    def create(cls: type[M], config: DebertaConfig, runtime: Runtime) -> M:
        """Returns the model of a config with these runtime choices."""
        return cls(config, **{field.name: getattr(runtime, field.name) for field in dataclasses.fields(runtime)})

    @classmethod
    def example_shape(cls) -> tuple[int, ...]:
        """Returns the shape of the smallest ``input_ids`` that the model takes."""
        return (1, 1, 2) if cls.reads_choices else (1, 2)

    def backbone(self, input_ids, inputs: Inputs, mask_decoder: bool = False) -> BackboneOutput:
        """Declares embeddings and encoder under the name ``deberta`` and runs them."""
        return Backbone(self.config, self.runtime, mask_decoder, name="deberta")(input_ids, **inputs)


class DebertaEncoder(Model):
    """Computes the encoder's hidden states, without a head. Returns an ``EncoderOutput``."""

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> EncoderOutput:
        h = run_backbone(self.config, self.runtime, input_ids, **inputs)
        return EncoderOutput(h.states, h.hidden_states, h.attentions)


class DebertaForMaskedLM(Model):
    """Computes the logits of all vocabulary entries for every token: masked language modelling.

    With ``config.mask_decoder`` the logits come from the enhanced mask decoder, as the released weights need it.

    Args:
      positions: compute logits for these positions of each row only; -1 for none.
      return_projection_inputs: return the inputs of the output projection instead of logits.
        ``ops.linear_cross_entropy`` computes a loss from them without holding all logits in memory.

    Returns:
      A ``HeadOutput`` with logits [B,T,V], or [B,P,V] for ``positions``; or a ``ProjectionInputs``.
    """

    @nn.compact
    def __call__(
        self,
        input_ids: Ids = None,
        *,
        positions: Positions = None,
        return_projection_inputs: bool = False,
        **inputs: Unpack[Inputs],
    ) -> HeadOutput | ProjectionInputs:
        h = self.backbone(input_ids, inputs, self.config.mask_decoder)
        states = h.states if positions is None else take_positions(h.states, positions)
        head = LegacyHead if self.config.legacy else OriginalHead
        name = "cls" if self.config.legacy else "lm_predictions"
        logits = head(self.config, self.runtime, name=name)(states, h.word_embeddings, return_projection_inputs)
        if isinstance(logits, ProjectionInputs):
            return logits
        return HeadOutput(logits, h.hidden_states, h.attentions)


class DebertaForSequenceClassification(Model):
    """Computes the logits of the labels of each text, from the vector of its first token.

    Args:
      positions: where the texts of packed rows start; -1 for none.

    Returns:
      A ``HeadOutput`` with logits [B,C], or [B,P,C] for ``positions``.
    """

    @nn.compact
    def __call__(self, input_ids: Ids = None, *, positions: Positions = None, **inputs: Unpack[Inputs]) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        starts = h.starts[:, :1] if positions is None else positions
        deterministic = inputs.get("deterministic", True)
        logits = pooled_logits(self.config, self.runtime, h.states, starts, self.config.num_labels, deterministic)
        return HeadOutput(logits[:, 0] if positions is None else logits, h.hidden_states, h.attentions)


class DebertaForTokenClassification(Model):
    """Computes the logits of the labels of each token. Returns a ``HeadOutput`` with logits [B,T,C].

    With ``config.classifier_proj`` a dense layer and GELU come before the classifier, as in Microsoft's code.
    """

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> HeadOutput:
        c = self.config
        h = self.backbone(input_ids, inputs)
        x = h.states
        if c.classifier_proj:
            x = activate("gelu", dense(c, self.runtime, "proj")(x), forward_mode=self.runtime.forward_mode)
        x = Dropout(c.hidden_dropout_prob)(x, inputs.get("deterministic", True))
        return HeadOutput(classify(c, self.runtime, "classifier", x, c.num_labels), h.hidden_states, h.attentions)


class DebertaForQuestionAnswering(Model):
    """Computes the logits of the first and the last token of an answer. Returns a ``SpanOutput``."""

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> SpanOutput:
        h = self.backbone(input_ids, inputs)
        logits = classify(self.config, self.runtime, "qa_outputs", h.states, 2)
        return SpanOutput(logits[..., 0], logits[..., 1], h.hidden_states, h.attentions)


class DebertaForMultipleChoice(Model):
    """Computes one logit for each choice.

    Args:
      input_ids: [B,C,T], one text for each choice; or packed rows [B,T] with ``positions``.
      positions: where the texts of packed rows start; -1 for none.

    Returns:
      A ``HeadOutput`` with logits [B,C], or [B,P] for ``positions``.
    """

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
            bias = inputs.pop("attention_bias", None)
            input_ids, inputs = flat(input_ids), {name: flat(value) for name, value in inputs.items()}
            if bias is not None:
                inputs["attention_bias"] = bias
        h = self.backbone(input_ids, inputs)  # pyright: ignore[reportArgumentType]
        starts = h.starts[:, :1] if positions is None else positions
        deterministic = inputs.get("deterministic", True)
        logits = pooled_logits(self.config, self.runtime, h.states, starts, 1, deterministic)[..., 0]
        return HeadOutput(logits if shape is None else logits.reshape(shape), h.hidden_states, h.attentions)


class DebertaForReplacedTokenDetection(Model):
    """Computes one logit for each token, positive where the model finds it replaced: DeBERTa v3's discriminator.

    Returns a ``HeadOutput`` with logits [B,T].
    """

    @nn.compact
    def __call__(self, input_ids: Ids = None, **inputs: Unpack[Inputs]) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        logits = ReplacedTokenHead(self.config, self.runtime, name="mask_predictions")(h.states, h.starts)
        return HeadOutput(logits, h.hidden_states, h.attentions)
