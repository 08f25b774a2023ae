"""Holds the options of ``deberta-jax serve``."""

import dataclasses
import ipaddress
import os
import re
from typing import Literal, NamedTuple

from deberta_jax import storage
from deberta_jax.errors import InputError, shown

TOKEN_VARIABLE = "DEBERTA_JAX_SERVE_TOKEN"
"""The environment variable that holds the bearer token."""

ServeTask = Literal[
    "text-classification", "token-classification", "question-answering", "fill-mask", "embedding", "auto"
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = frozenset({"docs", "openapi.json", "health", "metrics", "models", "info"})


class ModelRequest(NamedTuple):
    """Names a model to serve: under which name, from where, and for which task."""

    name: str
    source: str
    task: ServeTask


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Holds the options for serving models."""

    models: tuple[str, ...]
    """Model directories or hub ids, or NAME=MODEL. Several are served under /NAME/, by default the end of the path."""
    task: tuple[ServeTask, ...] = ("auto",)
    """What the models do: one for all, or one for each. By default what config.json says."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than loopback addresses are reached from the network."""
    port: int = 8080
    """Port to listen on; 0 takes a free one, which the log names."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation."""
    mesh_fsdp: int | None = None
    """Devices that share a copy of the weights; by default the fewest in whose memory it fits."""
    max_length: int | None = None
    """Longest text in tokens; by default that of the training run, else 512."""
    max_rows: int = 32
    """Most texts of a batch."""
    max_batch_tokens: int = 4096
    """Most token slots of a batch, padding included."""
    max_wait_ms: float = 2.0
    """Time that the first text in the queue waits for others."""
    max_queue_tokens: int = 262_144
    """Tokens in the queue of a model, beyond which requests get status 429."""
    max_requests: int = 512
    """Requests in the server, beyond which others get status 429."""
    max_texts: int = 128
    """Most texts of a request."""
    max_characters: int = 100_000
    """Most characters of a text."""
    max_request_tokens: int = 65_536
    """Most tokens of a request, of all its texts together."""
    max_body_bytes: int = 2_000_000
    """Most bytes of a request's body."""
    read_timeout: float = 10.0
    """Seconds in which a request must have arrived."""
    timeout: float = 30.0
    """Seconds in which a request is answered."""
    drain_timeout: float = 30.0
    """Seconds that requests have to finish after SIGTERM."""
    token_file: str | None = None
    """File with a bearer token that requests must have. By default the variable DEBERTA_JAX_SERVE_TOKEN, if any."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the server from a browser, such as https://example.org. By default none."""
    log_requests: bool = False
    """Log a line for each request, without its texts."""
    log_texts: bool = False
    """Log the body of each request too."""

    def check(self) -> None:
        """Raises InputError for an option with a value that it cannot have."""
        for name in ("max_rows", "max_requests", "max_texts", "max_characters", "max_request_tokens", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        for name in ("max_batch_tokens", "max_queue_tokens"):
            if getattr(self, name) < 16:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 16")
        for name in ("read_timeout", "timeout", "drain_timeout"):
            if not 0 < getattr(self, name) <= 86400:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name):g}: give seconds, above 0")
        if not 0 <= self.max_wait_ms <= 1000:
            raise InputError(f"--max-wait-ms {self.max_wait_ms:g}: give 0 to 1000")
        if self.mesh_fsdp is not None and self.mesh_fsdp < 1:
            raise InputError(f"--mesh-fsdp {self.mesh_fsdp}: must be at least 1")
        if not 0 <= self.port <= 65535:
            raise InputError(f"--port {self.port}: give 0 to 65535")
        self.requested()

    def requested(self) -> list[ModelRequest]:
        """Returns the models to serve.

        Raises:
          InputError: there is none, two have one name, a name cannot be part of an address, or there are not as many
            tasks as models.
        """
        if not self.models:
            raise InputError("give a model directory or a hub id")
        if len(self.task) not in (1, len(self.models)):
            raise InputError(f"--task: {len(self.task)} tasks for {len(self.models)} models; give one, or one for each")
        tasks = self.task * len(self.models) if len(self.task) == 1 else self.task
        named = [ModelRequest(*_named(text), task) for text, task in zip(self.models, tasks, strict=True)]
        for i, request in enumerate(named):
            if request.name in {other.name for other in named[:i]}:
                raise InputError(f"two models have the name {request.name!r}; give NAME=MODEL")
            if len(named) > 1 and request.name in _RESERVED:
                raise InputError(
                    f"{request.name!r} is an address of the server; give the model another name, NAME=MODEL"
                )
        return named

    @property
    def on_loopback(self) -> bool:
        """Returns whether only this machine reaches the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def token(self) -> str | None:
        """Returns the bearer token, from the file or the environment; None if there is none.

        Raises:
          InputError: it is empty or has characters that a header cannot have; its value is not in the message.
        """
        if self.token_file is not None:
            text, where = storage.read_text(self.token_file), f"--token-file {self.token_file}"
        elif TOKEN_VARIABLE in os.environ:
            text, where = os.environ[TOKEN_VARIABLE], TOKEN_VARIABLE
        else:
            return None
        token = text.strip()
        if not re.fullmatch(r"[!-~]+", token):
            raise InputError(f"{where}: a token is one or more visible ASCII characters, without spaces")
        return token


def _named(text: str) -> tuple[str, str]:
    """Returns the name and the source of a model that is given as MODEL or NAME=MODEL."""
    name, equals, source = text.partition("=")
    if equals and _NAME.fullmatch(name) and source:
        return name, source
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", re.split(r"[/\\]", text.rstrip("/\\"))[-1]).lstrip(".-_") or "model"
    if not text or "\0" in text:
        raise InputError(f"{shown(text)}: is no model; give a directory or a hub id")
    return name, text
