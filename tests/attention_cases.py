"""Inputs of attention, the formula in numpy's float64, and programs that give outputs and gradients by name."""

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.ops.attention import WHOLE_SCORES, disentangled_attention
from deberta_jax.ops.attention.cpu.blocked_attention import blocked_attention
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.masks import normalize_masks
from deberta_jax.ops.attention.relative_position import make_relative_index

T, N, H = 9, 2, 4
SCALE = 0.3


def make_inputs(dtype=np.float32, span=4, length=T):
    """Asymmetric in everything: no row of the table equals another or its mirror image."""
    random = np.random.RandomState(0)
    draw = lambda *shape: random.standard_normal(shape).astype(dtype)
    arrays = {name: draw(2, length, N, H) for name in ("query", "key", "value")}
    return arrays | {"pos_key": draw(2 * span, N, H), "pos_query": draw(2 * span, N, H)}


def relative_index_of(generation: str) -> np.ndarray:
    if generation == "v1":
        return make_relative_index(T, 4, buckets=-1, max_distance=4, clamp=False)
    return make_relative_index(T, 4, buckets=4, max_distance=7, clamp=generation == "clamp")


def attend(arrays, relative_index, *, implementation, mask=None, segment_ids=None, sizes=None, **options):
    """``disentangled_attention``; ``sizes``: of the blocks of ``blocked``."""
    arrays = jax.tree.map(jnp.asarray, arrays)
    mask, segment_ids = (None if a is None else jnp.asarray(a) for a in (mask, segment_ids))
    options = {"relative_index": relative_index, "scale": SCALE, **options}
    if sizes is not None and implementation == "blocked":
        segment_ids, mask = normalize_masks(mask, segment_ids)
        inputs = AttentionInputs(**arrays, attention_mask=mask, segment_ids=segment_ids, **options)
        return blocked_attention(inputs, sizes=sizes), None
    options |= {"return_weights": implementation in WHOLE_SCORES, "implementation": implementation} | options
    return disentangled_attention(**arrays, attention_mask=mask, segment_ids=segment_ids, **options)


def by_hand(a, relative_index, pairs=None, bias=0.0):
    """score[i,j] = (q_i k_j + q_i K[row(i-j)] + Q[row(i-j)] k_j) * scale + bias, in numpy's float64; and softmax."""
    a = {name: None if v is None else np.float64(v) for name, v in a.items()}
    position = np.arange(a["query"].shape[1])
    row = relative_index[position[:, None] - position + len(position) - 1]
    scores = np.einsum("binh,bjnh->bnij", a["query"], a["key"])
    if a["pos_key"] is not None:
        scores += np.einsum("binh,ijnh->bnij", a["query"], a["pos_key"][row])
    if a["pos_query"] is not None:
        scores += np.einsum("ijnh,bjnh->bnij", a["pos_query"][row], a["key"])
    scores = np.where(True if pairs is None else pairs[:, None], scores * SCALE + bias, -np.inf)
    maximum = scores.max(-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(maximum), maximum, 0))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    return np.einsum("bnij,bjnh->binh", weights, a["value"]), weights


def gradient_program(implementation, relative_index, **given):
    """A compiled function of arrays and cotangents to the gradients by name."""

    def loss(arrays, cotangents):
        context, weights = attend(arrays, relative_index, implementation=implementation, **given)
        return jnp.sum(context * cotangents[0]) + (0.0 if weights is None else jnp.sum(weights * cotangents[1]))

    return jax.jit(jax.grad(loss))


def gradients_of(implementation, arrays, relative_index, cotangents, **given):
    return gradient_program(implementation, relative_index, **given)(arrays, cotangents)


def outputs_of(implementation, arrays, relative_index, cotangents, **given):
    """The context and the gradients by name, as one program."""

    def outputs(arrays):
        context, _ = attend(arrays, relative_index, implementation=implementation, **given)
        return {"context": context} | gradients_of(implementation, arrays, relative_index, cotangents, **given)

    return jax.jit(outputs)(arrays)


def relative_error(found, expected):
    return np.abs(np.float64(found) - expected).max() / max(np.abs(expected).max(), 1e-30)
