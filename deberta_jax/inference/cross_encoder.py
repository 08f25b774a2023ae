"""Scores pairs of texts and ranks documents for a query: ``deberta_jax.CrossEncoder("dir or hub id")``.

``predict`` and ``rank`` have the results and most arguments of ``sentence_transformers.CrossEncoder`` (version 6).
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jax.numpy as jnp
import numpy as np

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.features import check_vocabulary, make_features
from deberta_jax.errors import InputError, shown
from deberta_jax.inference.calls import check_container, check_count
from deberta_jax.inference.loaded import Loaded, trained_length
from deberta_jax.inference.loading import load_for_inference
from deberta_jax.inference.predict import Predictor, check_finite
from deberta_jax.models import Model, Runtime
from deberta_jax.progress import progress_bar
from deberta_jax.tasks.activations import Activation, find_activation, saved_activation
from deberta_jax.tasks.text_classification import probabilities
from deberta_jax.text import Tokenizer


class RankedDocument(TypedDict):
    """Holds the number of a document in the list that was given, its score, and on request its text."""

    corpus_id: int
    score: float
    text: NotRequired[str]


class CrossEncoder:
    """Scores pairs of texts with a sequence classification model: rerankers, reward models, inference, paraphrases.

    ranker = deberta_jax.CrossEncoder("mixedbread-ai/mxbai-rerank-base-v1")
    ranker.rank("who wrote it?", ["a novel by Harper Lee", "a film"], return_documents=True)

    Attributes:
      activation_fn: the function of logits [n, C] that gives scores, unless a call names another. By default the one
        that the model was saved with: in config_sentence_transformers.json beside modules.json, or in config.json
        under ``sentence_transformers`` or ``sbert_ce_default_activation_function``. Without any it is the sigmoid for
        models with one label, and the identity for others. ``activation_fn=lambda logits: logits`` gives raw logits,
        as reward models are used.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        max_length: int | None = None,
        activation_fn: Activation | None = None,
        dtype: Any = jnp.float32,
        attention: str = "auto",
        ignore: Sequence[str] = (),
        base_model: str | Path | None = None,
        revision: str | None = None,
    ):
        """Loads a model on all devices.

        Args:
          model: a model directory or a hub id, with a trained sequence classification head.
          max_length: longest pair in tokens, beyond which the longer of its texts is cut; by default that of the
            training run, else 512.
          activation_fn: see the class.
          dtype, attention, ignore, base_model, revision: as for ``pipeline``.

        Raises:
          InputError: the directory is not a model, has no such head, or names an activation that is not known here.
        """
        _check_activation(activation_fn)
        loaded = load_for_inference(
            "sequence-classification",
            model,
            Runtime(dtype=dtype, attention=attention),
            ignore=ignore,
            base_model=base_model,
            revision=revision,
        )
        limit = trained_length(loaded.directory) if max_length is None else max_length
        predictor = Predictor(loaded.model, loaded.tokenizer.pad_id, max_length=limit, mesh=loaded.mesh)
        self._set(loaded.model, loaded.params, loaded.tokenizer, predictor, loaded.directory, activation_fn)

    @classmethod
    def from_loaded(cls, loaded: Loaded, directory: Path) -> "CrossEncoder":
        """Returns the cross-encoder of a model that is loaded, such as a pipeline, and shares its parameters.

        Args:
          loaded: a sequence classification model.
          directory: its directory, which may name an activation.

        Raises:
          InputError: the directory names an activation that is not known here.
        """
        ranker = object.__new__(cls)
        ranker._set(loaded.model, loaded.params, loaded.tokenizer, loaded.predictor, directory)
        return ranker

    def _set(
        self,
        model: Model,
        params: Any,
        tokenizer: Tokenizer,
        predictor: Predictor,
        directory: Path,
        activation_fn: Activation | None = None,
    ) -> None:
        self.model, self.params, self.tokenizer, self._predictor = model, params, tokenizer, predictor
        self.max_length = predictor.max_length
        self.activation_fn = activation_fn or _saved_activation(directory, model.config)

    def __repr__(self) -> str:
        return f"CrossEncoder({self.model!r})"

    @property
    def num_labels(self) -> int:
        """Returns the number of labels."""
        return self.model.config.num_labels

    def predict(
        self,
        pairs: Any,
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        activation_fn: Activation | None = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
    ) -> Any:
        """Returns the scores of pairs of texts, in their order.

        Args:
          pairs: a pair of texts, or several; a list or numpy array of texts is one pair.
          batch_size: number of pairs in a forward pass.
          show_progress_bar: whether to show progress on standard error.
          activation_fn: the function of logits [n, C] that gives scores; see the class.
          apply_softmax: whether to apply the softmax over labels afterwards, for models with several labels.
          convert_to_numpy: whether to return an array, or a list of the scores.

        Returns:
          Float32 [n], or [n, C] for C > 1 labels; of a single pair a scalar, or [C].

        Raises:
          InputError: ``pairs`` or an item is not a pair of texts, or its scores are not finite; ``activation_fn`` is no
            function, or does not give one row of scores for each pair.
        """
        check_container(pairs)
        _check_activation(activation_fn)
        if isinstance(pairs, (str, Mapping)) or not isinstance(pairs, Iterable):
            raise InputError(f"cannot score {shown(pairs)}; give two texts, or a list of pairs of texts")
        items = pairs.tolist() if isinstance(pairs, np.ndarray) else list(pairs)
        single = bool(items) and isinstance(items[0], str)
        first, second = _columns([items] if single else items)
        if not first:
            return np.zeros(0, np.float32) if convert_to_numpy else []
        logits = self._logits(first, second, batch_size, show_progress_bar)
        scores = _scores(activation_fn or self.activation_fn, logits)
        if self.num_labels == 1 and scores.ndim > 1:
            scores = scores[:, 0]
        if apply_softmax and scores.ndim > 1:
            scores = probabilities(scores).astype(np.float32)
        if single:
            return scores[0]
        return scores if convert_to_numpy else list(scores)

    def rank(
        self,
        query: Any,
        documents: Any,
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int = 32,
        show_progress_bar: bool = False,
        activation_fn: Activation | None = None,
    ) -> list[RankedDocument]:
        """Returns documents in the order of their scores with a query, the best first.

        Args:
          query, documents: the texts.
          top_k: number of documents to return; None returns all.
          return_documents: whether to add the texts.
          batch_size, show_progress_bar, activation_fn: as for ``predict``.

        Raises:
          InputError: a model with several labels; ``top_k`` is below 1; ``documents`` is no list of texts; or as
            ``predict``.
        """
        if self.num_labels != 1:
            raise InputError(
                f"rank needs a model with one label, and this one has {self.num_labels}; use predict and choose one"
            )
        if not isinstance(query, str):
            raise InputError(f"rank: the query is {shown(query)}; give a str")
        if top_k is not None:
            check_count("top_k", top_k)
        if isinstance(documents, str):
            raise InputError("rank: documents is one text; give a list of texts")
        check_container(documents, "rank: documents")
        if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
            raise InputError(f"rank: documents is {shown(documents)}; give a list of texts")
        texts = list(documents)
        odd = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if odd is not None:
            raise InputError(f"rank: document {odd} is {shown(texts[odd])}; give a str")
        options = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "activation_fn": activation_fn}
        scores = self.predict([(query, text) for text in texts], **options)
        ranked = [RankedDocument(corpus_id=i, score=score) for i, score in enumerate(scores.tolist())]
        if return_documents:
            for document in ranked:
                document["text"] = texts[document["corpus_id"]]
        return sorted(ranked, key=operator.itemgetter("score"), reverse=True)[:top_k]

    def _logits(self, first: list[str], second: list[str], batch_size: int, show_progress_bar: bool) -> np.ndarray:
        """Returns the logits of pairs, float32 [n, C]."""
        predictor = self._predictor.resized(batch_size)
        features = make_features(self.tokenizer, first, second, max_length=self.max_length)
        check_vocabulary(features, self.model.config.vocab_size, "the pairs")
        with progress_bar(total=len(first), unit="pair", leave=False, disable=not show_progress_bar) as bar:
            logits = predictor.logits(self.params, features, bar.update)
        check_finite("scores of pairs", logits)
        return logits


def _check_activation(activation: Any) -> None:
    """Raises InputError for an ``activation_fn`` that is given and is no function."""
    if activation is not None and not callable(activation):
        raise InputError(f"activation_fn={shown(activation)}: give a function of logits [n, C]")


def _scores(activation: Activation, logits: np.ndarray) -> np.ndarray:
    """Returns what a function makes of logits, float32 [n] or [n, C]. Raises InputError for anything else."""
    given = activation(logits)
    try:
        scores = np.asarray(given, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"activation_fn: gave {shown(given)} for logits {list(logits.shape)}; give scores") from None
    if scores.ndim not in (1, 2) or len(scores) != len(logits):
        raise InputError(
            f"activation_fn: gave an array {list(scores.shape)} for logits {list(logits.shape)}; give a row for each "
            "pair"
        )
    return scores


def _columns(pairs: Sequence[Any]) -> tuple[list[str], list[str]]:
    """Returns the first and the second texts of pairs. Raises InputError for an item that is no pair of texts."""
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(f"pair {i} is {shown(pair)}; give two texts")
        for text in pair:
            if not isinstance(text, str):
                raise InputError(f"pair {i} has {shown(text)}; give two texts")
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _saved_activation(directory: Path, config: DebertaConfig) -> Activation:
    """Returns the activation that a model directory names, or the usual one. Raises InputError for an unknown one."""
    name = None
    file = directory / "config_sentence_transformers.json"
    saved = storage.read_json_object(file) if file.is_file() and (directory / "modules.json").is_file() else {}
    if saved.get("model_type") == "CrossEncoder":
        if saved.get("default_prompt_name") is not None:
            raise InputError(f"{file}: names a prompt for every query, which is not supported; add it to the texts")
        name = saved.get("activation_fn")
    try:
        return find_activation(saved_activation(config) if name is None else name, str(directory))
    except InputError as error:
        raise InputError(f"{error}; pass activation_fn=...") from None
