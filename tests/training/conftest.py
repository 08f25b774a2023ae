"""Fixtures of the tests of training."""

import pytest


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> dict[str, str]:
    """Programs are compiled once for all processes that have the same."""
    directory = str(tmp_path_factory.mktemp("programs"))
    return {"JAX_COMPILATION_CACHE_DIR": directory, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
