"""Defines the model classes, one for each head. All are called in the same way, which ``Model.__call__`` describes.

Letters of shapes: B rows, T tokens, D hidden width, E embedding width, V vocabulary, P positions, C labels or choices.

model = DebertaForSequenceClassification(config, dtype=jnp.bfloat16)
params = init_params(model, jax.random.key(0))
out = model(params, input_ids, attention_mask=mask)
"""

from typing import Any, ClassVar, Literal, Unpack, overload

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from deberta_jax.models.backbone import run_backbone
from deberta_jax.models.base import Model, Params
from deberta_jax.models.heads import (
    LegacyHead,
    OriginalHead,
    ReplacedTokenHead,
    classify,
    dense,
    pooled_logits,
    take_positions,
)
from deberta_jax.models.inputs import AnyArray, Inputs, Rngs
from deberta_jax.models.layers import Dropout
from deberta_jax.models.outputs import EncoderOutput, HeadOutput, ProjectionInputs, SpanOutput
from deberta_jax.ops.activations import activate

Ids = Int[Array, "B T"] | None
Positions = Int[Array, "B P"] | None


class DebertaEncoder(Model[EncoderOutput]):
    """Computes the encoder's hidden states, without a head. Returns an ``EncoderOutput``."""

    @nn.compact
    def forward(self, input_ids: Ids = None, **inputs: Any) -> EncoderOutput:
        h = run_backbone(self.config, self.runtime, input_ids, **inputs)
        return EncoderOutput(h.states, h.hidden_states, h.attentions)


class DebertaForMaskedLM(Model[HeadOutput]):
    """Computes the logits of all vocabulary entries for every token: masked language modelling.

    With ``config.mask_decoder`` the logits come from the enhanced mask decoder, as the released weights need it.

    Args:
      positions: compute logits for these positions of each row only; -1 for none.
      return_projection_inputs: return the inputs of the output projection instead of logits.
        ``ops.linear_cross_entropy`` computes a loss from them without holding all logits in memory.

    Returns:
      A ``HeadOutput`` with logits [B,T,V], or [B,P,V] for ``positions``; or a ``ProjectionInputs``.
    """

    @overload
    def __call__(
        self,
        params: Params,
        input_ids: AnyArray | None = None,
        *,
        return_projection_inputs: Literal[False] | AnyArray = False,
        rngs: Rngs = None,
        **inputs: Unpack[Inputs],
    ) -> HeadOutput: ...
    @overload
    def __call__(
        self,
        params: Params,
        input_ids: AnyArray | None = None,
        *,
        return_projection_inputs: Literal[True],
        rngs: Rngs = None,
        **inputs: Unpack[Inputs],
    ) -> ProjectionInputs: ...
    @overload
    def __call__(
        self,
        input_ids: AnyArray | None = None,
        *,
        return_projection_inputs: Literal[False] | AnyArray = False,
        **inputs: Unpack[Inputs],
    ) -> HeadOutput: ...
    @overload
    def __call__(
        self, input_ids: AnyArray | None = None, *, return_projection_inputs: Literal[True], **inputs: Unpack[Inputs]
    ) -> ProjectionInputs: ...
    def __call__(self, *arguments: Any, rngs: Rngs = None, **inputs: Any) -> Any:
        return self.run(arguments, rngs, inputs)

    @nn.compact
    def forward(
        self,
        input_ids: Ids = None,
        *,
        positions: Positions = None,
        return_projection_inputs: bool = False,
        **inputs: Any,
    ) -> Any:
        h = self.backbone(input_ids, inputs, self.config.mask_decoder)
        states = h.states if positions is None else take_positions(h.states, positions)
        head = LegacyHead if self.config.legacy else OriginalHead
        name = "cls" if self.config.legacy else "lm_predictions"
        logits = head(self.config, self.runtime, name=name)(states, h.word_embeddings, return_projection_inputs)
        if isinstance(logits, ProjectionInputs):
            return logits
        return HeadOutput(logits, h.hidden_states, h.attentions)


class DebertaForSequenceClassification(Model[HeadOutput]):
    """Computes the logits of the labels of each text, from the vector of its first token.

    Args:
      positions: where the texts of packed rows start; -1 for none.

    Returns:
      A ``HeadOutput`` with logits [B,C], or [B,P,C] for ``positions``.
    """

    @nn.compact
    def forward(self, input_ids: Ids = None, *, positions: Positions = None, **inputs: Any) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        starts = h.starts[:, :1] if positions is None else positions
        deterministic = inputs.get("deterministic", True)
        logits = pooled_logits(self.config, self.runtime, h.states, starts, self.config.num_labels, deterministic)
        return HeadOutput(logits[:, 0] if positions is None else logits, h.hidden_states, h.attentions)


class DebertaForTokenClassification(Model[HeadOutput]):
    """Computes the logits of the labels of each token. Returns a ``HeadOutput`` with logits [B,T,C].

    With ``config.classifier_proj`` a dense layer and GELU come before the classifier, as in Microsoft's code.
    """

    @nn.compact
    def forward(self, input_ids: Ids = None, **inputs: Any) -> HeadOutput:
        c = self.config
        h = self.backbone(input_ids, inputs)
        x = h.states
        if c.classifier_proj:
            x = activate("gelu", dense(c, self.runtime, "proj")(x), forward_mode=self.runtime.forward_mode)
        x = Dropout(c.hidden_dropout_prob)(x, inputs.get("deterministic", True))
        return HeadOutput(classify(c, self.runtime, "classifier", x, c.num_labels), h.hidden_states, h.attentions)


class DebertaForQuestionAnswering(Model[SpanOutput]):
    """Computes the logits of the first and the last token of an answer. Returns a ``SpanOutput``."""

    @nn.compact
    def forward(self, input_ids: Ids = None, **inputs: Any) -> SpanOutput:
        h = self.backbone(input_ids, inputs)
        logits = classify(self.config, self.runtime, "qa_outputs", h.states, 2)
        return SpanOutput(logits[..., 0], logits[..., 1], h.hidden_states, h.attentions)


class DebertaForMultipleChoice(Model[HeadOutput]):
    """Computes one logit for each choice.

    Args:
      input_ids: [B,C,T], one text for each choice; or packed rows [B,T] with ``positions``.
      positions: where the texts of packed rows start; -1 for none.

    Returns:
      A ``HeadOutput`` with logits [B,C], or [B,P] for ``positions``.
    """

    reads_choices: ClassVar[bool] = True

    @nn.compact
    def forward(
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


class DebertaForReplacedTokenDetection(Model[HeadOutput]):
    """Computes one logit for each token, positive where the model finds it replaced: DeBERTa v3's discriminator.

    Returns a ``HeadOutput`` with logits [B,T].
    """

    @nn.compact
    def forward(self, input_ids: Ids = None, **inputs: Any) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        logits = ReplacedTokenHead(self.config, self.runtime, name="mask_predictions")(h.states, h.starts)
        return HeadOutput(logits, h.hidden_states, h.attentions)
