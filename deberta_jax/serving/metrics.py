"""Counts requests, rows, tokens, batches and compilations, for Prometheus."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from deberta_jax.data.text_batches import TextBatch

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_POWERS = tuple(float(1 << power) for power in range(17))
_COMPILED = "/jax/core/compile/backend_compile_duration"


class ModelMetrics:
    """Holds the figures of one model."""

    def __init__(self, metrics: "Metrics", model: str):
        self._metrics, self._model = metrics, model
        self.queue_seconds = metrics.queue_seconds.labels(model)
        self.compute_seconds = metrics.compute_seconds.labels(model)

    def watch_queue(self, tokens: Callable[[], int]) -> None:
        """Reads the number of tokens in the queue from ``tokens`` whenever the figures are asked for."""
        self._metrics.queue_tokens.labels(self._model).set_function(tokens)

    def batched(self, lengths: np.ndarray, batches: Sequence[TextBatch]) -> None:
        """Counts the rows that are computed now, of ``lengths`` tokens, and the batches into which they are divided."""
        for batch in batches:
            self._metrics.batch_rows.labels(self._model).observe(len(batch.members))
            self._metrics.batch_tokens.labels(self._model).observe(float(lengths[batch.members].sum()))
            self._metrics.slots.labels(self._model).inc(batch.rows * batch.length)
        self._metrics.tokens.labels(self._model).inc(float(lengths.sum()))


class Metrics:
    """Holds the figures of a server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        model = ("model",)
        self.requests = Counter(
            "deberta_jax_requests", "Requests, by their status", ("model", "endpoint", "status"), registry=registry
        )
        self.seconds = Histogram(
            "deberta_jax_request_seconds",
            "Time of a request on the server",
            ("model", "endpoint"),
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("deberta_jax_requests_in_flight", "Requests that have a place", registry=registry)
        self.abandoned = Counter(
            "deberta_jax_requests_abandoned", "Requests whose clients went away", registry=registry
        )
        self.queue_tokens = Gauge("deberta_jax_queue_tokens", "Tokens in the queue", model, registry=registry)
        self.queue_seconds = Histogram(
            "deberta_jax_queue_seconds", "Wait in the queue", model, buckets=_SECONDS, registry=registry
        )
        self.compute_seconds = Histogram(
            "deberta_jax_compute_seconds", "Computation of a request's rows", model, buckets=_SECONDS, registry=registry
        )
        self.batch_rows = Histogram(
            "deberta_jax_batch_rows", "Texts of a batch", model, buckets=_POWERS[:11], registry=registry
        )
        self.batch_tokens = Histogram(
            "deberta_jax_batch_tokens", "Tokens of a batch", model, buckets=_POWERS, registry=registry
        )
        self.tokens = Counter("deberta_jax_tokens", "Tokens that were computed", model, registry=registry)
        self.slots = Counter(
            "deberta_jax_token_slots", "Tokens and padding that were computed", model, registry=registry
        )
        self.compilations = Counter("deberta_jax_compilations", "Programs that were compiled", registry=registry)
        self.late_compilations = Counter(
            "deberta_jax_compilations_after_ready", "Programs compiled after the server was ready", registry=registry
        )
        self.unlogged = Counter("deberta_jax_log_failures", "Lines that could not be logged", registry=registry)
        self.ready = Gauge("deberta_jax_ready", "Whether all shapes are compiled", registry=registry)
        self._is_ready = False
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def of_model(self, model: str) -> ModelMetrics:
        """Returns the figures of one model."""
        return ModelMetrics(self, model)

    def set_ready(self) -> None:
        """Counts compilations from now on as those that must not happen."""
        self._is_ready = True
        self.ready.set(1)

    def text(self) -> bytes:
        """Returns all figures in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _compiled(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == _COMPILED:
            self.compilations.inc()
            if self._is_ready:
                self.late_compilations.inc()
