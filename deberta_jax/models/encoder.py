"""Runs the layers: one module, its parameters stacked over layers, and ``jax.lax.scan`` over them.

The scan and the unrolled loop read the same parameter tree, whose kernels may be quantized. Two layers differ from the
others: the output of the convolution (v2-xlarge) is added after the first, and the enhanced mask decoder adds absolute
positions before the last. The body selects both by the layer's index, because slicing the stacked parameters would copy
them all.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from deberta_jax.config import DebertaConfig
from deberta_jax.models.attention import Attention, AttentionContext, RelativePositions, Residual
from deberta_jax.models.layers import (
    Dropout,
    EmbeddingTable,
    LayerNorm,
    Linear,
    Runtime,
    declare,
    norm_params,
    read_param,
)
from deberta_jax.ops.activations import activate
from deberta_jax.ops.attention.relative_position import compact_relative_index, make_relative_index
from deberta_jax.ops.convolution import token_convolution
from deberta_jax.ops.normalization import layer_norm
from deberta_jax.ops.quantization import dense_values
from deberta_jax.sharding import constrain


class Intermediate(nn.Module):
    """Applies the first half of the feed-forward block: dense from D to F, and activation."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T F"]:
        c = self.config
        shape = (c.hidden_size, c.intermediate_size)
        x = Linear(shape, ("embed", "mlp"), c.initializer_range, self.runtime, name="dense")(x)
        x = constrain(x, ("batch", "length", "mlp"))
        return activate(c.hidden_act, x, forward_mode=self.runtime.forward_mode)


class Layer(nn.Module):
    """Applies attention and the feed-forward block, each followed by residual and LayerNorm (post-norm, as in BERT).

    Returns:
      The hidden states [B,T,D], and the attention weights of ``SelfAttention``.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, source, context: AttentionContext):
        c, run = self.config, self.runtime
        x, weights = Attention(c, run, name="attention")(x, source, context)
        wide = Intermediate(c, run, name="intermediate")(x)
        x = Residual(c, run, (c.intermediate_size, c.hidden_size), ("mlp", "embed"), name="output")(
            wide, x, context.deterministic
        )
        return constrain(x, ("batch", "length", None)), weights


class Convolution(nn.Module):
    """Computes the convolution of the embeddings that is added to the output of the first layer (v2-xlarge).

    Returns:
      The result [B,T,D], and the scale and bias of the LayerNorm that follows the addition.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self, x, token_mask, segment_ids, deterministic):
        c, run = self.config, self.runtime
        kernel, bias = ConvolutionParams(c, run, name="conv")()
        y = token_convolution(
            x,
            kernel,
            bias,
            groups=c.conv_groups,
            segment_ids=segment_ids,
            forward_mode=run.forward_mode,
            gradient_dtype=run.gradient_dtype,
        )
        if token_mask is not None:
            y = jnp.where(token_mask[..., None], y, 0.0)
        # Dropout comes before the activation, as in the code that the weights were trained with.
        y = Dropout(c.hidden_dropout_prob)(y, deterministic)
        y = activate(c.conv_act, y, forward_mode=run.forward_mode).astype(run.dtype)
        return y, NormParams(c, run, name="LayerNorm")()


class ConvolutionParams(nn.Module):
    """Holds the kernel [K,D/groups,D] and the bias [D] of the convolution."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self):
        c, dtype = self.config, self.runtime.param_dtype
        shape = (c.conv_kernel_size, c.hidden_size // c.conv_groups, c.hidden_size)
        axes = (None, None, "embed")
        kernel = self.param("kernel", declare(nn.initializers.normal(c.initializer_range), axes), shape, dtype)
        return kernel, self.param("bias", declare(nn.initializers.zeros_init(), (None,)), shape[-1:], dtype)


class NormParams(nn.Module):
    """Holds the scale and the bias [D] of a LayerNorm."""

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(self):
        return norm_params(self, self.config.hidden_size, self.runtime)


class Encoder(nn.Module):
    """Applies all layers to the embeddings.

    With ``decoder_positions`` [B,T,D] the last layer is the enhanced mask decoder (He et al. 2021, DeBERTa, section
    3.2, as in the released code). It runs twice with the same weights. Queries and residual of its first run are the
    previous layer's output plus the absolute positions; those of its second run are the output of the first. Keys and
    values of both are the previous layer's output.

    Returns:
      The last hidden states [B,T,D]; the states after each layer [L,B,T,D]; and the attention weights [L,B,N,T,T] in
      float32. The last two are None unless asked for.
    """

    config: DebertaConfig
    runtime: Runtime

    @nn.compact
    def __call__(
        self,
        embeddings: Float[Array, "B T D"],
        token_mask: Bool[Array, "B T"] | None,
        context: AttentionContext,
        decoder_positions: Float[Array, "#B T D"] | None,
        output_hidden_states: bool,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "L B T D"] | None, Float[Array, "L B N T T"] | None]:
        c, run = self.config, self.runtime
        context = context._replace(relative=self.relative(embeddings.shape[1]))
        conv = None
        if c.conv_kernel_size > 0:
            conv = Convolution(c, run, name="conv")(embeddings, token_mask, context.segment_ids, context.deterministic)
        layer = Layer(c, run, parent=None)
        stack = read_param(self, "layers", self.initialize_layers(layer))
        last = c.num_hidden_layers - 1
        drops = not context.deterministic and max(c.hidden_dropout_prob, c.attention_probs_dropout_prob) > 0
        keys = jax.random.split(self.make_rng("dropout"), last + 2) if drops else None

        # Flax cannot see into the loop, so what it captures of a layer is returned from the loop.
        options: Any = {"capture_intermediates": True, "mutable": ["intermediates"]}
        captures = self.is_mutable_collection("intermediates")

        def run_layer(params, key, x, source, index) -> Any:
            rngs = None if key is None else {"dropout": key}
            given = {"params": params}, x, source, context._replace(layer=index)
            if not captures:
                return *layer.apply(*given, rngs=rngs), None
            (y, weights), captured = layer.apply(*given, rngs=rngs, **options)
            return y, weights, captured["intermediates"]

        def body(carry, xs):
            x, _ = carry
            params, key, index = xs
            query = x
            if decoder_positions is not None:
                query = x + jnp.where(index == last, decoder_positions, jnp.zeros((), x.dtype))
            y, weights, captured = run_layer(params, key, query, x, index)
            y = self.layer_output(y, index, conv, token_mask)
            return (y, x), (y if output_hidden_states else None, weights if context.return_weights else None, captured)

        body = rematerialize(body, run)
        xs = (stack, None if keys is None else keys[:-1], jnp.arange(last + 1))
        carry = (embeddings, embeddings)
        (x, previous), (states, weights, captured) = self.iterate(body, carry, xs)
        if decoder_positions is not None:
            final = jax.tree.map(lambda p: p[-1], stack)
            x, last_weights, last_captured = run_layer(final, None if keys is None else keys[-1], x, previous, last)
            x = self.layer_output(x, last)
            captured = jax.tree.map(lambda a, b: a.at[-1].set(b), captured, last_captured)
            states = None if states is None else states.at[-1].set(x)
            weights = None if weights is None else weights.at[-1].set(last_weights)
        if captures:
            self.put_variable("intermediates", "layers", captured)
        return x, states, weights

    def iterate(self, body, carry, xs):
        """Runs ``jax.lax.scan``, or the same loop unrolled. It is a method so that Flax can intercept it."""
        if self.runtime.scan:
            return jax.lax.scan(body, carry, xs)
        outputs = []
        for i in range(self.config.num_hidden_layers):
            carry, y = body(carry, jax.tree.map(lambda a, i=i: a[i], xs))
            outputs.append(y)
        return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *outputs)

    def layer_output(self, y, index, conv=None, token_mask=None):
        """Returns a layer's output, in the first layer merged with the convolution's. A method, as ``iterate`` is."""
        if conv is None:
            return y
        return jax.lax.cond(index == 0, lambda y: self.merge(y, conv, token_mask), lambda y: y, y)

    def merge(self, y, conv, token_mask):
        """Returns the first layer's output ``y`` plus the convolution's, normalized, and zero at padding."""
        branch, (scale, bias) = conv
        epsilon, forward_mode = self.config.layer_norm_eps, self.runtime.forward_mode
        y = layer_norm(y + branch, scale, bias, epsilon, forward_mode=forward_mode).astype(y.dtype)
        return y if token_mask is None else jnp.where(token_mask[..., None], y, jnp.zeros((), y.dtype))

    def relative(self, length: int) -> RelativePositions:
        """Declares the relative table, and returns the rows and indices that a length needs."""
        c, run = self.config, self.runtime
        if not c.relative_attention:
            return RelativePositions(None, np.zeros(0, np.int32), np.zeros(2 * length - 1, np.int32))
        relative_index = make_relative_index(
            length,
            c.relative_span,
            buckets=c.position_buckets,
            max_distance=c.max_distance,
            clamp=c.clamps_distances,
        )
        rows, relative_index = compact_relative_index(relative_index)
        if run.prepared:
            return RelativePositions(None, rows, relative_index)
        axes = ("relpos", "embed")
        table = EmbeddingTable(
            2 * c.relative_span, c.hidden_size, axes, c.initializer_range, run, name="rel_embeddings"
        )()
        table = jnp.take(dense_values(table), rows, axis=0, mode="clip")
        if c.normalizes_relative_table:
            table = LayerNorm(c.hidden_size, c.layer_norm_eps, run, name="LayerNorm")(table)
            return RelativePositions(table, rows, relative_index)
        return RelativePositions(table.astype(run.dtype), rows, relative_index)

    def initialize_layers(self, layer: Layer):
        """Returns an initializer of all layers: every leaf is stacked on a leading axis named ``layers``."""
        c = self.config
        x = jnp.zeros((1, 1, c.hidden_size), self.runtime.dtype)
        table = jnp.zeros((1, c.hidden_size), self.runtime.dtype) if c.relative_attention else None
        relative = RelativePositions(table, np.zeros(1, np.int32), np.zeros(1, np.int32))

        def one(key):
            return layer.init(key, x, x, AttentionContext(relative))["params"]

        def initialize(key):
            stacked = jax.vmap(one)(jax.random.split(key, c.num_hidden_layers))
            is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
            name = {nn.PARTITION_NAME: "layers"}
            return jax.tree.map(lambda p: p.add_axis(0, name) if is_box(p) else p, stacked, is_leaf=is_box)

        return initialize


def rematerialize(body, runtime: Runtime):
    """Returns the body of the loop, with ``jax.checkpoint`` applied as ``runtime.remat`` says.

    ``dots`` keeps the results of the projections for the backward pass; ``full`` keeps only the input of a layer.
    """
    if runtime.remat == "none":
        return body
    policies = jax.checkpoint_policies
    policy = policies.dots_with_no_batch_dims_saveable if runtime.remat == "dots" else policies.nothing_saveable
    # Inside a scan the compiler cannot merge the recomputation with the first run, so the barrier is not needed.
    return jax.checkpoint(body, policy=policy, prevent_cse=not runtime.scan)
