"""Computes embeddings, one vector of each text: ``deberta_jax.encode("dir or hub id", texts)``."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import storage
from deberta_jax.data.features import Features, check_vocabulary, log_cut, make_features
from deberta_jax.data.packing import Packing, pack, packed_batch
from deberta_jax.data.text_batches import padded_length, shape_size
from deberta_jax.errors import InputError, listed, shown
from deberta_jax.inference.calls import check_container
from deberta_jax.inference.loaded import trained_length
from deberta_jax.inference.loading import load_for_inference
from deberta_jax.inference.predict import check_finite, gather, model_inputs, one_behind
from deberta_jax.models import Runtime
from deberta_jax.ops.pooling import Pooling, normalize, pool
from deberta_jax.progress import progress_bar
from deberta_jax.sharding import batch_sharding, check_not_forked, global_batch, row_share

# A row has room for a text in each so many tokens.
_TOKENS_PER_TEXT = 8


class Embedder:
    """Computes embeddings with the encoder of a model.

    embedder = deberta_jax.Embedder("microsoft/deberta-v3-base", normalize=True)
    vectors = embedder.encode(["a text", "another"])

    Several texts share a row of a batch, without attention between them.

    Attributes:
      pooling: how the vectors of a text's tokens, [CLS] and [SEP] included, become one: their ``mean``, that of [CLS]
        (``cls``), or for each element the largest (``max``).
      normalize: whether embeddings are divided by their length.
      max_length: largest number of tokens of a text; the end of a longer one is removed, with a warning.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        max_length: int | None = None,
        dtype: Any = jnp.float32,
        attention: str = "auto",
        ignore: Sequence[str] = (),
        base_model: str | Path | None = None,
        revision: str | None = None,
        mesh_fsdp: int = 1,
    ):
        """Loads the encoder of a model on all devices.

        Args:
          model: a model directory or a hub id.
          pooling, normalize: see the class; by default what the directory of a SentenceTransformer says, else ``mean``
            and False.
          max_length: by default that of a SentenceTransformer or of the training run, else 512.
          dtype, attention, ignore, base_model, revision, mesh_fsdp: as for ``pipeline``. Embeddings are float32.

        Raises:
          InputError: the directory is not a model, or names a pooling or a layer that is not known here.
        """
        if pooling is not None and pooling not in get_args(Pooling):
            raise InputError(f"pooling={pooling!r}: must be one of {listed(map(repr, get_args(Pooling)))}")
        runtime = Runtime(dtype=dtype, attention=attention)
        loaded = load_for_inference(
            "encoder", model, runtime, ignore=ignore, base_model=base_model, revision=revision, mesh_fsdp=mesh_fsdp
        )
        self.model, self.params, self.tokenizer = loaded.model, loaded.params, loaded.tokenizer
        saved = _saved_settings(loaded.directory) if pooling is None else {}
        self.pooling: Any = saved.get("pooling", "mean") if pooling is None else pooling
        self.normalize = saved.get("normalize", False) if normalize is None else normalize
        self.max_length = _saved_length(loaded.directory) if max_length is None else max_length
        if self.max_length < 8:
            raise InputError(f"max length {self.max_length}: must be at least 8")
        self._mesh = loaded.mesh
        self._forward = jax.jit(self._embed, out_shardings=batch_sharding(loaded.mesh))

    def __repr__(self) -> str:
        return f"Embedder({self.model!r}, pooling={self.pooling!r}, normalize={self.normalize})"

    def encode(self, texts: Any, *, batch_size: int = 32, show_progress_bar: bool = False) -> np.ndarray:
        """Returns the embeddings of texts, in their order.

        Args:
          texts: a text, or several.
          batch_size: number of rows in a forward pass, each of one long text or of several short ones.
          show_progress_bar: whether to show progress on standard error.

        Returns:
          Float32 [n, D]; of a single text [D].

        Raises:
          InputError: an item is not a text, or its embedding is not finite.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        check_container(texts)
        if not isinstance(texts, Iterable) or isinstance(texts, Mapping):
            raise InputError(f"cannot embed {shown(texts)}; give a text, or a list of texts")
        items = [texts] if isinstance(texts, str) else list(texts)
        odd = next((i for i, text in enumerate(items) if not isinstance(text, str)), None)
        if odd is not None:
            raise InputError(f"text {odd} is {shown(items[odd])}; give a str")
        vectors = np.zeros((len(items), self.model.config.hidden_size), np.float32)
        if not items:
            return vectors
        features = make_features(self.tokenizer, items, None, max_length=self.max_length)
        check_vocabulary(features, self.model.config.vocab_size, "the texts")
        log_cut(features, "the texts", self.max_length)
        check_not_forked()
        bar = progress_bar(total=len(items), unit="text", leave=False, disable=not show_progress_bar)
        with bar, jax.set_mesh(self._mesh):
            for members, batch_vectors in self._batches(features, batch_size):
                vectors[members] = batch_vectors
                bar.update(len(members))
        check_finite("embeddings of texts", vectors)
        return vectors[0] if isinstance(texts, str) else vectors

    def _embed(self, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        inputs = model_inputs({name: array for name, array in batch.items() if name != "positions"})
        out: Any = self.model.apply({"params": params}, **inputs)
        vectors = pool(out.last_hidden_state, batch["segment_ids"], batch["positions"].shape[1], self.pooling)
        return normalize(vectors) if self.normalize else vectors

    def _batches(self, features: Features, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the texts of each batch and their vectors. The device computes a batch while one is read from it."""
        lengths, mesh = features.lengths, self._mesh
        # Rows hold the longest text and three of mean length: longer ones cost more attention, shorter ones padding.
        wanted = max(int(lengths.max()), min(int(3 * lengths.mean()), int(lengths.sum())))
        row_length = padded_length(wanted, self.max_length)
        slots = max(1, row_length // _TOKENS_PER_TEXT)
        row_of, count = pack(lengths, row_length, slots)
        share, split = row_share(mesh), mesh.shape["data"] * mesh.shape["fsdp"]
        rows = -(-min(batch_size, shape_size(count)) // split) * split
        packing = Packing(row_length, slots, (rows,))
        order = np.argsort(row_of, kind="stable")
        slot = np.arange(len(order)) - np.searchsorted(row_of[order], row_of[order])

        def sent() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, jax.Array]]:
            for first in range(0, count, rows):
                start, end = np.searchsorted(row_of[order], [first, first + rows])
                members, own = order[start:end], row_of[order[start:end]] - first
                batch = packed_batch(features, members, own, share.rows(rows), packing, self.tokenizer.pad_id)
                yield members, own, slot[start:end], self._forward(self.params, global_batch(batch, mesh))

        for members, own, slots_of, vectors in one_behind(sent()):
            yield members, gather(vectors)[own, slots_of]


def encode(
    model: str | Path | Embedder,
    texts: Any,
    *,
    batch_size: int = 32,
    show_progress_bar: bool = False,
    **options: Any,
) -> np.ndarray:
    """Returns the embeddings of texts, float32 [n, D]; of a single text [D].

    vectors = deberta_jax.encode("microsoft/deberta-v3-base", ["a text", "another"], pooling="mean", normalize=True)

    Args:
      model: a model directory or a hub id, which is loaded for this call; or an ``Embedder``, to call several times.
      texts, batch_size, show_progress_bar: as for ``Embedder.encode``.
      **options: ``pooling``, ``normalize``, ``max_length`` and the other arguments of ``Embedder``.

    Raises:
      InputError: as ``Embedder`` and ``Embedder.encode``; or options are given with an ``Embedder``, which has its own.
    """
    if not isinstance(model, Embedder):
        model = Embedder(model, **options)
    elif options:
        raise InputError(f"{listed(options)}: belongs to the Embedder that is given; make another one with it")
    return model.encode(texts, batch_size=batch_size, show_progress_bar=show_progress_bar)


def _saved_length(directory: Path) -> int:
    """Returns the largest number of tokens that a SentenceTransformer or a training run recorded, else 512."""
    file = directory / "sentence_bert_config.json"
    length = storage.read_json_object(file).get("max_seq_length") if file.is_file() else None
    return length if isinstance(length, int) else trained_length(directory)


def _saved_settings(directory: Path) -> dict[str, Any]:
    """Returns ``pooling`` and ``normalize`` of a SentenceTransformer; {} for other directories.

    Raises:
      InputError: it has another pooling, or other layers after it.
    """
    file = directory / "modules.json"
    modules = storage.read_json(file) if file.is_file() else []
    settings: dict[str, Any] = {}
    for module in modules if isinstance(modules, list) else ():
        name = str(module.get("type", "")).rpartition(".")[2]
        if name == "Pooling":
            config = storage.read_json_object(directory / str(module.get("path", "")) / "config.json")
            modes = config.get("pooling_mode")
            if modes is None:
                modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
            mode = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
            mode = str(mode).removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
            if mode not in get_args(Pooling):
                raise InputError(f"{directory}: its pooling is {shown(modes)}; give pooling='mean', 'cls' or 'max'")
            settings["pooling"] = mode
        elif name == "Normalize":
            settings["normalize"] = True
        elif name != "Transformer":
            raise InputError(
                f"{file}: has a layer {name}, which is not known here; pooling='mean' gives vectors without it"
            )
    return settings
