"""Add a head for sentence embeddings, train it contrastively with dropout as the difference (SimCSE), save, reload."""

import tempfile
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import deberta_jax
from deberta_jax import PRESETS, losses, training
from deberta_jax.models import HEADS, HeadOutput, HeadSpec, Model

TEXTS = [f"the {thing} is {state}" for thing in ("door", "shop", "file", "road") for state in ("open", "shut", "new")]


class SentenceEmbedding(Model[HeadOutput]):
    """Returns as ``logits`` the vector of a text's first token, projected to length 1: float32 [B,16]."""

    @nn.compact
    def forward(self, input_ids: jax.Array | None = None, **inputs: Any) -> HeadOutput:
        h = self.backbone(input_ids, inputs)
        x: jax.Array = nn.Dense(16, name="projection")(h.states[:, 0])
        norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
        return HeadOutput(x / norm, h.hidden_states, h.attentions)


HEADS["sentence-embedding"] = HeadSpec(model=SentenceEmbedding, parts=("projection",), num_outputs=lambda config: 16)


def main(directory: str) -> None:
    tokenizer = deberta_jax.train_tokenizer(TEXTS, 356, f"{directory}/tokenizer")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    dropout = {"hidden_dropout_prob": 0.01, "attention_probs_dropout_prob": 0.01}
    model = SentenceEmbedding(PRESETS["deberta-v3-base"].replace(vocab_size=tokenizer.vocab_size, **tiny, **dropout))
    params = deberta_jax.init_params(model, jax.random.key(0))
    batch = dict(tokenizer(TEXTS, padding=True))

    def loss(params: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array):
        keys = jax.random.split(key)
        a, b = (model(params, **batch, deterministic=False, rngs=keys[i]).logits for i in range(2))
        return {"contrast": losses.cross_entropy(a @ b.T / 0.05, jnp.arange(len(TEXTS)))}

    optimizer = training.adamw(2e-3)
    step, state = training.train_step(loss, optimizer), training.init_state(params, optimizer, seed=0)
    values: list[float] = []
    for _ in range(50):
        state, metrics = step(state, batch)
        values.append(float(metrics["loss"]))
    deberta_jax.save_pretrained(f"{directory}/model", model, state.params, tokenizer=tokenizer)
    again, loaded = deberta_jax.from_pretrained(f"{directory}/model", head="sentence-embedding")
    same = np.array_equal(again(loaded, **batch).logits, model(state.params, **batch).logits)
    print(f"loss {values[0]:.2f} -> {values[-1]:.2f}; equal after reloading: {same}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
