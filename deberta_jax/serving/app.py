"""Defines the addresses of the server, and what happens to a request between its socket and the queue of its model."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from deberta_jax import storage
from deberta_jax.serving.calls import Call
from deberta_jax.serving.errors import (
    Abandoned,
    ServingError,
    as_serving_error,
    late,
    log_line,
    not_ready,
    overloaded,
    too_large,
)
from deberta_jax.serving.metrics import Metrics
from deberta_jax.serving.models import ServedModel
from deberta_jax.serving.openapi import document, documentation_page
from deberta_jax.serving.options import ServeOptions
from deberta_jax.serving.parsing import FIELDS, TextLimits, read_fields, read_object

Handler = Callable[[Request], Awaitable[Response]]

_WORKERS = 64
# Bodies that are being read hold at most so many times the largest one.
_BODIES = 32
# Of a body that is too large so much is read and thrown away: a client that sends does not see an answer before.
_DISCARDED = 16 << 20
_CLOSE = {"Connection": "close"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Service:
    """Answers requests with models.

    Args:
      models: the models, each with its compute thread.
      options: the options of the server.
      metrics: the figures of the server.
      token: the bearer token that requests must have, or None.
    """

    def __init__(self, models: Sequence[ServedModel], options: ServeOptions, metrics: Metrics, token: str | None):
        self.models, self.options, self.metrics = models, options, metrics
        self._token = token
        self.ready = self.stopping = False
        self._in_flight = self._reading = 0
        self._limits = TextLimits(options.max_texts, options.max_characters)
        self._workers = ThreadPoolExecutor(min(options.max_requests, _WORKERS), "deberta-jax-request")

    def close(self) -> None:
        """Ends the threads."""
        for model in self.models:
            model.batcher.close()
        self._workers.shutdown()

    def app(self) -> Starlette:
        """Returns the application."""
        routes = [
            Route("/", self._page),
            Route("/health", self._health),
            Route("/docs", self._docs),
            Route("/openapi.json", self._openapi),
            Route("/metrics", self._metrics),
            Route("/models", self._guarded(self._models)),
        ]
        for model in self.models:
            prefix = self.prefix(model)
            routes.append(Route(f"{prefix}/info", self._guarded(self._info_of(model))))
            for endpoint in model.answers:
                handler = self._guarded(self._endpoint(model, endpoint))
                routes.append(Route(f"{prefix}/{endpoint}", handler, methods=["POST"]))
        middleware = []
        if self.options.cors_origins:
            allowed: Any = {"allow_methods": ["GET", "POST"], "allow_headers": ["Authorization", "Content-Type"]}
            middleware.append(Middleware(CORSMiddleware, allow_origins=list(self.options.cors_origins), **allowed))
        handlers: Any = {HTTPException: _http_error, Exception: _server_error}
        return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)

    def prefix(self, model: ServedModel) -> str:
        """Returns what the addresses of a model begin with: nothing if there is one model."""
        return "" if len(self.models) == 1 else f"/{model.name}"

    def _guarded(self, handler: Handler) -> Handler:
        """Returns a handler that answers requests with the token, and turns errors into responses."""

        async def guarded(request: Request) -> Response:
            try:
                self._check_token(request)
                return await handler(request)
            except ServingError as error:
                return _error(error)

        return guarded

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self._token.encode())
        if scheme.lower() != "bearer" or not same:
            raise ServingError(
                401,
                "Unauthorized",
                "give the server's token, Authorization: Bearer ...",
                {"WWW-Authenticate": "Bearer"},
            )

    def _endpoint(self, model: ServedModel, endpoint: str) -> Handler:
        name = f"{self.prefix(model)}/{endpoint}"

        async def handle(request: Request) -> Response:
            started, status, call = time.monotonic(), 499, Call()
            try:
                response = await self._answered(request, model, endpoint, call)
                status = response.status_code
            except ServingError as error:
                response, status = _error(error), error.status
            finally:
                seconds = time.monotonic() - started
                self.metrics.requests.labels(model.name, endpoint, str(status)).inc()
                self.metrics.seconds.labels(model.name, endpoint).observe(seconds)
                if self.options.log_requests or self.options.log_texts:
                    self._log("POST %s %d %.1f ms %d tokens", name, status, 1000 * seconds, call.tokens)
            return response

        return handle

    async def _answered(self, request: Request, model: ServedModel, endpoint: str, call: Call) -> Response:
        if not self.ready or self.stopping:
            raise not_ready("the server is stopping" if self.stopping else "the server is compiling its programs")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ServingError(415, "Validation", "send Content-Type: application/json", _CLOSE)
        if self._in_flight >= self.options.max_requests:
            raise overloaded(f"{self._in_flight} requests are being answered; send this one again later")
        self._in_flight += 1
        self.metrics.in_flight.inc()
        try:
            body = await self._body(request)
            if self.options.log_texts:
                self._log("%s %s", endpoint, body.decode("utf-8", "backslashreplace"))
            return await self._computed(request, model, endpoint, call, body)
        except ClientDisconnect:
            self.metrics.abandoned.inc()
            return Response(status_code=499)
        finally:
            self._in_flight -= 1
            self.metrics.in_flight.dec()

    async def _body(self, request: Request) -> bytes:
        """Returns the body. Raises ServingError if it is too large or too slow, or too many bodies are being read."""
        most, chunks, size, kept = self.options.max_body_bytes, [], 0, 0
        try:
            async with asyncio.timeout(self.options.read_timeout):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most + _DISCARDED:
                        break
                    if size > most:
                        chunks.clear()
                        continue
                    if self._reading + len(chunk) > _BODIES * most:
                        raise overloaded("too many requests are being read; send this one again later")
                    chunks.append(chunk)
                    kept += len(chunk)
                    self._reading += len(chunk)
        except TimeoutError:
            seconds = self.options.read_timeout
            message = f"the request did not arrive within {seconds:g} seconds"
            raise ServingError(408, "Validation", message, _CLOSE) from None
        finally:
            self._reading -= kept
        if size > most:
            raise too_large(f"the body has more than {most} bytes")
        return b"".join(chunks)

    async def _computed(self, request: Request, model: ServedModel, endpoint: str, call: Call, body: bytes) -> Response:
        """Answers in a worker thread, until the client goes away or its time is over."""
        loop = asyncio.get_running_loop()
        worker = loop.run_in_executor(self._workers, self._work, model, endpoint, call, body)
        worker.add_done_callback(_seen)
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait({worker, gone}, timeout=self.options.timeout, return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                text = worker.result()
                return Response(text, media_type="application/json", headers=_timing(call))
            if gone.done():
                raise ClientDisconnect()
            raise late(self.options.timeout)
        except Abandoned:
            raise ClientDisconnect() from None
        finally:
            gone.cancel()
            call.abandon()

    def _work(self, model: ServedModel, endpoint: str, call: Call, body: bytes) -> bytes:
        """Returns the answer to a body as JSON. Runs in a worker thread."""
        with call.current():
            if call.abandoned:
                raise Abandoned()
            try:
                fields = read_fields(read_object(body), FIELDS[endpoint], self._limits)
                call.truncate = fields.get("truncate", False)
                answer = model.answers[endpoint](fields)
                return json.dumps(answer, allow_nan=False, ensure_ascii=False).encode("utf-8")
            except Abandoned:
                raise
            except Exception as error:
                raise as_serving_error(error) from None

    def _log(self, message: str, *arguments: object) -> None:
        if not log_line(logging.INFO, message, *arguments):
            self.metrics.unlogged.inc()

    async def _health(self, request: Request) -> Response:
        alive = all(model.batcher.alive for model in self.models)
        if self.ready and alive and not self.stopping:
            return JSONResponse({"status": "ready"})
        reason = "a compute thread has ended" if not alive else "stopping" if self.stopping else "compiling"
        return _error(not_ready(f"the server is not ready: {reason}"))

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _models(self, request: Request) -> Response:
        return JSONResponse([self._info(model) for model in self.models])

    def _info_of(self, model: ServedModel) -> Handler:
        async def info(request: Request) -> Response:
            return JSONResponse(self._info(model))

        return info

    def _info(self, model: ServedModel) -> dict[str, Any]:
        """Returns the description of a model, with the fields of Text Embeddings Inference and some more."""
        labels, o = model.model.config.id2label, self.options
        described: dict[str, Any] = {model.task: {}}
        if model.task == "embedding":
            described = {"embedding": {"pooling": model.pooling}}
        elif "predict" in model.answers:
            names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
            described = {"reranker" if len(labels) == 1 else "classifier": names}
        return {
            "model_id": model.source,
            "model_sha": None,
            "model_dtype": o.dtype,
            "model_type": described,
            "max_concurrent_requests": o.max_requests,
            "max_input_length": model.batcher.max_length,
            "max_batch_tokens": o.max_batch_tokens,
            "max_batch_requests": o.max_rows,
            "max_client_batch_size": o.max_texts,
            "auto_truncate": False,
            "version": version("deberta_jax"),
            "name": model.name,
            "task": model.task,
            "path": self.prefix(model),
            "endpoints": list(model.answers),
        }

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

    async def _docs(self, request: Request) -> Response:
        return _html(documentation_page(self._document))

    async def _page(self, request: Request) -> Response:
        return _html(self._page_text)

    @cached_property
    def _document(self) -> dict[str, Any]:
        return document([(self.prefix(model), model.name, list(model.answers)) for model in self.models])

    @cached_property
    def _page_text(self) -> str:
        return storage.read_text(Path(__file__).with_name("page.html"))


async def _disconnected(request: Request) -> None:
    """Ends when the client has closed the connection."""
    with contextlib.suppress(ClientDisconnect):
        while (await request.receive())["type"] != "http.disconnect":
            pass


def _seen(worker: "asyncio.Future[Any]") -> None:
    """Reads the exception of a worker that nobody waits for, which asyncio would log."""
    if not worker.cancelled():
        worker.exception()


def _timing(call: Call) -> dict[str, str]:
    """Returns headers with times in milliseconds, by the names of Text Embeddings Inference."""
    return {
        "X-Compute-Tokens": str(call.tokens),
        "X-Queue-Time": f"{1000 * call.queue_seconds:.1f}",
        "X-Inference-Time": f"{1000 * call.compute_seconds:.1f}",
        "X-Total-Time": f"{1000 * (time.monotonic() - call.started):.1f}",
    } | _HEADERS


def _error(error: ServingError) -> Response:
    return JSONResponse(error.body(), error.status, headers=_HEADERS | error.headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Answers requests for other addresses and with other methods."""
    messages = {404: "no such address; /docs lists them", 405: "no such method at this address; /docs lists them"}
    message = messages.get(error.status_code, str(error.detail))
    return _error(ServingError(error.status_code, "Validation", message, error.headers))


async def _server_error(request: Request, error: Exception) -> Response:
    return _error(as_serving_error(error))


def _html(text: str) -> Response:
    """Returns a page that may run its own scripts and load nothing from other hosts."""
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return HTMLResponse(text, headers=_HEADERS | {"Content-Security-Policy": policy})
