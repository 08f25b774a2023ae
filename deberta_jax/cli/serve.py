"""``deberta-jax serve``: answers requests over HTTP with models, and has a page to try them."""

import dataclasses

import tyro

from deberta_jax.errors import InputError
from deberta_jax.serving.options import ServeOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(ServeOptions):
    """Serves models over HTTP, with a page to try them at / and a description at /docs.

    Requests of all clients are computed together, in shapes that are compiled before the server is ready. The contract
    is that of Text Embeddings Inference. SIGTERM ends the server after the last answer."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Model directories or hub ids, or NAME=MODEL. Several are served under /NAME/, by default the end of the path."""


def run(args: Args) -> None:
    """Serves until a signal."""
    try:
        from deberta_jax.serving.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "prometheus_client", "h11"):
            raise
        raise InputError(f"serve: needs {error.name}; pip install 'deberta_jax[serve]'") from None
    serve(args)
