"""Meshes on slices that are not here: any sizes that multiply to the chips, whatever the torus."""

import importlib.util

import pytest
from jax.experimental import topologies

from deberta_jax.sharding import make_mesh

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.mark.parametrize("slice_", ["v5e:4x4", "v5p:4x4x4", "v6e:16x16"])
@pytest.mark.parametrize("fsdp", [2, 8, 16])
def test_an_axis_may_take_a_part_of_the_torus(slice_, fsdp):
    devices = topologies.get_topology_desc(platform="tpu", topology_name=slice_).devices
    mesh = make_mesh(fsdp=fsdp, devices=devices)
    assert mesh.shape == {"data": len(devices) // fsdp, "fsdp": fsdp, "tensor": 1}
    assert set(mesh.devices.flat) == set(devices)
