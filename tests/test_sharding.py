"""Meshes, rules and host batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from deberta_jax.errors import InputError
from deberta_jax.sharding import (
    ShardingRules,
    batch_sharding,
    constrain,
    global_batch,
    make_mesh,
    tree_shardings,
)


@pytest.mark.parametrize(
    ("sizes", "shape"), [((), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 1, 8), (1, 1, 8)), ((-1, 4, 1), (2, 4, 1))]
)
def test_a_mesh_has_all_devices(sizes, shape):
    mesh = make_mesh(*sizes)
    assert tuple(mesh.shape.values()) == shape
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert {device.id for device in mesh.devices.flat} == {device.id for device in jax.devices()}


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1), (16, 1, 1), (-2, -2, 2), (1, 1, 1)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(InputError, match="does not fit 8 devices"):
        make_mesh(*sizes)


def test_rules_name_mesh_axes():
    assert ShardingRules().spec(("layers", "embed", "heads", "kv")) == PartitionSpec(None, "fsdp", "tensor", None)
    assert ShardingRules().spec(("batch", None)) == PartitionSpec(("data", "fsdp"), None)
    assert ShardingRules(mlp=None).spec(("embed", "mlp")) == PartitionSpec("fsdp", None)
    with pytest.raises(AttributeError):
        ShardingRules().spec(("heights",))
    mesh = make_mesh(2, 2, 2)
    found = tree_shardings({"a": ("vocab", "embed"), "b": {"c": (None,)}}, mesh)
    assert found["a"].spec == PartitionSpec("tensor", "fsdp")
    assert found["b"]["c"].spec == PartitionSpec(None)


def test_rows_of_a_batch_lie_on_the_devices_that_own_them():
    mesh = make_mesh(2, 2, 2)
    ids = np.arange(24, dtype=np.int32).reshape(8, 3)
    batch = global_batch({"input_ids": ids, "labels": np.arange(8.0)}, mesh)
    np.testing.assert_array_equal(batch["input_ids"], ids)
    assert batch["input_ids"].sharding == batch_sharding(mesh)
    for shard in batch["input_ids"].addressable_shards:
        assert shard.data.shape == (2, 3)
        np.testing.assert_array_equal(shard.data, ids[shard.index])


def test_a_constraint_holds_under_a_mesh_and_is_nothing_without():
    x = jnp.ones((4, 8))
    assert constrain(x, ("batch", "embed")) is x
    mesh = make_mesh(2, 2, 2)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: constrain(2 * x, ("batch", "mlp")))(x)
    assert y.sharding.is_equivalent_to(jax.NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "tensor")), 2)
