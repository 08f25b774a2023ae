"""Cases of the attention kernels, the reference they are compared with, and how closely they must agree."""

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.masks import pairwise_mask
from deberta_jax.ops.attention.reference import reference_attention
from deberta_jax.ops.attention.relative_position import compact_relative_index, make_relative_index, pairwise_index

ARRAYS = ("query", "key", "value", "pos_key", "pos_query")
BOTH, C2P, P2C, NEITHER = (), ("pos_query",), ("pos_key",), ("pos_key", "pos_query")


def relative_index_of(generation: str, length: int) -> np.ndarray:
    if generation == "v1":
        return make_relative_index(length, 40, buckets=-1, max_distance=40, clamp=False)
    if generation == "released":
        return make_relative_index(length, 256, buckets=256, max_distance=512, clamp=True)
    return make_relative_index(length, 32, buckets=32, max_distance=64, clamp=generation == "v3")


def make_case(length, heads, size, generation="v3", mask="none", without=BOTH, batch=2, dtype=np.float32):
    """Returns (arrays with a cotangent, masks, relative_index): asymmetric in everything."""
    random = np.random.RandomState(length)
    draw = lambda *shape: random.standard_normal(shape).astype(dtype)
    rows, relative_index = compact_relative_index(relative_index_of(generation, length))
    arrays = {name: draw(batch, length, heads, size) for name in (*ARRAYS[:3], "cotangent")}
    arrays |= {name: None if name in without else draw(len(rows), heads, size) for name in ARRAYS[3:]}
    segment_ids = np.sort(random.randint(1, 4, (batch, length)), axis=1)[:, ::-1].astype(np.int32)
    if mask == "padding":
        segment_ids = (segment_ids > 1).astype(np.int32)  # and the last example is padding alone
        segment_ids[-1] = 0
    segment_ids[:, -length // 8 :] = 0 if length > 8 else 1
    attention_mask = random.random_sample((batch, length, length)) < 0.4
    attention_mask[0, length // 2] = False
    masks = {"segment_ids": segment_ids if mask in ("segments", "padding", "all") else None}
    masks |= {"attention_mask": attention_mask if mask in ("pairwise", "all") else None}
    return arrays, masks, relative_index


def run(attend, arrays, masks, relative_index, **options):
    """Returns the context and the gradients by name, float32, of ``attend(AttentionInputs)``."""
    scale = arrays["query"].shape[-1] ** -0.5

    def both(arrays, masks, cotangent):
        inputs = lambda arrays: AttentionInputs(
            **arrays, relative_index=relative_index, scale=scale, **masks, **options
        )
        context, pull = jax.vjp(lambda arrays: attend(inputs(arrays)), arrays)
        return {"context": context, **pull(cotangent)[0]}

    cotangent = arrays["cotangent"]
    arrays = {name: arrays[name] for name in ARRAYS}
    found = jax.jit(both)(arrays, masks, cotangent)
    return {name: np.float32(a) for name, a in found.items() if a is not None}


def definition_dropping(keep, rate):
    """Returns the formula with the dropout mask as an array, which uses no kernel; for float32 and segment_ids."""

    def attend(inputs):
        assert inputs.attention_mask is None
        query, key = inputs.query, inputs.key
        by_pair = lambda table: table[jnp.asarray(pairwise_index(inputs.relative_index))]
        scores = jnp.einsum("BTNH,BSNH->BNTS", query, key)
        scores += jnp.einsum("BTNH,TSNH->BNTS", query, by_pair(inputs.pos_key))
        scores = (scores + jnp.einsum("BSNH,TSNH->BNTS", key, by_pair(inputs.pos_query))) * inputs.scale
        mask = pairwise_mask(inputs.segment_ids)[:, None]
        weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), 0.0)
        weights = jnp.where(keep, weights / (1 - rate), 0.0)
        return jnp.einsum("BNTS,BSNH->BTNH", weights, inputs.value)

    return attend


def definition(inputs):
    return reference_attention(inputs)[0]


def assert_agree(found, expected):
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        assert np.isfinite(found[name]).all(), name
        limit = (2e-6 if name == "context" else 2e-5) * np.abs(a).max()
        limit = max(limit, 1e-6)  # one token alone has gradients of exactly 0: differences of numbers of size 10
        np.testing.assert_allclose(found[name], a, rtol=0, atol=limit, err_msg=name)


def hidden_queries(masks, arrays):
    """Returns True for queries that may attend to nothing, bool [B,T]."""
    batch, length = arrays["query"].shape[:2]
    names = ("segment_ids", "attention_mask")
    mask = pairwise_mask(*(None if masks[name] is None else jnp.asarray(masks[name]) for name in names))
    return np.zeros((batch, length), bool) if mask is None else ~np.asarray(mask).any(-1)
