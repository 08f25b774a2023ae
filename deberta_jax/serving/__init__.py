"""Serves models over HTTP: ``deberta-jax serve``. Needs the extra ``serve``."""
