"""Several slices that a data-centre network joins: the mesh, and what a compiled step sends between them."""

import importlib.util

import jax
import pytest
from jax.experimental import topologies

from deberta_jax.errors import InputError
from deberta_jax.planning.planner import make_plan
from deberta_jax.planning.programs import objective_of
from deberta_jax.planning.request import make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.sharding import make_mesh
from deberta_jax.training.experiment import RunOptions

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu: pip install 'deberta_jax[tpu]'"),
    # libtpu says on import that it found no TPU.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def two_slices():
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4", num_slices=2).devices


@pytest.mark.parametrize("sizes", [(-1, 4, 1), (2, 8, 2), (32, 1, 1), (2, 2, 8)])
def test_slices_are_the_outer_part_of_data(two_slices, sizes):
    mesh = make_mesh(*sizes, devices=two_slices)
    slices = [[device.slice_index for device in row.flat] for row in mesh.devices]
    assert all(len(set(row)) == 1 for row in slices)
    half = mesh.shape["data"] // 2
    assert [row[0] for row in slices] == [0] * half + [1] * half
    assert set(mesh.devices.flat) == set(two_slices)


@pytest.mark.parametrize("sizes", [(1, 32, 1), (1, 4, 8)])
def test_parameters_are_not_divided_among_slices(two_slices, sizes):
    with pytest.raises(InputError, match="data must be a multiple of the 2 slices"):
        make_mesh(*sizes, devices=two_slices)


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "slice_", "fsdp", "tensor", "dtype"),
    [
        ("deberta-v3-base", "v5e:4x4", 8, 1, "float32"),
        ("deberta-v3-base", "v5e:4x4", 8, 1, "bfloat16"),
        ("deberta-v3-base", "v5e:4x4", 4, 2, "float32"),
        ("deberta-v3-base", "v5e:16x16", 8, 1, "float32"),
        ("deberta-v2-xxlarge", "v5e:4x4", 16, 1, "float32"),
        ("deberta-v2-xxlarge", "v5e:16x16", 16, 1, "float32"),
        ("deberta-v2-xxlarge", "v5e:16x16", 16, 1, "bfloat16"),
    ],
)
def test_slices_exchange_the_gradients_and_nothing_else(model, slice_, fsdp, tensor, dtype, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target = target_of(slice_, slices=2)
    data = target.chips // fsdp // tensor
    runtime = RunOptions(mesh_data=data, mesh_fsdp=fsdp, mesh_tensor=tensor, remat="full", gradient_dtype=dtype)
    config = PRESETS[model]
    # Short texts: the kernel's gradients of the projected table of positions, which have a row a distance, are few.
    plan = make_plan(
        make_request(
            "finetune", config, target, batch_size=4 * target.chips, length=64, dtype="bfloat16", runtime=runtime
        )
    )
    assert plan.costs is not None, plan.compiled.facts
    gradients = {"float32": 4, "bfloat16": 2}[dtype] * sum(
        leaf.size for leaf in jax.tree.leaves(objective_of(plan.request).parameters.shapes)
    )
    assert plan.costs.network_sent * target.chips / 2 == pytest.approx(gradients, rel=0.02)
    # Every exchange between slices is a sum of gradients: what is gathered over fsdp and tensor is not.
    assert '_xla_megascale_transfer_type="ALL_REDUCE"' in plan.compiled.hlo
    for kind in ("ALL_GATHER", "REDUCE_SCATTER", "ALL_TO_ALL"):
        assert f'_xla_megascale_transfer_type="{kind}"' not in plan.compiled.hlo
    assert plan.seconds["network"] > 0
