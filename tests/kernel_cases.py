"""Cases of the attention kernels, the reference they are compared with, and how closely they must agree."""

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.ops.attention.masks import visible_pairs
from deberta_jax.ops.attention.reference import pair_rows, reference_attention
from deberta_jax.ops.attention.relative_position import reachable_rows, table_rows

ARRAYS = ("query", "key", "value", "pos_key", "pos_query")
BOTH, C2P, P2C, NEITHER = (), ("pos_query",), ("pos_key",), ("pos_key", "pos_query")


def make_rows(generation: str, length: int) -> np.ndarray:
    if generation == "v1":
        return table_rows(length, 40, buckets=-1, max_distance=40, clamp=False)
    if generation == "released":
        return table_rows(length, 256, buckets=256, max_distance=512, clamp=True)
    return table_rows(length, 32, buckets=32, max_distance=64, clamp=generation == "v3")


def make_case(length, heads, size, generation="v3", mask="none", without=BOTH, batch=2, dtype=np.float32):
    """(arrays with a cotangent, masks, rows): asymmetric in everything."""
    random = np.random.RandomState(length)
    draw = lambda *shape: random.standard_normal(shape).astype(dtype)
    kept, rows = reachable_rows(make_rows(generation, length))
    arrays = {name: draw(batch, length, heads, size) for name in (*ARRAYS[:3], "cotangent")}
    arrays |= {name: None if name in without else draw(len(kept), heads, size) for name in ARRAYS[3:]}
    texts = np.sort(random.randint(1, 4, (batch, length)), axis=1)[:, ::-1].astype(np.int32)
    if mask == "padding":
        texts = (texts > 1).astype(np.int32)  # and nothing at all to be seen in the last example
        texts[-1] = 0
    texts[:, -length // 8 :] = 0 if length > 8 else 1
    pairs = random.random_sample((batch, length, length)) < 0.4
    pairs[0, length // 2] = False
    masks = {"texts": texts if mask in ("texts", "padding", "all") else None}
    masks |= {"pairs": pairs if mask in ("pairs", "all") else None}
    return arrays, masks, rows


def run(body, arrays, masks, rows, **options):
    """Context and gradients by name, float32."""

    def both(arrays, masks, cotangent):
        attend = lambda arrays: body(**arrays, rows=rows, scale=arrays["query"].shape[-1] ** -0.5, **masks, **options)
        context, pull = jax.vjp(attend, arrays)
        return {"context": context, **pull(cotangent)[0]}

    cotangent = arrays["cotangent"]
    arrays = {name: arrays[name] for name in ARRAYS}
    found = jax.jit(both)(arrays, masks, cotangent)
    return {name: np.float32(a) for name, a in found.items() if a is not None}


def definition_dropping(keep, rate):
    """The formula with the dropout mask written out, which uses no kernel; for float32 and masks of texts."""

    def attend(query, key, value, pos_key, pos_query, rows, *, scale, texts, pairs):
        assert pairs is None
        by_pair = lambda table: table[jnp.asarray(pair_rows(rows))]
        scores = jnp.einsum("BTNH,BSNH->BNTS", query, key) + jnp.einsum("BTNH,TSNH->BNTS", query, by_pair(pos_key))
        scores = (scores + jnp.einsum("BSNH,TSNH->BNTS", key, by_pair(pos_query))) * scale
        seen = visible_pairs(texts)[:, None]
        weights = jnp.where(seen, jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1), 0.0)
        weights = jnp.where(keep, weights / (1 - rate), 0.0)
        return jnp.einsum("BNTS,BSNH->BTNH", weights, value)

    return attend


def definition(*args, **options):
    return reference_attention(*args, **options)[0]


def assert_agree(found, expected):
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        assert np.isfinite(found[name]).all(), name
        limit = (2e-6 if name == "context" else 2e-5) * np.abs(a).max()
        limit = max(limit, 1e-6)  # one token alone has gradients of exactly 0: differences of numbers of size 10
        np.testing.assert_allclose(found[name], a, rtol=0, atol=limit, err_msg=name)


def hidden_queries(masks, arrays):
    batch, length = arrays["query"].shape[:2]
    pairs = visible_pairs(*(None if masks[name] is None else jnp.asarray(masks[name]) for name in ("texts", "pairs")))
    return np.zeros((batch, length), bool) if pairs is None else ~np.asarray(pairs).any(-1)
