"""What a masked language model would write for [MASK]."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import hub
from deberta_jax.data.batches import length_buckets, pad_texts, plan_in_order
from deberta_jax.data.features import Features, check_vocabulary, make_features
from deberta_jax.errors import InputError
from deberta_jax.models import Model, Runtime, prepare_for_inference
from deberta_jax.sharding import batch_sharding, global_batch, make_mesh
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.weights import load, tokenizer_directory

FILL_MASK = "fill-mask"


@dataclasses.dataclass(frozen=True)
class MaskFiller:
    """``pipe("Paris is the [MASK] of France.")`` gives the likeliest tokens, each ``{"score", "token", "token_str"}``,
    the score a probability, the likeliest first; a list of those where a text has several [MASK]; a list of texts gives
    a list. All [MASK] of a text are filled at once, each as if the others stayed."""

    model: Model
    params: Any
    tokenizer: Tokenizer
    forward: Callable[..., Any]
    rows: int
    max_length: int

    def __call__(self, inputs: Any, top_k: int = 5) -> Any:
        """Raises InputError for an input that is no text, has no [MASK], or is longer than ``max_length`` tokens."""
        texts = [inputs] if isinstance(inputs, str) or not isinstance(inputs, Iterable) else list(inputs)
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise InputError(f"top_k={top_k}: give 1 to {self.tokenizer.vocab_size}")
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"cannot read the input {text!r}; give a str")
        if not texts:
            return []
        features = make_features(self.tokenizer, texts, None, max_length=1 << 30)
        check_vocabulary(features, self.model.config.vocab_size, "the input")
        positions = self._masks(texts, features)
        results: list[Any] = [None] * len(texts)
        plan = plan_in_order(features.lengths, self.rows, length_buckets(features.lengths, self.max_length))
        mesh = make_mesh()
        with jax.set_mesh(mesh):
            for members, length in zip(plan.members, plan.padded, strict=True):
                batch = pad_texts(features, members, self.rows, length, self.tokenizer.pad_id)
                batch["positions"] = np.full((self.rows, positions.shape[1]), -1, np.int32)
                batch["positions"][: len(members)] = positions[members]
                found = self.forward(self.params, global_batch(batch, mesh), top_k=top_k)
                for text, scores, tokens in zip(members, *map(np.asarray, found), strict=False):
                    results[text] = self._answer(positions[text], scores, tokens)
        return results[0] if isinstance(inputs, str) else results

    def _masks(self, texts: Sequence[str], features: Features) -> np.ndarray:
        """Where each text's [MASK] stand, int32 [n, P], -1 beyond them."""
        places = []
        for i, text in enumerate(texts):
            ids = features.ids[features.starts[i] : features.starts[i + 1]]
            if len(ids) > self.max_length:
                raise InputError(f"the text {text[:40]!r}... has {len(ids)} tokens; the most is {self.max_length}")
            places.append(np.flatnonzero(ids == self.tokenizer.mask_id))
            if not len(places[-1]):
                raise InputError(f"the text {text[:60]!r} has no [MASK]")
        # A power of two, so that texts with a few more [MASK] than others do not need programs of their own.
        most = 1 << (max(map(len, places)) - 1).bit_length()
        return np.array([np.pad(p, (0, most - len(p)), constant_values=-1) for p in places], np.int32)

    def _answer(self, positions: np.ndarray, scores: np.ndarray, tokens: np.ndarray) -> list[Any]:
        """Of one text, from scores and tokens [P, K]."""
        lists = [
            [
                {"score": float(score), "token": int(token), "token_str": self.tokenizer.decode([int(token)], False)}
                for score, token in zip(row, ids, strict=True)
            ]
            for row, ids, at in zip(scores, tokens, positions, strict=True)
            if at >= 0
        ]
        return lists[0] if len(lists) == 1 else lists


def load_mask_filler(
    model: str | Path,
    *,
    runtime: Runtime,
    max_length: int | None,
    batch_size: int,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> MaskFiller:
    """A masked language model on all devices; the mask decoder is used where the file holds one.

    Raises:
      InputError: a directory that is no model or has no masked-LM head, such as a discriminator.
    """
    directory, mesh = hub.resolve(model), make_mesh()
    tokenizer = load_tokenizer(tokenizer_directory(directory, base_model=base_model))
    source = model if hub.split_file(str(model))[1] else directory
    network, params, _ = load(source, "masked-lm", runtime, ignore=ignore, base_model=base_model)
    network, params = prepare_for_inference(network, params)
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    everywhere = batch_sharding(mesh)

    @functools.partial(jax.jit, static_argnames="top_k", out_shardings=everywhere)
    def forward(params, batch, *, top_k):
        logits = network.apply({"params": params}, **batch).logits  # pyright: ignore
        shares = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        # Rows of the table beyond the tokenizer's ids are no tokens.
        return jax.lax.top_k(shares[..., : tokenizer.vocab_size], top_k)

    split = mesh.shape["data"] * mesh.shape["fsdp"]
    limit = network.config.max_position_embeddings if max_length is None else max_length
    return MaskFiller(network, params, tokenizer, forward, -(-batch_size // split) * split, limit)
