"""Predicts the tokens that [MASK] stands for, with a masked language model."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deberta_jax.data.batches import pad_texts, plan_in_order, shape_size
from deberta_jax.data.features import Features, check_vocabulary, make_features
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.inference.answers import FilledMask
from deberta_jax.inference.loading import load_for_inference
from deberta_jax.models import Model, Runtime
from deberta_jax.sharding import batch_sharding, global_batch, make_mesh, replicated
from deberta_jax.text import Tokenizer
from deberta_jax.weights import Check

FILL_MASK = "fill-mask"


@dataclasses.dataclass(frozen=True, repr=False)
class MaskFiller:
    """Predicts the most probable tokens for each [MASK] of a text. Threads may share one, and it can be pickled.

    ``pipe("Paris is the [MASK] of France.")`` returns a list of ``{"score", "token", "token_str"}``, the most probable
    token first; the score is its probability. A text with several [MASK] gives a list of such lists; each [MASK] is
    predicted with the others in place. A list of texts gives a list of results.

    Attributes:
      model, params, tokenizer: the masked language model.
      forward: (params, batch, top_k) -> probabilities and ids [B, P, top_k].
      rows: number of texts in a batch.
      max_length: largest number of tokens of a text.
    """

    model: Model
    params: Any
    tokenizer: Tokenizer
    forward: Callable[..., Any]
    rows: int
    max_length: int

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    def __copy__(self) -> "MaskFiller":
        return dataclasses.replace(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves out the devices and the compiled programs, which belong to this process."""
        return _on_all_devices, (self.model, jax.device_get(self.params), self.tokenizer, self.rows, self.max_length)

    @overload
    def __call__(self, inputs: str, top_k: int = 5) -> list[FilledMask]: ...
    @overload
    def __call__(self, inputs: Iterable[str], top_k: int = 5) -> list[list[FilledMask]]: ...
    def __call__(self, inputs: Any, top_k: int = 5) -> Any:
        """Returns the predictions for a text or a list of texts.

        The types are those for texts with one [MASK].

        Raises:
          InputError: an input is not a text, has no [MASK], or has more than ``max_length`` tokens; or its scores are
            not finite.
        """
        texts = [inputs] if isinstance(inputs, str) or not isinstance(inputs, Iterable) else list(inputs)
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise InputError(f"top_k={top_k}: give 1 to {self.tokenizer.vocab_size}")
        for text in texts:
            if not isinstance(text, str):
                raise InputError(f"cannot read the input {shown(text)}; give a str")
        if not texts:
            return []
        features = make_features(self.tokenizer, texts, None, max_length=1 << 30)
        check_vocabulary(features, self.model.config.vocab_size, "the input")
        positions = self._mask_positions(texts, features)
        results: list[Any] = [None] * len(texts)
        mesh = make_mesh()
        split = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = -(-min(self.rows, shape_size(len(texts))) // split) * split
        plan = plan_in_order(features.lengths, rows, self.max_length)
        with jax.set_mesh(mesh):
            for members, length in zip(plan.members, plan.padded, strict=True):
                batch = pad_texts(features, members, rows, length, self.tokenizer.pad_id)
                batch["positions"] = np.full((rows, positions.shape[1]), -1, np.int32)
                batch["positions"][: len(members)] = positions[members]
                outputs = self.forward(self.params, global_batch(batch, mesh), top_k=top_k)
                for text, probabilities, tokens in zip(members, *map(np.asarray, outputs), strict=False):
                    if not np.isfinite(probabilities[positions[text] >= 0]).all():
                        raise InputError(
                            f"the text {brief(texts[text])!r}: the model's scores are NaN or infinite; check its "
                            "weights with `deberta-jax inspect`"
                        )
                    results[text] = self._answer(positions[text], probabilities, tokens)
        return results[0] if isinstance(inputs, str) else results

    def _mask_positions(self, texts: Sequence[str], features: Features) -> np.ndarray:
        """Returns the positions of each text's [MASK], int32 [n, P], padded with -1."""
        positions = []
        for i, text in enumerate(texts):
            ids = features.ids[features.starts[i] : features.starts[i + 1]]
            if len(ids) > self.max_length:
                raise InputError(f"the text {text[:40]!r}... has {len(ids)} tokens; the most is {self.max_length}")
            positions.append(np.flatnonzero(ids == self.tokenizer.mask_id))
            if not len(positions[-1]):
                raise InputError(f"the text {text[:60]!r} has no [MASK]")
        # P is a power of two, so that few programs are compiled.
        size = 1 << (max(map(len, positions)) - 1).bit_length()
        return np.array([np.pad(p, (0, size - len(p)), constant_values=-1) for p in positions], np.int32)

    def _answer(self, positions: np.ndarray, probabilities: np.ndarray, tokens: np.ndarray) -> list[Any]:
        """Returns the predictions for one text from its probabilities and token ids [P, top_k]."""
        lists = [
            [
                {"score": float(score), "token": int(token), "token_str": self.tokenizer.decode([int(token)], False)}
                for score, token in zip(row, ids, strict=True)
            ]
            for row, ids, at in zip(probabilities, tokens, positions, strict=True)
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
    check: Check = "sampled",
) -> MaskFiller:
    """Loads a masked language model on all devices. The mask decoder is used if the file has one.

    Args:
      max_length: largest number of tokens of a text; by default the model's ``max_position_embeddings``.
      batch_size: number of texts in a forward pass.
      model, ignore, base_model, check: as for ``pipeline``.

    Raises:
      InputError: the directory is not a model, or has no masked-LM head, such as that of a discriminator.
    """
    network, params, tokenizer, _, mesh = load_for_inference(
        "masked-lm", model, runtime, ignore=ignore, base_model=base_model, check=check
    )

    limit = network.config.max_position_embeddings if max_length is None else max_length
    return _mask_filler(network, params, tokenizer, batch_size, limit, mesh)


def _on_all_devices(model: Model, params: Any, tokenizer: Tokenizer, rows: int, max_length: int) -> MaskFiller:
    """Makes a ``MaskFiller`` of what a pickle holds."""
    mesh = make_mesh()
    return _mask_filler(model, replicated(params, mesh), tokenizer, rows, max_length, mesh)


def _mask_filler(
    network: Model, params: Any, tokenizer: Tokenizer, rows: int, max_length: int, mesh: Mesh
) -> MaskFiller:
    """Compiles the forward pass for a mesh. ``rows`` is rounded up to a multiple of the devices that share a batch."""

    @functools.partial(jax.jit, static_argnames="top_k", out_shardings=batch_sharding(mesh))
    def forward(params, batch, *, top_k):
        logits = network.apply({"params": params}, **batch).logits  # pyright: ignore
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
        # The embedding table may have more rows than the tokenizer has tokens.
        return jax.lax.top_k(probabilities[..., : tokenizer.vocab_size], top_k)

    split = mesh.shape["data"] * mesh.shape["fsdp"]
    return MaskFiller(network, params, tokenizer, forward, -(-rows // split) * split, max_length)
