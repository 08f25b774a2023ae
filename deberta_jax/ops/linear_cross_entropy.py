"""Computes the cross-entropy of a linear output layer, fused with its product, without holding all logits.

With a vocabulary of 128,100 the logits of a batch are larger than the model. They are computed for as many targets at a
time as fit a fixed number of bytes, and again in the backward pass. On a mesh each device has its own targets and its
own part of the vocabulary: only a few numbers per target, and the gradients at the end, are exchanged.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from deberta_jax.ops.products import align, product
from deberta_jax.sharding import RULES

F32 = jnp.float32
CHUNK_SIZE = 2**26
"""Logits that a device holds at once: 256 MiB."""
_BLOCK_SIZE = 512  # vocabulary entries that sampling searches one by one, after it has found their block


class TargetResults(NamedTuple):
    """Holds the results for every target [B,P].

    Attributes:
      value: cross-entropy, float32; 0 where the target is ignored.
      weight: 1, or 0 where the target is ignored, float32.
      correct: True where the label has the highest logit.
      sampled: int32 ids sampled from the model's distribution; None unless asked for.
    """

    value: jax.Array
    weight: jax.Array
    correct: jax.Array
    sampled: jax.Array | None


def linear_cross_entropy(
    states: Float[Array, "B P E"],
    table: Float[Array, "V E"],
    bias: Float[Array, " V"],
    labels: Int[Array, "B P"],
    *,
    uniform: Float[Array, "B P"] | None = None,
    chunk_size: int = CHUNK_SIZE,
    gradient_dtype: Any = F32,
) -> TargetResults:
    """Computes cross-entropy, accuracy and samples of the logits ``states @ table.T + bias``.

    Products are of the dtype of ``states`` and accumulate in float32, as everything after them is computed. The value
    is differentiable with respect to states, table and bias.

    Args:
      states: inputs of the output layer, one per target.
      table: word embeddings, or another output matrix.
      bias: of the output layer.
      labels: negative ones are ignored: value and weight 0. Beyond the vocabulary: NaN, never another word's loss.
      uniform: in [0, 1): samples the id at which the cumulative probability exceeds it (temperature 1). Except for
        rounding, samples do not depend on the mesh.
      chunk_size: logits held at once on a device.
      gradient_dtype: dtype in which devices that share the batch add up the table's gradient. Each computes its own
        part in float32.
    """
    counts = labels >= 0
    results: Any = _fused(_Options(chunk_size, gradient_dtype), states, table, bias.astype(F32), labels, uniform)
    value, correct, sampled = results
    value = jnp.where(counts, value, 0.0)
    return TargetResults(value, counts.astype(F32), correct & counts, sampled)


class _Options(NamedTuple):
    """Holds ``chunk_size`` and ``gradient_dtype`` of ``linear_cross_entropy``."""

    chunk_size: int
    gradient_dtype: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(options: _Options, states, table, bias, labels, uniform) -> Any:
    return _fused_forward(options, states, table, bias, labels, uniform)[0]


def _fused_forward(options, states, table, bias, labels, uniform):
    axes = _MeshAxes(states.shape, table.shape)
    run = functools.partial(_forward_on_device, axes, options.chunk_size)
    optional = None if uniform is None else axes.targets
    value, correct, sampled, logsumexp = axes.on_each_device(
        run,
        (axes.targets, axes.table, axes.bias, axes.targets, optional),
        (axes.targets, axes.targets, optional, axes.targets),
    )(states, table.astype(states.dtype), bias, labels, uniform)
    return (value, correct, sampled), (states, table, bias, labels, logsumexp)


def _fused_backward(options, saved, cotangents):
    states, table, bias, labels, logsumexp = saved
    cotangent = jnp.where(labels >= 0, cotangents[0], 0.0)
    axes = _MeshAxes(states.shape, table.shape)
    run = functools.partial(_backward_on_device, axes, options)
    d_states, d_table, d_bias = axes.on_each_device(
        run,
        (axes.targets, axes.table, axes.bias, axes.targets, axes.targets, axes.targets),
        (axes.targets, axes.d_table, axes.bias),
    )(states, table.astype(states.dtype), bias, labels, logsumexp, cotangent)
    return d_states.astype(states.dtype), d_table.astype(table.dtype), d_bias, None, None


_fused.defvjp(_fused_forward, _fused_backward)


class _MeshAxes:
    """Holds the mesh axes that divide targets and vocabulary, and the exchanges over them; none without a mesh."""

    def __init__(self, states: tuple[int, ...], table: tuple[int, ...]):
        mesh = jax.sharding.get_abstract_mesh()
        self.mesh = None if mesh.empty or mesh.size == 1 else mesh
        sizes: dict[str, int] = {} if self.mesh is None else dict(self.mesh.shape)
        self.batch = _dividing_axes(sizes, RULES.batch, states[0])
        self.vocab = _dividing_axes(sizes, RULES.vocab, table[0])
        self.embed = _dividing_axes(sizes, RULES.embed, table[1])
        self.vocab_parts = math.prod(sizes[axis] for axis in self.vocab)
        self.targets = PartitionSpec(self.batch or None)
        self.table = self.bias = PartitionSpec(self.vocab or None)
        self.d_table = PartitionSpec(self.vocab or None, self.embed or None)

    def on_each_device(self, run: Any, in_specs: Any, out_specs: Any) -> Any:
        if self.mesh is None:
            return run
        return jax.shard_map(run, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def first_id(self, local_size: int):
        """Returns the first vocabulary id of this device."""
        return lax.axis_index(self.vocab) * local_size if self.vocab else 0

    def sum_over_vocab(self, x: jax.Array) -> jax.Array:
        return lax.psum(x, self.vocab) if self.vocab else x

    def max_over_vocab(self, x: jax.Array) -> jax.Array:
        return lax.pmax(x, self.vocab) if self.vocab else x

    def sum_over_targets(self, x: jax.Array) -> jax.Array:
        return lax.psum(x, self.batch) if self.batch else x

    def sum_table_over_targets(self, x: jax.Array) -> jax.Array:
        """Returns the sum over the targets of all devices, of which each device keeps its own columns."""
        scattered = tuple(axis for axis in self.embed if axis in self.batch)
        for axis in scattered:
            x = lax.psum_scatter(x, axis, scatter_dimension=1, tiled=True)
        rest = tuple(axis for axis in self.batch if axis not in scattered)
        return lax.psum(x, rest) if rest else x


def _dividing_axes(sizes: dict[str, int], axes: Any, size: int) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    axes = tuple(axis for axis in axes if axis in sizes)
    return axes if size % math.prod(sizes[axis] for axis in axes) == 0 else ()


def _chunks(arrays: tuple, vocab_size: int, chunk_size: int) -> tuple[tuple, int]:
    """Returns arrays [B,P,...] as chunks [K,C,...] of C targets, the last padded by zeros, and B*P; None stays None."""
    count = math.prod(arrays[0].shape[:2])
    number = -(-count // max(1, min(count, chunk_size // vocab_size)))
    size = -(-count // number)

    def split(a):
        if a is None:
            return None
        flat = a.reshape(count, *a.shape[2:])
        flat = jnp.pad(flat, ((0, number * size - count),) + ((0, 0),) * (flat.ndim - 1))
        return flat.reshape(number, size, *flat.shape[1:])

    return tuple(split(a) for a in arrays), count


def _logits(states: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
    logits = product("CE,VE->CV", states, table)
    return logits + align(bias, logits)


def _is_label(labels: jax.Array, first: Any, vocab_size: int) -> jax.Array:
    """Returns the one-hot labels, bool [C,V], of this device's part of the vocabulary."""
    return lax.broadcasted_iota(jnp.int32, (labels.shape[0], vocab_size), 1) == (labels - first)[:, None]


def _forward_on_device(axes: _MeshAxes, chunk_size: int, states, table, bias, labels, uniform):
    local_size = table.shape[0]
    first = axes.first_id(local_size)
    vocab_size = local_size * axes.vocab_parts

    def one_chunk(chunk):
        states, labels, uniform = chunk
        logits = _logits(states, table, bias)
        maximum = axes.max_over_vocab(logits.max(axis=-1))
        weights = jnp.exp(logits - maximum[:, None])
        local_sum = weights.sum(axis=-1)
        logsumexp = maximum + jnp.log(axes.sum_over_vocab(local_sum))
        of_label = axes.sum_over_vocab(jnp.where(_is_label(labels, first, local_size), logits, 0.0).sum(axis=-1))
        value = jnp.where(labels < vocab_size, logsumexp - of_label, jnp.nan)
        sampled = None if uniform is None else _sample(axes, weights, local_sum, uniform, first)
        return value, of_label >= maximum, sampled, logsumexp

    chunks, count = _chunks((states, labels, uniform), local_size, chunk_size)
    results = lax.map(one_chunk, chunks)
    shape = labels.shape
    return tuple(None if a is None else a.reshape(-1)[:count].reshape(shape) for a in results)


def _sample(axes: _MeshAxes, weights: Float[Array, "C V"], local_sum: Float[Array, " C"], uniform, first):
    """Returns the id at which the cumulative weight exceeds ``uniform`` times the total, int32 [C].

    Finds its device first, then its block, then the id.
    """
    sums = lax.all_gather(local_sum, axes.vocab) if axes.vocab else local_sum[None]
    ends = jnp.cumsum(sums, axis=0)
    goal = uniform * ends[-1]
    owner = jnp.minimum((ends <= goal[None]).sum(axis=0), len(sums) - 1)
    device = lax.axis_index(axes.vocab) if axes.vocab else 0
    goal = goal - (ends - sums)[device]

    padding = -weights.shape[1] % _BLOCK_SIZE
    blocks = jnp.pad(weights, ((0, 0), (0, padding))).reshape(len(weights), -1, _BLOCK_SIZE)
    block, goal = _find_cumulative(blocks.sum(axis=-1), goal)
    in_block = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    index, _ = _find_cumulative(in_block, goal)
    ids = first + block * _BLOCK_SIZE + index
    return axes.sum_over_vocab(jnp.where(owner == device, ids, 0)).astype(jnp.int32)


def _find_cumulative(
    weights: Float[Array, "C K"], goal: Float[Array, " C"]
) -> tuple[Int[Array, " C"], Float[Array, " C"]]:
    """Returns where the cumulative weight exceeds the goal, never at a weight of 0, and the goal within that entry."""
    ends = jnp.cumsum(weights, axis=-1)
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[1])[None], 0), axis=-1)
    index = jnp.minimum((ends <= goal[:, None]).sum(axis=-1), last)
    before = jnp.take_along_axis(ends - weights, index[:, None], axis=-1)[:, 0]
    return index, goal - before


def _backward_on_device(axes: _MeshAxes, options: _Options, states, table, bias, labels, logsumexp, cotangent):
    local_size, dtype = table.shape[0], states.dtype
    first = axes.first_id(local_size)

    def one_chunk(sums, chunk):
        states, labels, logsumexp, cotangent = chunk
        probabilities = jnp.exp(_logits(states, table, bias) - logsumexp[:, None])
        d_logits = cotangent[:, None] * (probabilities - _is_label(labels, first, local_size))
        rounded = d_logits.astype(dtype)
        sums = (sums[0] + product("CV,CE->VE", rounded, states), sums[1] + d_logits.sum(axis=0))
        return sums, product("CV,VE->CE", rounded, table)

    chunks, count = _chunks((states, labels, logsumexp, cotangent), local_size, options.chunk_size)
    zeros = jnp.zeros(table.shape, F32), jnp.zeros(bias.shape, F32)
    (d_table, d_bias), d_states = lax.scan(one_chunk, zeros, chunks)
    d_states = axes.sum_over_vocab(d_states.reshape(-1, states.shape[-1])[:count].reshape(states.shape))
    d_table = axes.sum_table_over_targets(d_table.astype(options.gradient_dtype))
    return d_states, d_table, axes.sum_over_targets(d_bias)
