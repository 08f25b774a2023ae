"""Change attention: a bias by distance as in ALiBi, a score modifier, terms by layer, a function of one's own."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import deberta_jax
from deberta_jax import PRESETS, DebertaEncoder

TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
CONFIG = PRESETS["deberta-v3-base"].replace(vocab_size=300, initializer_range=0.2, **TINY)
HEADS, LENGTH = 4, 12
FACTORS = 2.0 ** -np.arange(1, HEADS + 1)


def alibi(scores: jax.Array, *, layer: jax.Array, query_index: jax.Array, key_index: jax.Array) -> jax.Array:
    return scores - jnp.asarray(FACTORS, scores.dtype)[:, None, None] * jnp.abs(query_index - key_index)


def content_only(inputs: deberta_jax.AttentionInputs) -> jax.Array:
    """Attention without relative terms, by JAX's own function; the texts here have no padding."""
    return jax.nn.dot_product_attention(inputs.query, inputs.key, inputs.value, scale=inputs.scale)


def main(directory: str) -> None:
    ids = jax.random.randint(jax.random.key(0), (2, LENGTH), 5, 300)
    model = DebertaEncoder(CONFIG)
    params = deberta_jax.init_params(model, jax.random.key(1))
    plain = model(params, ids).last_hidden_state

    distance = np.arange(-(LENGTH - 1), LENGTH)  # query - key, the order of a bias by distance
    bias = jnp.asarray(-FACTORS[:, None] * np.abs(distance), jnp.float32)
    biased = model(params, ids, attention_bias=bias).last_hidden_state
    modified = DebertaEncoder(CONFIG, score_modifier=alibi)(params, ids).last_hidden_state
    print(f"the bias changes states by {jnp.abs(biased - plain).max():.2f}")
    print(f"bias and modifier agree: {bool(jnp.allclose(biased, modified, atol=1e-5))}")

    def spread(bias: jax.Array) -> jax.Array:
        return model(params, ids, attention_bias=bias).last_hidden_state.std()

    print(f"a learned bias has a gradient of shape {jax.grad(spread)(bias).shape}")

    terms = (("c2p", "p2c"), ("c2p",), ())  # fewer terms in higher layers
    layered = DebertaEncoder(CONFIG.replace(layer_pos_att_type=terms))
    deberta_jax.save_pretrained(directory, layered, params)
    loaded, again = deberta_jax.from_pretrained(directory, head="encoder")
    same = jnp.allclose(loaded(again, ids).last_hidden_state, layered(params, ids).last_hidden_state, atol=1e-6)
    print(f"terms by layer {loaded.config.layer_pos_att_type}, reloaded: {bool(same)}")

    deberta_jax.register_attention("content_only", content_only)
    own = DebertaEncoder(CONFIG, attention="content_only")(params, ids).last_hidden_state
    print(f"an own function changes states by {jnp.abs(own - plain).max():.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
