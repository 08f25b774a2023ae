"""Train with a loop of one's own: packed batches, AdamW, sharded parameters and optimizer state, checkpoints.

It runs on all devices, and on eight simulated ones with the same losses:
XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/training_loop.py
"""

import tempfile
from typing import Any

import jax
import numpy as np

from deberta_jax import (
    PRESETS,
    DebertaForSequenceClassification,
    init_params,
    losses,
    sharding,
    train_tokenizer,
    training,
)
from deberta_jax.data import make_features

TEXTS = [f"{word} {thing}" for word in ("fine", "great", "dull", "poor") for thing in ("film", "plot", "cast", "end")]
LABELS = np.array([text.startswith(("fine", "great")) for text in TEXTS], np.int32)


def main(directory: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 356, f"{directory}/tokenizer")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = PRESETS["deberta-v3-base"].replace(vocab_size=tokenizer.vocab_size, **tiny)
    model = DebertaForSequenceClassification(config)

    def loss(params: dict[str, Any], batch: dict[str, jax.Array], key: jax.Array):
        out = model(params, **training.model_inputs(batch), deterministic=False, rngs={"dropout": key})
        return {"task": losses.cross_entropy(out.logits, batch["labels"])}

    mesh = sharding.make_mesh(fsdp=min(2, jax.device_count()))
    with sharding.use(mesh), training.Checkpoints(f"{directory}/states") as checkpoints:
        features = make_features(tokenizer, TEXTS, None, max_length=16, labels=LABELS)
        batches = training.batches(features, tokenizer.pad_id, batch_size=8, epochs=10)
        params = jax.device_put(init_params(model, jax.random.key(0)), training.parameter_shardings(model))
        optimizer = training.adamw(training.learning_rate_schedule(1e-2, len(batches), warmup=2))
        state = training.init_state(params, optimizer, seed=0)
        step = training.train_step(loss, optimizer)
        for i, batch in enumerate(training.read_ahead(batches)):
            state, metrics = step(state, batch)
            if i % 5 == 4:
                print(f"step {i + 1}: loss {metrics['loss']:.4f}")
        checkpoints.save(len(batches), state)
        restored = checkpoints.restore_latest(state)
        assert restored is not None
        print(f"restored the state of step {restored[0]} on {mesh.size} devices")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(temporary)
