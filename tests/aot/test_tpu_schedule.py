"""What libtpu makes of the TPU kernel, read from the programs that it writes while it compiles. No TPU was used."""

import importlib.util

import pytest

from benchmarks.tpu_schedule import compile_with_dump, count_operations

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def compiled_at_128(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v5e-128")
    compile_with_dump("compile_attention", folder, implementation="pallas", generation="v5e", length=128)
    return folder


def test_rows_are_shifted_by_the_strided_roll(compiled_at_128):
    """Both terms of both heads roll one tile. The backward gathers where it shifts back: Mosaic has no such roll."""
    forward, backward = (
        count_operations(compiled_at_128)[f"disentangled_attention_{part}"] for part in ("forward", "backward")
    )
    assert forward["tpu.dynamic_rotate"] == backward["tpu.dynamic_rotate"] == 4
    assert forward.get("tpu.dynamic_gather", 0) == 0
    assert backward["tpu.dynamic_gather"] == 4
