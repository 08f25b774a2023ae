"""What the tests of this directory need."""

import importlib.util

import pytest

GPU_COMPILER = [
    pytest.mark.gpu_aot,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_plugins") is None,
        reason="no compiler for GPUs: pip install 'deberta_jax[cuda12]'",
    ),
    pytest.mark.filterwarnings("ignore"),
]
