"""Predicts the tokens that [MASK] stands for, with a masked language model."""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deberta_jax.data.features import Features
from deberta_jax.data.text_batches import pad_texts
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.inference.answers import FilledMask
from deberta_jax.inference.calls import Items, Pipeline, read_text, with_tokenizing
from deberta_jax.inference.predict import one_behind
from deberta_jax.models import Model
from deberta_jax.sharding import batch_sharding, check_not_forked, global_batch, make_mesh
from deberta_jax.text.arguments import strategy

_log = logging.getLogger(__name__)


class MaskOptions(TypedDict, total=False):
    """Holds the arguments of a call of ``MaskFiller`` that follow ``top_k``."""

    targets: str | Sequence[str] | None
    tokenizer_kwargs: dict[str, Any] | None
    batch_size: int


class MaskOptionsOfPipeline(MaskOptions, total=False):
    """Holds all arguments of a call of ``MaskFiller``."""

    top_k: int | None


class MaskPredictor:
    """Computes the most probable tokens at positions of texts. A pickle of it is loaded for all devices.

    Args:
      model: a masked language model.
      vocab_size: number of tokens that are considered; the embedding table may have more rows.
      mesh: the devices; by default all.
    """

    def __init__(self, model: Model, vocab_size: int, mesh: Mesh | None = None):
        self.model, self.vocab_size = model, vocab_size
        self.mesh = make_mesh() if mesh is None else mesh

        @functools.partial(jax.jit, static_argnames="top_k", out_shardings=batch_sharding(self.mesh))
        def forward(params, batch, targets, *, top_k):
            logits = model.apply({"params": params}, **batch).logits  # pyright: ignore
            probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., :vocab_size]
            if targets is None:
                return jax.lax.top_k(probabilities, top_k)
            values, numbers = jax.lax.top_k(probabilities[..., targets], top_k)
            return values, targets[numbers]

        self.forward = forward

    def __reduce__(self) -> tuple[Any, ...]:
        return _masks_on_all_devices, (self.model, self.vocab_size, self.mesh.shape["fsdp"])


def _masks_on_all_devices(model: Model, vocab_size: int, mesh_fsdp: int) -> MaskPredictor:
    """Returns a predictor on the devices of this process, as many of which share the weights as before."""
    return MaskPredictor(model, vocab_size, make_mesh(fsdp=mesh_fsdp))


@dataclasses.dataclass(frozen=True, repr=False)
class MaskFiller(Pipeline):
    """Predicts the most probable tokens for each [MASK] of a text, with the mask decoder if the file has one.

    As in transformers, a text gives a list of ``{"score", "token", "token_str", "sequence"}``, the most probable token
    first; the score is its probability, and the sequence the text with the token in place. A text with several [MASK]
    gives a list of such lists; each [MASK] is predicted with the others in place. A list of texts gives a list of
    results, a list with one text its result.
    """

    _: dataclasses.KW_ONLY
    masks: MaskPredictor
    task: ClassVar[str] = "fill-mask"
    arguments: ClassVar[frozenset[str]] = frozenset(MaskOptionsOfPipeline.__annotations__)

    @overload
    def __call__(self, inputs: str, top_k: int | None = None, **options: Unpack[MaskOptions]) -> list[FilledMask]: ...
    @overload
    def __call__(
        self, inputs: list[str], top_k: int | None = None, **options: Unpack[MaskOptions]
    ) -> list[list[FilledMask]]: ...
    @overload
    def __call__(
        self, inputs: Iterable[str], top_k: int | None = None, **options: Unpack[MaskOptions]
    ) -> Iterator[list[FilledMask]]: ...
    def __call__(self, inputs: Any, top_k: int | None = None, **options: Any) -> Any:
        """Returns the predictions for a text or a list of texts, or an iterator.

        The types are those for texts with one [MASK], and for lists with two texts or more.

        Args:
          inputs: a text, a list of texts, or an iterable of them.
          top_k: number of tokens for each [MASK]; by default 5.
          targets: tokens to choose from, with the probabilities that they have among all tokens. Of a text that is not
            a token the first token is taken, with a warning.
          tokenizer_kwargs: ``truncation``, ``padding`` and ``max_length`` as a dict. Without truncation a text longer
            than the pipeline's ``max_length`` is an error.
          batch_size: number of texts in a forward pass.

        Raises:
          InputError: an input is not a text, has no [MASK], or has more than ``max_length`` tokens; or its scores are
            not finite and ``non_finite`` is ``refuse``; or an argument has a value that it cannot have.
        """
        given = options if top_k is None else {"top_k": top_k, **options}
        answers = self._call(inputs, given)
        return answers[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else answers

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        options = with_tokenizing(super()._options(given), "tokenizer_kwargs")
        options["truncation"] = bool(strategy("truncation", options.get("truncation") or False))
        most = self.tokenizer.vocab_size
        options["top_k"] = 5 if options.get("top_k") is None else options["top_k"]
        if options["top_k"] > most:
            raise InputError(f"top_k={options['top_k']}: give 1 to {most}")
        if options.get("targets") is not None:
            options["targets"] = self._targets(options["targets"])
            options["top_k"] = min(options["top_k"], len(options["targets"]))
        return options

    def _targets(self, targets: Any) -> np.ndarray:
        """Returns the ids of targets, each once, int32 [n]."""
        names = [targets] if isinstance(targets, str) else targets
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(name, str) for name in names):
            raise InputError(f"targets={shown(targets)}: give a token, or a list of tokens")
        ids = []
        for name in names:
            index = self.tokenizer.token_to_id(name)
            if index == self.tokenizer.unk_id and name != self.tokenizer.id_to_token(index):
                found = self.tokenizer(name, add_special_tokens=False).input_ids[0]
                if not len(found):
                    _log.warning("the target %r has no token and is left out", brief(name))
                    continue
                index = int(found[0])
                _log.warning(
                    "the target %r is no token; its first, %r, is taken", brief(name), self.tokenizer.id_to_token(index)
                )
            ids.append(index)
        if not ids:
            raise InputError(f"targets={shown(targets)}: none of them has a token")
        return np.unique(np.array(ids, np.int32))

    def warm_up(self, *, lengths: Sequence[int] | None = None, texts: Sequence[int] | None = None) -> int:
        """Compiles the programs for texts with one [MASK] and the default ``top_k``; otherwise as other pipelines."""
        shapes = self.predictor.shapes(lengths, texts)
        for rows, length in shapes:
            ids = np.full(rows * length, self.tokenizer.pad_id, np.int32)
            starts = np.arange(rows + 1) * length
            features = Features(ids=ids, types=np.zeros(len(ids), np.int8), starts=starts)
            options = self._options({})
            self._predicted(features, np.zeros((rows, 1), np.int32), options)
        return len(shapes)

    def _answer(self, items: Items, options: Mapping[str, Any]) -> list[Any]:
        texts = [read_text(item, items.where(i)) for i, item in enumerate(items.values)]
        limit = options.get("max_length") or self.predictor.max_length
        features = self._features(texts, None, {**options, "max_length": limit})
        positions = self._mask_positions(items, features, limit)
        probabilities, tokens = self._predicted(features, positions, options)
        broken = self._check_finite(
            ~np.isfinite(np.where(positions[..., None] < 0, 0, probabilities)).all(axis=(1, 2)), items
        )
        answers: list[Any] = []
        for i in range(len(texts)):
            ids = features.ids[features.starts[i] : features.starts[i + 1]]
            answers.append(None if i in broken else self._answer_to(ids, positions[i], probabilities[i], tokens[i]))
        return answers

    def _predicted(
        self, features: Features, positions: np.ndarray, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the largest probabilities at positions of all texts, and their tokens, both [n, P, top_k]."""
        check_not_forked()
        size = options.get("batch_size")
        predictor = self.predictor if size is None else self.predictor.resized(size)
        shape = (*positions.shape, options["top_k"])
        probabilities, tokens = np.zeros(shape, np.float32), np.zeros(shape, np.int32)

        def sent() -> Iterator[tuple[np.ndarray, Any]]:
            for members, rows, length in predictor.batches(features):
                batch = pad_texts(features, members, rows, length, self.tokenizer.pad_id)
                batch["positions"] = np.full((rows, positions.shape[1]), -1, np.int32)
                batch["positions"][: len(members)] = positions[members]
                arrays = global_batch(batch, predictor.mesh)
                yield members, self.masks.forward(self.params, arrays, options.get("targets"), top_k=options["top_k"])

        with jax.set_mesh(predictor.mesh):
            for members, found in one_behind(sent()):
                probabilities[members], tokens[members] = (np.asarray(values)[: len(members)] for values in found)
        return probabilities, tokens

    def _mask_positions(self, items: Items, features: Features, limit: int) -> np.ndarray:
        """Returns the positions of each text's [MASK], int32 [n, P], padded with -1."""
        positions = []
        for i in range(len(items.values)):
            ids = features.ids[features.starts[i] : features.starts[i + 1]]
            if len(ids) > limit:
                raise InputError(
                    f"{items.where(i)}: has {len(ids)} tokens; the most is {limit}; cut it with "
                    "tokenizer_kwargs={'truncation': True}"
                )
            positions.append(np.flatnonzero(ids == self.tokenizer.mask_id))
            if not len(positions[-1]):
                raise InputError(f"{items.where(i)}: {brief(items.values[i])!r} has no [MASK]")
        # P is a power of two, so that few programs are compiled.
        size = 1 << (max(map(len, positions)) - 1).bit_length()
        return np.array([np.pad(p, (0, size - len(p)), constant_values=-1) for p in positions], np.int32)

    def _answer_to(self, ids: np.ndarray, positions: np.ndarray, scores: np.ndarray, tokens: np.ndarray) -> list[Any]:
        """Returns the predictions for one text [T], from probabilities and tokens at its positions [P, top_k]."""
        masked = [(k, at) for k, at in enumerate(positions.tolist()) if at >= 0]
        lists = []
        for k, at in masked:
            row = []
            for score, token in zip(scores[k].tolist(), tokens[k].tolist(), strict=True):
                filled = ids.copy()
                filled[at] = token
                sequence = self.tokenizer.decode(filled[filled != self.tokenizer.pad_id], len(masked) == 1)
                name = self.tokenizer.decode([token], False)
                row.append({"score": score, "token": token, "token_str": name, "sequence": sequence})
            lists.append(row)
        return lists[0] if len(lists) == 1 else lists
