"""Look inside a model: embeddings of texts, attention maps as a picture, and what a head contributes."""

import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from deberta_jax import PRESETS, DebertaEncoder, capture, init_params, patch, train_tokenizer

TEXTS = ["the film is a quiet joy", "a quiet film, and a joy", "the cast looks lost", "nobody in the cast seems awake"]
TINY = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
WEIGHTS = "layers/{}/attention/self/weights"


def mean_pooled(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Means of the states [B,T,D] over real tokens, of length 1."""
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / jnp.sqrt((mean**2).sum(-1, keepdims=True))


def without_head_2(context: jax.Array, *, layer: jax.Array) -> jax.Array:
    """Turns a head off; the context of the heads is [B,T,N,H]."""
    return context.at[:, :, 2].set(0)


def main(picture: str, directory: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 358, f"{directory}/tokenizer")
    config = PRESETS["deberta-v3-base"].replace(vocab_size=tokenizer.vocab_size, initializer_range=0.2, **TINY)
    model = DebertaEncoder(config)
    params = init_params(model, jax.random.key(0))  # from_pretrained loads trained ones
    batch = tokenizer(TEXTS, padding="longest")

    output, values = capture(model, params, **batch, at=WEIGHTS.format("*"))
    embeddings = mean_pooled(output.last_hidden_state, jnp.asarray(batch.attention_mask))
    print(f"embeddings {embeddings.shape}, similarity of the first two {float(embeddings[0] @ embeddings[1]):.2f}")
    print(f"{len(values)} layers of weights {values['encoder/' + WEIGHTS.format(0)].shape}")

    words = [tokenizer.id_to_token(int(index)) for index in batch.input_ids[-1]]
    figure = Figure(figsize=(12, 9), layout="constrained")
    for place in range(12):
        layer, head = divmod(place, 4)
        plot = figure.add_subplot(3, 4, place + 1)
        plot.imshow(np.asarray(values["encoder/" + WEIGHTS.format(layer)][-1, head]), vmin=0, vmax=1)
        plot.set_title(f"layer {layer}, head {head}", fontsize=9)
        plot.set_xticks(range(len(words)), words, rotation=90, fontsize=6)
        plot.set_yticks(range(len(words)), words, fontsize=6)
    figure.savefig(picture)
    print(f"maps are in {picture}")

    changed = patch(model, params, **batch, edits={"layers/1/attention/self": without_head_2})
    moved = mean_pooled(changed.last_hidden_state, jnp.asarray(batch.attention_mask)) - embeddings
    print(f"without head 2 of layer 1 the embeddings move by {float(jnp.sqrt((moved**2).sum(-1)).mean()):.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/attention.png", temporary)
