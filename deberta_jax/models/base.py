"""Defines ``Model``, the base class of all models: their fields, and how they are called."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Unpack, overload

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError, ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, brief
from deberta_jax.models.backbone import Backbone, BackboneOutput
from deberta_jax.models.inputs import AnyArray, Inputs, Rngs, check_arrays, check_names
from deberta_jax.models.layers import Runtime
from deberta_jax.ops.attention import check_name

if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import TypeVar

    Output = TypeVar("Output", default=Any, covariant=True)
else:
    # `default=`, which makes `Model` stand for `Model[Any]` in annotations, is new in Python 3.13.
    from typing import TypeVar

    Output = TypeVar("Output", covariant=True)

Params = Mapping[str, Any]
"""A tree of parameters: a nested mapping of arrays."""


class Model(nn.Module, Generic[Output]):
    """Holds the fields that every model has, and calls it.

    ``model(params, input_ids, attention_mask=mask)`` is short for ``model.apply({"params": params}, ...)``.

    A subclass defines one method, ``forward``, with ``@nn.compact``. It takes ``input_ids`` and the other inputs by
    keyword, calls ``self.backbone(input_ids, inputs)``, and returns its output. ``Model[HeadOutput]`` names the type of
    the output.

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
      gradient_dtype: dtype in which devices that share the batch add up the gradients of kernels and of the word
        embeddings: float32, or the dtype of the computation, which halves what they exchange. Those of biases,
        LayerNorms and small tables are added up in float32 in any case; those of the projected tables of positions,
        with ``pallas`` attention, in the dtype of the computation.
    """

    config: DebertaConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    scan: bool = True
    prepared: bool = False
    score_modifier: Callable[..., Any] | None = None
    gradient_dtype: Any = jnp.float32

    reads_choices: ClassVar[bool] = False
    """True if the inputs have an axis of choices, [B,C,T], and the model scores each choice as one text."""

    def __post_init__(self) -> None:
        if not isinstance(self.config, DebertaConfig):
            raise InputError(
                f"{type(self).__name__}({brief(self.config)}): the first argument is a DebertaConfig, such as "
                "PRESETS['deberta-v3-base']; from_pretrained loads a model with weights"
            )
        check_name(self.attention)
        _ = self.runtime  # checks the other choices
        super().__post_init__()

    def __repr__(self) -> str:
        c = self.config
        chosen = "".join(
            f", {field.name}={getattr(value, '__name__', None) or repr(value)}"
            for field in dataclasses.fields(Runtime)
            if (value := getattr(self, field.name)) != field.default
        )
        parts = f"{c.model_type}, {c.num_hidden_layers} layers of width {c.hidden_size}, vocabulary {c.vocab_size}"
        return f"{type(self).__name__}({parts}{chosen})"

    @property
    def runtime(self) -> Runtime:
        """Returns the runtime choices as one object, which all layers take."""
        return Runtime(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Runtime)})

    @classmethod
    def create(cls, config: DebertaConfig, runtime: Runtime) -> "Self":
        """Returns the model of a config with these runtime choices."""
        return cls(config, **{field.name: getattr(runtime, field.name) for field in dataclasses.fields(runtime)})

    @classmethod
    def example_shape(cls) -> tuple[int, ...]:
        """Returns the shape of the smallest ``input_ids`` that the model takes."""
        return (1, 1, 2) if cls.reads_choices else (1, 2)

    @overload
    def __call__(
        self,
        params: Params,
        input_ids: AnyArray | None = None,
        *,
        rngs: Rngs = None,
        **inputs: Unpack[Inputs],
    ) -> Output: ...
    @overload
    def __call__(self, input_ids: AnyArray | None = None, **inputs: Unpack[Inputs]) -> Output: ...
    def __call__(self, *arguments: Any, rngs: Rngs = None, **inputs: Any) -> Output:
        """Computes the model's output; ``model(params, input_ids, ...)`` and ``model(params, **encoding)`` both work.

        Within another Linen module, and by ``apply``, the call is without ``params``.

        Letters of shapes: B rows, T tokens, N heads, E embedding width, P positions.

        Args:
          params: the parameters, as ``from_pretrained`` and ``init_params`` return them.
          input_ids: int [B,T]; [B,C,T] for multiple choice, whose other inputs then have the axis C of choices too.
          attention_mask: [B,T] of any dtype, nonzero for real tokens; or [B,T,T], nonzero where query t may attend to
            key s.
          token_type_ids, position_ids: int [B,T]; ignored by models without such embeddings.
          inputs_embeds: float [B,T,E] in place of ``input_ids``.
          segment_ids: int [B,T]: which text of a packed row each token belongs to; 0 for padding. Tokens attend only to
            tokens of their own text.
          attention_bias: float [N,T,T], [B,N,T,T], or [N,2T-1] with a bias for each distance ``T-1 + query - key``. It
            is added to the scaled attention scores of every layer.
          positions: int [B,P], -1 for none: the tokens whose logits are computed (masked LM), or where the texts of
            packed rows start (sequence classification, multiple choice). Other models take none.
          deterministic: False applies dropout, which needs ``rngs``.
          output_hidden_states, output_attentions: whether to fill these fields of the output.
          rngs: a random key for dropout, or ``{"dropout": key}`` as ``apply`` takes it.

        Returns:
          The output; the class's description says what it holds.

        Raises:
          InputError: an input has a wrong name, shape or dtype; the parameters are not those of this model; a text is
            longer than the table of absolute positions.
        """
        return self.run(arguments, rngs, inputs)

    def forward(self, input_ids: Any = None, **inputs: Any) -> Output:
        """Computes the output from the inputs. Every subclass defines it, with ``@nn.compact``."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(input_ids, **inputs) with @nn.compact")

    @nn.nowrap
    def run(self, arguments: tuple[Any, ...], rngs: Rngs, inputs: Mapping[str, Any]) -> Any:
        """Calls ``forward`` with checked inputs if the module is bound to parameters; binds it by ``apply`` if not.

        Args and Raises as ``__call__``; ``arguments`` are the positional ones.
        """
        if self.scope is None:
            return self._apply(arguments, rngs, inputs)
        if rngs is not None:
            raise InputError("rngs belong to the call of the outermost module, or to apply")
        if arguments and isinstance(arguments[0], Mapping):
            raise InputError(
                f"{type(self).__name__} is called by apply, or in another module, which holds the parameters: call "
                "it without params"
            )
        if len(arguments) + ("input_ids" in inputs) > 1:
            raise InputError(f"{type(self).__name__} takes one input by position, input_ids; give the others by name")
        given = {"input_ids": arguments[0] if arguments else None, **inputs}
        check_names(given, extra_inputs(type(self)), type(self).__name__)
        if given.get("positions", 0) is None:
            del given["positions"]
        return self.forward(**self._checked(given))

    @nn.nowrap
    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        c = self.config
        return check_arrays(given, choices=self.reads_choices, width=c.embedding_width, vocabulary=c.vocab_size)

    @nn.nowrap
    def _apply(self, arguments: tuple[Any, ...], rngs: Any, inputs: Mapping[str, Any]) -> Any:
        """Calls the model with the parameters that stand first."""
        name = type(self).__name__
        if not arguments or not isinstance(arguments[0], Mapping):
            raise InputError(
                f"{name}: pass the parameters first, model(params, input_ids, ...); from_pretrained and init_params "
                "return them"
            )
        params, *rest = arguments
        if set(params) == {"params"}:
            raise InputError(f"{name}: pass the tree of parameters itself, without the level 'params' that apply takes")
        if isinstance(rngs, jax.Array | np.ndarray):
            rngs = {"dropout": rngs}
        if not (rngs is None or isinstance(rngs, Mapping)):
            raise InputError(f"{name}: rngs is a {type(rngs).__name__}; give jax.random.key(0), or {{'dropout': key}}")
        try:
            return self.apply({"params": params}, *rest, rngs=None if rngs is None else dict(rngs), **inputs)
        except (ScopeCollectionNotFound, ScopeParamNotFoundError, ScopeParamShapeError) as error:
            reason = str(error).partition(" (https")[0]
            raise InputError(f"the parameters are not those of this {name}: {brief(reason, 300)}") from error
        except InvalidRngError as error:
            raise InputError(f"{name}: deterministic=False needs rngs=jax.random.key(0)") from error

    @nn.nowrap
    def init_with_output(self, *arguments: Any, **options: Any) -> tuple[Any, Any]:
        """Returns the output and the initialized variables as ``nn.Module``'s method does, as a tree of plain arrays.

        ``init`` calls this. The names of axes, which Flax would keep in boxes around the arrays, are in
        ``logical_axes``.
        """
        output, variables = super().init_with_output(*arguments, **options)
        return output, nn.unbox(variables)

    def backbone(self, input_ids: Any, inputs: Mapping[str, Any], mask_decoder: bool = False) -> BackboneOutput:
        """Declares embeddings and encoder under the name ``deberta`` and runs them."""
        return Backbone(self.config, self.runtime, mask_decoder, name="deberta")(input_ids, **inputs)


@functools.cache
def extra_inputs(model: type[Model]) -> frozenset[str]:
    """Returns the names of the inputs that a model class takes besides ``input_ids`` and those that all models take."""
    parameters = inspect.signature(model.forward).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
