"""Computes a model's logits for a data set, in batches of similar lengths that are sharded over the devices."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from deberta_jax.data.features import Features
from deberta_jax.data.text_batches import TextBatch, pad_texts, padded_length, plan_in_order
from deberta_jax.errors import InputError, listed
from deberta_jax.inference.row_exchange import RowExchange
from deberta_jax.models import Model, spec_of_model
from deberta_jax.sharding import batch_sharding, check_not_forked, global_batch, make_mesh

Progress = Callable[[int], object]
Sent = TypeVar("Sent")

_NO_TEXT = Features(ids=np.empty(0, np.int32), types=np.empty(0, np.int8), starts=np.zeros(1, np.int64))

# Of more texts than so many full batches have, all batches are full.
_MANY_BATCHES = 8

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "segment_ids", "positions")


def model_inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """Returns the arrays of a batch that are arguments of the models."""
    return {name: batch[name] for name in _INPUTS if name in batch}


class Predictor:
    """Applies a model to features. One program is compiled for each number of rows and padded length, on first use.

    Few texts get batches of few rows, and rows are little longer than the longest text of their batch. The device
    computes a batch while the results of the one before are read.

    With several processes all must call. Each computes a part of the rows and keeps its logits; when all batches are
    done, they exchange them, so that all have the logits of all rows. Threads may share one. A pickle of it is loaded
    for all devices of the process that loads it.

    Args:
      model: a model with a head.
      pad_id: the padding token of the tokenizer.
      max_length: largest number of tokens of a text.
      batch_size: largest number of rows of a batch, rounded up to a multiple of the devices that share it.
      mesh: the devices; by default all, with the batch split over them.

    Raises:
      InputError: ``batch_size`` is below 1 or ``max_length`` below 8.
    """

    def __init__(
        self,
        model: Model,
        pad_id: int,
        *,
        max_length: int,
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ):
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        if max_length < 8:
            raise InputError(f"max length {max_length}: must be at least 8")
        self.max_length = max_length
        self.mesh = make_mesh() if mesh is None else mesh
        self.model = model
        self.pad_id = pad_id
        _, spec = spec_of_model(model)
        self.per_token = spec.per_token
        self.split = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        self.rows = -(-batch_size // self.split) * self.split
        self.exchange = RowExchange(self.mesh)

        def forward(params, batch):
            inputs = model_inputs(batch)
            if model.reads_choices:  # each choice is one row, whose text starts at position 0
                inputs["positions"] = jax.numpy.zeros((batch["input_ids"].shape[0], 1), jax.numpy.int32)
            return spec.read(model.apply({"params": params}, **inputs))

        self.forward = jax.jit(forward, out_shardings=batch_sharding(self.mesh))

    def __reduce__(self) -> tuple[Any, ...]:
        """Leaves out the devices and the compiled programs, which belong to this process."""
        sizes = {"max_length": self.max_length, "batch_size": self.rows, "mesh_fsdp": self.mesh.shape["fsdp"]}
        return functools.partial(_on_all_devices, **sizes), (self.model, self.pad_id)

    def resized(self, batch_size: int) -> "Predictor":
        """Returns a predictor with batches of another size that shares the compiled programs.

        Raises:
          InputError: ``batch_size`` is below 1.
        """
        if batch_size < 1:
            raise InputError(f"batch size {batch_size}: must be at least 1")
        other = copy.copy(self)
        other.rows = -(-batch_size // self.split) * self.split
        return other

    def __copy__(self) -> "Predictor":
        """Returns a predictor of this process; ``__reduce__`` would compile its programs again."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def logits(self, params: Any, features: Features, progress: Progress | None = None) -> np.ndarray:
        """Returns the logits of all texts, in the order of the features.

        Args:
          params: the model's parameters.
          features: the tokens of the texts.
          progress: is called with the number of texts of each batch when it is done.

        Returns:
          Float32 [n, K], one row for each text; for heads with logits of tokens [N, K], one row for each of
          ``features.ids``. Rows of texts without tokens are 0.

        Raises:
          InputError: this process was forked from one that uses JAX.
        """
        check_not_forked()
        out: np.ndarray | None = None
        batches = self.batches(features)
        with jax.set_mesh(self.mesh):
            # The device computes a batch while the results of the one before are read.
            for batch, logits in one_behind((batch, self._forward(params, features, *batch)) for batch in batches):
                if out is None:
                    count = len(features.ids if self.per_token else features.lengths)
                    out = np.zeros((count, logits.shape[-1]), np.float32)
                members = self.exchange.own(batch.members, batch.rows)
                local = self.exchange.local(logits)
                if self.per_token:
                    for row, text in enumerate(members):
                        start, end = features.starts[text], features.starts[text + 1]
                        out[start:end] = local[row, : end - start]
                else:
                    out[members] = local[: len(members)]
                if progress is not None:
                    progress(len(batch.members))
        assert out is not None, "features are never empty"
        if self.exchange.needed:
            self.exchange.complete(out, self._owners(features, batches))
        return out

    def _owners(self, features: Features, batches: Sequence[TextBatch]) -> np.ndarray:
        """Returns for each row of the logits the process that sends it to the others."""
        owners = np.full(len(features.lengths), -1, np.int32)
        for batch in batches:
            owners[batch.members] = self.exchange.owners(len(batch.members), batch.rows)
        return np.repeat(owners, features.lengths) if self.per_token else owners

    def warm_up(self, params: Any, *, lengths: Sequence[int] | None = None, texts: Sequence[int] | None = None) -> int:
        """Compiles the programs that calls will need, by computing batches of padding.

        Args:
          params: the model's parameters.
          lengths: tokens of the texts to expect; None: all up to ``max_length``.
          texts: largest numbers of texts of the calls to expect; None: one, and so many that they fill a batch.

        Returns:
          The number of different shapes.

        Raises:
          InputError: as ``shapes``, or this process was forked from one that uses JAX.
        """
        check_not_forked()
        shapes = self.shapes(lengths, texts)
        with jax.set_mesh(self.mesh):
            for rows, length in shapes:
                jax.block_until_ready(self._forward(params, _NO_TEXT, np.empty(0, np.int64), rows, length))
        return len(shapes)

    def shapes(self, lengths: Sequence[int] | None = None, texts: Sequence[int] | None = None) -> list[tuple[int, int]]:
        """Returns the rows and lengths of the batches of calls, whose arguments are those of ``warm_up``.

        Raises:
          InputError: a length or a number of texts is below 1.
        """
        lengths = range(1, self.max_length + 1) if lengths is None else lengths
        texts = (1, self.rows) if texts is None else texts
        for name, numbers in (("lengths", lengths), ("texts", texts)):
            if min(numbers, default=1) < 1:
                raise InputError(f"{name}: {min(numbers)} must be at least 1")
        padded = {padded_length(min(length, self.max_length), self.max_length) for length in lengths}
        return sorted(itertools.product({size for count in texts for size in self.sizes(count)}, padded))

    def sizes(self, texts: int) -> list[int]:
        """Returns the possible numbers of rows of the batches of so many texts, ascending.

        They are multiples of the devices that share them. Few texts are divided into batches of 1, 4, 16 rows and so
        on, by length; of many all batches are full, so that there is one program for each length.
        """
        if texts > _MANY_BATCHES * self.rows:
            return [self.rows]
        smaller = itertools.takewhile(lambda size: size < self.rows, (4**power for power in itertools.count()))
        ladder = sorted({-(-size // self.split) * self.split for size in smaller} | {self.rows})
        return [size for size, before in zip(ladder, [0, *ladder], strict=False) if before < texts]

    def batches(self, features: Features) -> list[TextBatch]:
        """Returns the batches of texts: which are in each, and its shape."""
        # A call may ask for texts that are not cut.
        longest = max(self.max_length, int(features.lengths.max()))
        return plan_in_order(features.lengths, self.sizes(len(features.lengths)), longest)

    def _forward(self, params: Any, features: Features, members: np.ndarray, rows: int, length: int) -> jax.Array:
        own, local = self.exchange.own(members, rows), len(self.exchange.share.rows(rows))
        batch = pad_texts(features, own, local, length, self.pad_id)
        return self.forward(params, global_batch(batch, self.mesh))


def one_behind(items: Iterable[Sent]) -> Iterator[Sent]:
    """Yields each item when the next one exists: a batch is on its way to the device while one is read from it."""
    waiting: list[Sent] = []
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def check_finite(what: str, values: np.ndarray) -> None:
    """Checks the results of texts.

    Args:
      what: what they are, for the message, such as "scores of pairs".
      values: [n, ...], one row for each text.

    Raises:
      InputError: a value is NaN or infinite.
    """
    broken = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(-1))
    if broken.size:
        raise InputError(
            f"the {what} {listed(broken.tolist())} are NaN or infinite; check the weights with `deberta-jax inspect`"
        )


def gather(array: jax.Array) -> np.ndarray:
    """Returns a batch's results on the host, from all processes."""
    if array.is_fully_addressable:
        return np.asarray(jax.device_get(array))
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _on_all_devices(model: Model, pad_id: int, *, mesh_fsdp: int, **sizes: int) -> Predictor:
    """Returns a predictor on the devices of this process, as many of which share the weights as before."""
    return Predictor(model, pad_id, mesh=make_mesh(fsdp=mesh_fsdp), **sizes)
