"""Cross-entropy over the vocabulary from its factors, without all its logits: in pieces, and split over the mesh.

With 128,100 words the logits of a batch are larger than the model. They are made for as many targets at a time as fit a
fixed number of bytes, and again in the backward pass. On a mesh each device has its own targets and its own words: what
crosses devices are a few numbers a target, and the gradients at the end.
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
CHUNK = 2**26
"""Logits that a device holds at once: 256 MiB."""
_BLOCK = 512  # words that a draw looks at one by one, once it has found their block


class Scores(NamedTuple):
    """Of every target: its cross-entropy and weight, float32; whether the true word scored highest; a word drawn from
    the model's distribution, where that was asked for."""

    value: jax.Array
    weight: jax.Array
    right: jax.Array
    drawn: jax.Array | None


def vocabulary_scores(
    states: Float[Array, "B P E"],
    table: Float[Array, "V E"],
    bias: Float[Array, " V"],
    labels: Int[Array, "B P"],
    *,
    uniform: Float[Array, "B P"] | None = None,
    chunk: int = CHUNK,
) -> Scores:
    """What a masked language model's loss and its generator need of the logits ``states @ table.T + bias``.

    Products are of the dtype of ``states`` and accumulate in float32, as everything after them is computed.

    Args:
      labels: negative ones are ignored: value and weight 0. Beyond the last word: NaN, never another word's loss.
      uniform: in [0, 1): draws the word at which the cumulative probability passes it (temperature 1). The draw does
        not depend on the mesh, but for rounding.
      chunk: logits held at once on a device.
    """
    counts = labels >= 0
    found: Any = _scores(chunk, states, table, bias.astype(F32), labels, uniform)
    value, right, drawn = found
    value = jnp.where(counts, value, 0.0)
    return Scores(value, counts.astype(F32), right & counts, drawn)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scores(chunk: int, states, table, bias, labels, uniform) -> Any:
    return _scores_forward(chunk, states, table, bias, labels, uniform)[0]


def _scores_forward(chunk, states, table, bias, labels, uniform):
    places = _Places(states.shape, table.shape)
    targets, words = places.targets, places.words
    out_specs = (targets, targets, None if uniform is None else targets, targets)
    run = functools.partial(_forward_here, places, chunk)
    value, right, drawn, logsum = places.everywhere(
        run, (targets, words, places.word, targets, None if uniform is None else targets), out_specs
    )(states, table.astype(states.dtype), bias, labels, uniform)
    return (value, right, drawn), (states, table, bias, labels, logsum)


def _scores_backward(chunk, saved, cotangents):
    states, table, bias, labels, logsum = saved
    cotangent = jnp.where(labels >= 0, cotangents[0], 0.0)
    places = _Places(states.shape, table.shape)
    targets, words = places.targets, places.words
    run = functools.partial(_backward_here, places, chunk)
    found = places.everywhere(
        run, (targets, words, places.word, targets, targets, targets), (targets, places.gradient, places.word)
    )(states, table.astype(states.dtype), bias, labels, logsum, cotangent)
    d_states, d_table, d_bias = found
    return d_states.astype(states.dtype), d_table.astype(table.dtype), d_bias, None, None


_scores.defvjp(_scores_forward, _scores_backward)


class _Places:
    """Which mesh axes split targets and words; none where no mesh is set."""

    def __init__(self, states: tuple[int, ...], table: tuple[int, ...]):
        mesh = jax.sharding.get_abstract_mesh()
        self.mesh = None if mesh.empty or mesh.size == 1 else mesh
        sizes: dict[str, int] = {} if self.mesh is None else dict(self.mesh.shape)
        self.batch = _dividing(sizes, RULES.batch, states[0])
        self.vocab = _dividing(sizes, RULES.vocab, table[0])
        self.embed = _dividing(sizes, RULES.embed, table[1])
        self.parts = math.prod(sizes[axis] for axis in self.vocab)
        self.targets = PartitionSpec(self.batch or None)
        self.words, self.word = PartitionSpec(self.vocab or None), PartitionSpec(self.vocab or None)
        self.gradient = PartitionSpec(self.vocab or None, self.embed or None)

    def everywhere(self, run: Any, in_specs: Any, out_specs: Any) -> Any:
        if self.mesh is None:
            return run
        return jax.shard_map(run, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def first_word(self, here: int):
        return lax.axis_index(self.vocab) * here if self.vocab else 0

    def over_words(self, x: jax.Array) -> jax.Array:
        return lax.psum(x, self.vocab) if self.vocab else x

    def top_over_words(self, x: jax.Array) -> jax.Array:
        return lax.pmax(x, self.vocab) if self.vocab else x

    def over_targets(self, x: jax.Array) -> jax.Array:
        return lax.psum(x, self.batch) if self.batch else x

    def table_over_targets(self, x: jax.Array) -> jax.Array:
        """The sum over the targets of all devices, each keeping the columns that are its own."""
        scattered = tuple(axis for axis in self.embed if axis in self.batch)
        for axis in scattered:
            x = lax.psum_scatter(x, axis, scatter_dimension=1, tiled=True)
        rest = tuple(axis for axis in self.batch if axis not in scattered)
        return lax.psum(x, rest) if rest else x


def _dividing(sizes: dict[str, int], axes: Any, size: int) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    axes = tuple(axis for axis in axes if axis in sizes)
    return axes if size % math.prod(sizes[axis] for axis in axes) == 0 else ()


def _pieces(arrays: tuple, words: int, chunk: int) -> tuple[tuple, int]:
    """Arrays [B,P,...] as pieces [K,C,...] of C targets each, the last filled with zeros; None stays None."""
    count = math.prod(arrays[0].shape[:2])
    number = -(-count // max(1, min(count, chunk // words)))
    size = -(-count // number)

    def cut(a):
        if a is None:
            return None
        flat = a.reshape(count, *a.shape[2:])
        flat = jnp.pad(flat, ((0, number * size - count),) + ((0, 0),) * (flat.ndim - 1))
        return flat.reshape(number, size, *flat.shape[1:])

    return tuple(cut(a) for a in arrays), count


def _logits(states: jax.Array, table: jax.Array, bias: jax.Array) -> jax.Array:
    logits = product("CE,VE->CV", states, table)
    return logits + align(bias, logits)


def _is_label(labels: jax.Array, first: Any, words: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, (labels.shape[0], words), 1) == (labels - first)[:, None]


def _forward_here(places: _Places, chunk: int, states, table, bias, labels, uniform):
    words = table.shape[0]
    first = places.first_word(words)
    total_words = words * places.parts

    def one(piece):
        h, y, u = piece
        logits = _logits(h, table, bias)
        top = places.top_over_words(logits.max(axis=-1))
        weights = jnp.exp(logits - top[:, None])
        here = weights.sum(axis=-1)
        logsum = top + jnp.log(places.over_words(here))
        own = places.over_words(jnp.where(_is_label(y, first, words), logits, 0.0).sum(axis=-1))
        value = jnp.where(y < total_words, logsum - own, jnp.nan)
        drawn = None if u is None else _draw(places, weights, here, u, first)
        return value, own >= top, drawn, logsum

    pieces, count = _pieces((states, labels, uniform), words, chunk)
    found = lax.map(one, pieces)
    shape = labels.shape
    return tuple(None if a is None else a.reshape(-1)[:count].reshape(shape) for a in found)


def _draw(places: _Places, weights: Float[Array, "C V"], here: Float[Array, " C"], uniform, first):
    """The word at which the cumulative weight passes ``uniform`` times the whole: first its device, then its block."""
    shares = lax.all_gather(here, places.vocab) if places.vocab else here[None]
    ends = jnp.cumsum(shares, axis=0)
    goal = uniform * ends[-1]
    owner = jnp.minimum((ends <= goal[None]).sum(axis=0), len(shares) - 1)
    me = lax.axis_index(places.vocab) if places.vocab else 0
    goal = goal - (ends - shares)[me]

    padding = -weights.shape[1] % _BLOCK
    blocks = jnp.pad(weights, ((0, 0), (0, padding))).reshape(len(weights), -1, _BLOCK)
    block, goal = _passed(blocks.sum(axis=-1), goal)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    word, _ = _passed(inside, goal)
    found = first + block * _BLOCK + word
    return places.over_words(jnp.where(owner == me, found, 0)).astype(jnp.int32)


def _passed(weights: Float[Array, "C K"], goal: Float[Array, " C"]) -> tuple[Int[Array, " C"], Float[Array, " C"]]:
    """Where the cumulative weight passes the goal, never at a weight of 0; and how much of the goal lies there."""
    ends = jnp.cumsum(weights, axis=-1)
    last = jnp.max(jnp.where(weights > 0, jnp.arange(weights.shape[1])[None], 0), axis=-1)
    index = jnp.minimum((ends <= goal[:, None]).sum(axis=-1), last)
    before = jnp.take_along_axis(ends - weights, index[:, None], axis=-1)[:, 0]
    return index, goal - before


def _backward_here(places: _Places, chunk: int, states, table, bias, labels, logsum, cotangent):
    words, dtype = table.shape[0], states.dtype
    first = places.first_word(words)

    def one(sums, piece):
        h, y, z, g = piece
        probabilities = jnp.exp(_logits(h, table, bias) - z[:, None])
        change = g[:, None] * (probabilities - _is_label(y, first, words))
        low = change.astype(dtype)
        sums = (sums[0] + product("CV,CE->VE", low, h), sums[1] + change.sum(axis=0))
        return sums, product("CV,VE->CE", low, table)

    pieces, count = _pieces((states, labels, logsum, cotangent), words, chunk)
    zero = jnp.zeros(table.shape, F32), jnp.zeros(bias.shape, F32)
    (d_table, d_bias), d_states = lax.scan(one, zero, pieces)
    d_states = places.over_words(d_states.reshape(-1, states.shape[-1])[:count].reshape(states.shape))
    return d_states, places.table_over_targets(d_table), places.over_targets(d_bias)
