"""Runs the server: loads the models, listens, compiles, says when it is ready, and stops after the last answer."""

import asyncio
import logging
import math
import signal
import socket
import threading
import time
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.serving.app import Service
from deberta_jax.serving.errors import log_failure, log_line
from deberta_jax.serving.metrics import Metrics
from deberta_jax.serving.models import load_served
from deberta_jax.serving.options import TOKEN_VARIABLE, ServeOptions

# Connections beyond those of the requests: idle ones, and those that only ask for figures.
_MORE_CONNECTIONS = 512


class TimedProtocol(H11Protocol):
    """Closes connections whose clients send the head of a request, or read an answer, too slowly.

    Uvicorn limits the time between requests only.
    """

    seconds: float

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch(True)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(self.conn.their_state is h11.IDLE)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch(False)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch(False)
        super().connection_lost(exc)

    def _watch(self, needed: bool) -> None:
        """Starts the timer if it does not run, or ends it."""
        if needed and self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._expire)
        elif not needed and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        self.transport.abort()


class Server:
    """Serves models over HTTP.

    Args:
      options: the options.

    Raises:
      InputError: an option, a model or the token cannot be used, or the port is taken.
    """

    def __init__(self, options: ServeOptions):
        options.check()
        self.options = options
        token = options.token()
        self._socket = _listening(options)
        try:
            self.metrics = Metrics()
            models = [load_served(one, options, self.metrics.of_model(one.name)) for one in options.requested()]
        except BaseException:
            self._socket.close()
            raise
        self.service = Service(models, options, self.metrics, token)
        self.failure: BaseException | None = None
        self._open = token is None and not options.on_loopback
        self._uvicorn = uvicorn.Server(self._config())

    def _config(self) -> uvicorn.Config:
        protocol = type("Protocol", (TimedProtocol,), {"seconds": self.options.read_timeout})
        return uvicorn.Config(
            self.service.app(),
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(self.options.read_timeout),
            timeout_graceful_shutdown=math.ceil(self.options.drain_timeout),
            limit_concurrency=self.options.max_requests + _MORE_CONNECTIONS,
        )

    @property
    def address(self) -> str:
        """Returns the address of the page."""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def run(self) -> None:
        """Serves until ``stop`` is called or the process gets SIGTERM or SIGINT; then answers what has arrived.

        Raises:
          Exception: what has ended the compilation of a program.
        """
        if self._open:
            log_line(
                logging.WARNING,
                "everybody who reaches %s can use it; set %s or --token-file",
                self.address,
                TOKEN_VARIABLE,
            )
        # Messages of pipelines may contain texts of requests.
        for name in ("deberta_jax.data", "deberta_jax.inference", "deberta_jax.text"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # Of a client's mistakes and of a stop uvicorn would log every one.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        compiling = threading.Thread(target=self._compile, name="deberta-jax-compile", daemon=True)
        compiling.start()
        log_line(logging.INFO, "listening on %s", self.address)
        try:
            self._uvicorn.run(sockets=[self._socket])
        finally:
            self.service.stopping = True
            compiling.join()
            self.service.close()
            self._socket.close()
        if self.failure is not None:
            raise self.failure
        log_line(logging.INFO, "stopped")

    def stop(self) -> None:
        """Ends ``run`` after the last answer."""
        self._uvicorn.should_exit = True

    def _compile(self) -> None:
        """Compiles the programs of all models, and lets requests in. A failure ends the server."""
        try:
            count, started = 0, time.monotonic()
            for model in self.service.models:
                shapes = model.batcher.shapes()
                log_line(logging.INFO, "%s: compiling %d shapes", model.name, len(shapes))
                for _ in model.batcher.warm_up():
                    if self._uvicorn.should_exit:
                        return
                    count += 1
        except BaseException as error:
            self.failure = error
            log_failure("a program could not be compiled", error)
            self.stop()
            return
        self.metrics.set_ready()
        self.service.ready = True
        log_line(logging.INFO, "ready: %d shapes in %.0f s; %s", count, time.monotonic() - started, self.address)


def serve(options: ServeOptions) -> None:
    """Serves models until the process gets SIGTERM or SIGINT, and answers what has arrived by then.

    Raises:
      InputError: as ``Server``.
      SystemExit: 0, for a signal while models are loaded.
    """
    phase = {"loading": True}

    def stop(number: int, frame: FrameType | None) -> None:
        # While requests are answered uvicorn handles signals, and repeats them here when it has ended.
        if phase["loading"]:
            raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server = Server(options)
    phase["loading"] = False
    server.run()


def _listening(options: ServeOptions) -> socket.socket:
    """Returns a socket that is bound to the address. Raises InputError if it cannot be."""
    where = f"--host {options.host} --port {options.port}"
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        reason = storage.explain(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"{where}: cannot listen there ({reason})") from None
