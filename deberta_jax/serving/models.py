"""Loads the models to serve, and answers the requests of each endpoint with the ordinary pipelines."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import deberta_jax
from deberta_jax import hub
from deberta_jax.data.features import Features
from deberta_jax.errors import InputError
from deberta_jax.inference.calls import Items
from deberta_jax.inference.cross_encoder import CrossEncoder
from deberta_jax.inference.embedding import Embedder
from deberta_jax.inference.fill_mask import MaskFiller
from deberta_jax.inference.loaded import Loaded
from deberta_jax.inference.predict import Predictor
from deberta_jax.inference.question_answering import QuestionAnswerer
from deberta_jax.inference.text_classification import TextClassifier
from deberta_jax.inference.token_classification import TokenClassifier
from deberta_jax.inference.zero_shot import ZeroShotClassifier, entailment_id
from deberta_jax.models import Model
from deberta_jax.serving.batching import Batcher, BatchingPredictor, BatchLimits, Program
from deberta_jax.serving.metrics import ModelMetrics
from deberta_jax.serving.options import ModelRequest, ServeOptions
from deberta_jax.serving.parsing import MOST_CHOICES
from deberta_jax.sharding import batch_sharding
from deberta_jax.text import Tokenizer
from deberta_jax.weights.heads import heads_of
from deberta_jax.weights.opening import open_source

Answer = Callable[[Mapping[str, Any]], Any]
"""Returns the answer of an endpoint, which JSON can represent, given the fields of the request."""

_HEADS = {
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "masked-lm": "fill-mask",
    "encoder": "embedding",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """Holds a model that is served.

    Attributes:
      name: its name in addresses.
      source: the directory or hub id that was given.
      task: what it does, one of ``ServeTask``.
      model, tokenizer: the model and its tokenizer.
      batcher: computes the rows of its requests.
      answers: the endpoints it has, and what answers each.
      pooling: how embeddings are made; empty for other tasks.
    """

    name: str
    source: str
    task: str
    model: Model
    tokenizer: Tokenizer
    batcher: Batcher
    answers: Mapping[str, Answer]
    pooling: str = ""


def load_served(request: ModelRequest, options: ServeOptions, metrics: ModelMetrics) -> ServedModel:
    """Loads a model and starts its compute thread; nothing is compiled yet.

    Raises:
      InputError: the directory is not a model, or cannot do the task.
    """
    task = task_of(request.source) if request.task == "auto" else request.task
    options = dataclasses.replace(options, mesh_fsdp=options.mesh_fsdp or devices_needed(request.source))
    limits = BatchLimits(
        batch_tokens=options.max_batch_tokens,
        wait=options.max_wait_ms / 1000,
        queue_tokens=options.max_queue_tokens,
        request_tokens=options.max_request_tokens,
    )
    load = {"fill-mask": _load_masks, "embedding": _load_embedder}.get(task, _load_pipeline)
    model, tokenizer, batcher, answers, pooling = load(task, request.source, options, limits, metrics)
    batcher.start()
    return ServedModel(
        name=request.name,
        source=request.source,
        task=task,
        model=model,
        tokenizer=tokenizer,
        batcher=batcher,
        answers=answers | {"tokenize": _tokenize(tokenizer)},
        pooling=pooling,
    )


def task_of(source: str) -> str:
    """Returns what a model does, from its head.

    Raises:
      InputError: the model cannot be opened, its head is not served, or it may have several heads.
    """
    found = heads_of(source)
    served = [head for head in found if head in _HEADS]
    if len(served) > 1:
        tasks = " and ".join(_HEADS[head] for head in served)
        raise InputError(
            f"{source}: config.json does not say what the model does, {tasks} fit its weights; give --task"
        )
    if not served:
        raise InputError(f"{source}: models with the head {found[0]} are not served; there are {', '.join(_HEADS)}")
    return _HEADS[served[0]]


def devices_needed(source: str, devices: Sequence[Any] | None = None) -> int:
    """Returns the number of devices that must share a copy of a model's weights in float32.

    It is 1 where devices do not tell how much memory they have, as CPUs. A third of the memory is left for the
    computation.

    Args:
      source: a model directory or a hub id.
      devices: those that will compute; None: all.
    """
    devices = jax.devices() if devices is None else devices
    limit = min(int((device.memory_stats() or {}).get("bytes_limit") or 0) for device in devices)
    if len(devices) == 1 or not limit:
        return 1
    size = 4 * sum(math.prod(tensor.shape) for tensor in open_source(source, check=None).found.values())
    divisors = [count for count in range(1, len(devices) + 1) if len(devices) % count == 0]
    return next((count for count in divisors if size / count <= limit * 2 / 3), divisors[-1])


_Parts = tuple[Model, Tokenizer, Batcher, dict[str, Answer], str]


def _pipeline(task: str, source: str, options: ServeOptions) -> Any:
    return deberta_jax.pipeline(
        task,
        source,
        dtype=options.dtype,
        max_length=options.max_length,
        batch_size=options.max_rows,
        mesh_fsdp=options.mesh_fsdp or 1,
    )


def _load_pipeline(task: str, source: str, options: ServeOptions, limits: BatchLimits, metrics: ModelMetrics) -> _Parts:
    pipe = _pipeline(task, source, options)
    predictor: Predictor = pipe.predictor
    program = Program(predictor.forward, pipe.params, predictor.per_token)
    batcher = Batcher(program, predictor, limits, metrics)
    pipe = dataclasses.replace(pipe, predictor=BatchingPredictor(predictor, batcher))
    if isinstance(pipe, TokenClassifier):
        answers: dict[str, Answer] = {"ner": _ner(pipe)}
    elif isinstance(pipe, QuestionAnswerer):
        answers = {"qa": _qa(pipe)}
    else:
        answers = _classifier(pipe, hub.resolve(source))
    return pipe.model, pipe.tokenizer, batcher, answers, ""


def _load_masks(task: str, source: str, options: ServeOptions, limits: BatchLimits, metrics: ModelMetrics) -> _Parts:
    pipe = _pipeline(task, source, options)
    program = mask_program(pipe)
    batcher = Batcher(program, pipe.predictor, limits, metrics)
    filler = ServedMaskFiller(**_fields_of(MaskFiller, pipe), batcher=batcher)
    return pipe.model, pipe.tokenizer, batcher, {"fill-mask": _fill_mask(filler)}, ""


def _load_embedder(task: str, source: str, options: ServeOptions, limits: BatchLimits, metrics: ModelMetrics) -> _Parts:
    embedder = ServedEmbedder(source, options, limits, metrics)
    answers = {"embed": _embed(embedder)}
    return embedder.model, embedder.tokenizer, embedder.batcher, answers, str(embedder.pooling)


def _classifier(pipe: TextClassifier, directory: Path) -> dict[str, Answer]:
    """Returns the endpoints of a sequence classification model: those that its labels allow."""
    answers: dict[str, Answer] = {"predict": _predict(pipe)}
    labels = pipe.model.config.id2label
    if len(labels) == 1:
        answers["rerank"] = _rerank(CrossEncoder.from_loaded(pipe, directory))
    elif labels[entailment_id(labels)].lower().startswith("entail"):
        answers["zero-shot"] = _zero_shot(ZeroShotClassifier(**_fields_of(Loaded, pipe)))
    return answers


def _fields_of(kind: type[Loaded], loaded: Loaded) -> dict[str, Any]:
    """Returns the fields of a loaded model that ``kind`` has, to make another class of them."""
    return {field.name: getattr(loaded, field.name) for field in dataclasses.fields(kind)}


def _predict(pipe: TextClassifier) -> Answer:
    def answer(fields: Mapping[str, Any]) -> Any:
        inputs, function = fields["inputs"], "none" if fields["raw_scores"] else "default"
        many = inputs if isinstance(inputs, list) else [inputs]
        answers = pipe(many, top_k=None, function_to_apply=function)
        return answers if isinstance(inputs, list) else answers[0]

    return answer


def _rerank(ranker: CrossEncoder) -> Answer:
    def answer(fields: Mapping[str, Any]) -> Any:
        raw: Any = {"activation_fn": lambda logits: logits} if fields["raw_scores"] else {}
        ranked = ranker.rank(fields["query"], fields["texts"], return_documents=fields["return_text"], **raw)
        return [
            {"index": one["corpus_id"], "score": one["score"]} | ({"text": one["text"]} if "text" in one else {})
            for one in ranked
        ]

    return answer


def _zero_shot(pipe: ZeroShotClassifier) -> Answer:
    names = ("candidate_labels", "hypothesis_template", "multi_label")
    return lambda fields: pipe(fields["inputs"], **{name: fields[name] for name in names})


def _ner(pipe: TokenClassifier) -> Answer:
    def answer(fields: Mapping[str, Any]) -> Any:
        given = ("aggregation_strategy", "ignore_labels", "stride")
        return pipe(fields["inputs"], **{name: fields[name] for name in given if fields[name] is not None})

    return answer


def _qa(pipe: QuestionAnswerer) -> Answer:
    def answer(fields: Mapping[str, Any]) -> Any:
        inputs = fields["inputs"]
        options = {name: value for name, value in fields.items() if name != "inputs" and value is not None}
        answers = pipe(inputs, **options)
        return [answers] if isinstance(inputs, list) and len(inputs) == 1 else answers

    return answer


def _fill_mask(pipe: MaskFiller) -> Answer:
    def answer(fields: Mapping[str, Any]) -> Any:
        inputs = fields["inputs"]
        # Texts that are too long are cut where the request allows it, and refused in ``_mask_positions``.
        options: Any = {"tokenizer_kwargs": {"truncation": True}} if fields["truncate"] else {}
        top_k = min(fields["top_k"] or 5, pipe.tokenizer.vocab_size)
        answers = pipe(inputs, top_k=top_k, targets=fields["targets"], **options)
        return [answers] if isinstance(inputs, list) and len(inputs) == 1 else answers

    return answer


def _embed(embedder: "ServedEmbedder") -> Answer:
    def answer(fields: Mapping[str, Any]) -> Any:
        inputs = fields["inputs"]
        vectors = embedder.encode([inputs] if isinstance(inputs, str) else inputs)
        if fields["normalize"]:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
        return vectors.tolist()

    return answer


def _tokenize(tokenizer: Tokenizer) -> Answer:
    def answer(fields: Mapping[str, Any]) -> Any:
        texts = [fields["inputs"]] if isinstance(fields["inputs"], str) else fields["inputs"]
        return [_tokens(tokenizer, text, fields["add_special_tokens"]) for text in texts]

    return answer


def _tokens(tokenizer: Tokenizer, text: str, special_tokens: bool) -> list[dict[str, Any]]:
    """Returns the tokens of a text as Text Embeddings Inference has them; special ones have no characters."""
    encoded = tokenizer(
        [text],
        add_special_tokens=special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
        truncation=False,
    )
    tokens = []
    for token, special, (start, stop) in zip(
        np.asarray(encoded.input_ids[0]).tolist(),
        np.asarray(encoded.special_tokens_mask[0]).tolist(),
        np.asarray(encoded.offset_mapping[0]).tolist(),
        strict=True,
    ):
        shown = tokenizer.id_to_token(token) if special else text[start:stop]
        places = {"start": None, "stop": None} if special else {"start": start, "stop": stop}
        tokens.append({"id": token, "text": shown, "special": bool(special)} | places)
    return tokens


def mask_program(pipe: MaskFiller) -> Program:
    """Returns the program for rows with one [MASK] each: the most probable tokens, and the targets' probabilities.

    Its results are float32 [B, K], int32 [B, K] and float32 [B, targets], with fixed K and number of targets: requests
    take what they asked for, and never compile.
    """
    vocab_size, model = pipe.masks.vocab_size, pipe.model
    most = min(MOST_CHOICES, vocab_size)

    def forward(params: Any, batch: dict[str, jax.Array]) -> Any:
        targets = batch.pop("targets")
        logits = model.apply({"params": params}, **batch).logits  # pyright: ignore
        probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[:, 0, :vocab_size]
        values, tokens = jax.lax.top_k(probabilities, most)
        return values, tokens, jnp.take_along_axis(probabilities, targets, axis=-1)

    compiled = jax.jit(forward, out_shardings=batch_sharding(pipe.predictor.mesh))
    return Program(compiled, pipe.params, extras={"positions": ((1,), 0), "targets": ((MOST_CHOICES,), 0)})


@dataclasses.dataclass(frozen=True, repr=False)
class ServedMaskFiller(MaskFiller):
    """Is a ``MaskFiller`` whose texts are computed with those of other requests, one row for each [MASK]."""

    _: dataclasses.KW_ONLY
    batcher: Batcher

    def _mask_positions(self, items: Items, features: Features, limit: int) -> np.ndarray:
        self.batcher.check_lengths(features)
        return super()._mask_positions(items, features, limit)

    def _predicted(
        self, features: Features, positions: np.ndarray, options: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the largest probabilities at positions of all texts, and their tokens, both [n, P, top_k]."""
        texts, masks = np.nonzero(positions >= 0)
        starts, ends = features.starts[texts], features.starts[texts + 1]
        kept = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        rows = dataclasses.replace(
            features,
            ids=features.ids[kept],
            types=features.types[kept],
            starts=np.concatenate([[0], np.cumsum(ends - starts)]),
        )
        targets, count = options.get("targets"), options["top_k"]
        wanted = np.zeros((len(texts), MOST_CHOICES), np.int32)
        if targets is not None:
            wanted[:, : len(targets)] = targets
        extras = {"positions": positions[texts, masks][:, None], "targets": wanted}
        values, tokens, of_targets = self.batcher.submit(rows, extras)
        if targets is not None:
            order = np.argsort(-of_targets[:, : len(targets)], axis=1, kind="stable")
            values, tokens = np.take_along_axis(of_targets, order, 1), targets[order]
        probabilities = np.zeros((*positions.shape, count), np.float32)
        found = np.zeros((*positions.shape, count), np.int32)
        probabilities[texts, masks], found[texts, masks] = values[:, :count], tokens[:, :count]
        return probabilities, found


class ServedEmbedder(Embedder):
    """Is an ``Embedder`` whose texts are computed with those of other requests, one text in a row.

    Its embeddings are not normalized; requests say whether theirs are.

    Args:
      source: a model directory or a hub id.
      options: the options of the server.
      limits: how rows are joined.
      metrics: counts rows and batches.
    """

    def __init__(self, source: str, options: ServeOptions, limits: BatchLimits, metrics: ModelMetrics):
        super().__init__(
            source,
            normalize=False,
            max_length=options.max_length,
            dtype=options.dtype,
            mesh_fsdp=options.mesh_fsdp or 1,
        )
        mesh = self._mesh

        def forward(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
            inputs = {name: batch[name] for name in ("input_ids", "token_type_ids")}
            inputs["segment_ids"] = batch["attention_mask"].astype(jnp.int32)
            inputs["positions"] = jnp.zeros((batch["input_ids"].shape[0], 1), jnp.int32)
            return self._embed(params, inputs)[:, 0]

        predictor = Predictor(
            self.model, self.tokenizer.pad_id, max_length=self.max_length, batch_size=options.max_rows, mesh=mesh
        )
        program = Program(jax.jit(forward, out_shardings=batch_sharding(mesh)), self.params)
        self.batcher = Batcher(program, predictor, limits, metrics)

    def _batches(self, features: Features, batch_size: int) -> Any:
        """Yields all texts and their vectors at once."""
        (vectors,) = self.batcher.submit(features)
        yield np.arange(len(vectors)), vectors
