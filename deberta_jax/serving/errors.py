"""Defines the errors that the server answers, with the statuses and bodies of Text Embeddings Inference."""

import logging
from collections.abc import Mapping
from typing import Any, Literal

from deberta_jax.errors import InputError

ErrorType = Literal["Validation", "Tokenizer", "Empty", "Backend", "Overloaded", "Unhealthy", "Unauthorized"]

_log = logging.getLogger(__name__)


class ServingError(Exception):
    """Signals that a request has no answer.

    Args:
      status: the HTTP status.
      error_type: the kind of error, for programs.
      message: one line for people.
      headers: headers of the response.
    """

    def __init__(self, status: int, error_type: ErrorType, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.error_type, self.message = status, error_type, message
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Returns the object of the response."""
        return {"error": self.message, "error_type": self.error_type}


class Abandoned(Exception):
    """Signals that nobody waits for the answer any more: the client has gone, or its time is over."""


def unreadable(message: str) -> ServingError:
    """Returns the error for a body that is not JSON."""
    return ServingError(400, "Validation", message)


def invalid(message: str) -> ServingError:
    """Returns the error for a field that is missing, unknown, or of a wrong type or value."""
    return ServingError(422, "Validation", message)


def too_large(message: str) -> ServingError:
    """Returns the error for more bytes, texts, characters or tokens than are allowed."""
    return ServingError(413, "Validation", message)


def overloaded(message: str) -> ServingError:
    """Returns the error for a request that has no place in the queue."""
    return ServingError(429, "Overloaded", message, {"Retry-After": "1"})


def late(seconds: float) -> ServingError:
    """Returns the error for a request that was not answered in time."""
    return ServingError(503, "Overloaded", f"no answer within {seconds:g} seconds", {"Retry-After": "1"})


def not_ready(message: str) -> ServingError:
    """Returns the error of a server that is starting or stopping."""
    return ServingError(503, "Unhealthy", message, {"Retry-After": "5"})


def backend(message: str) -> ServingError:
    """Returns the error for a computation that failed."""
    return ServingError(424, "Backend", message)


def as_serving_error(error: BaseException) -> ServingError:
    """Returns the error to answer for an exception of a worker. What is not foreseen is logged without its message.

    The message may contain a text of the request.
    """
    if isinstance(error, ServingError):
        return error
    if isinstance(error, InputError):
        return invalid(str(error))
    log_failure("a request failed", error)
    return ServingError(500, "Backend", "the server failed; its log has the place in the program")


def log_failure(what: str, error: BaseException) -> None:
    """Logs an exception that is not foreseen: its type and the lines of the program, without its message."""
    lines, traceback = [], error.__traceback__
    while traceback is not None:
        lines.append(f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}")
        traceback = traceback.tb_next
    log_line(logging.ERROR, "%s: %s at %s", what, type(error).__name__, " < ".join(reversed(lines)))


def log_line(level: int, message: str, *arguments: object) -> bool:
    """Logs a line, and returns whether it could be written: a full disk for logs must not stop the server."""
    try:
        _log.log(level, message, *arguments)
    except (OSError, ValueError):
        return False
    return True
