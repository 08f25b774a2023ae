"""What is read from compiled programs, against counts by hand of small programs on simulated devices."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deberta_jax.planning.costs import count
from deberta_jax.planning.groups import axes_of, device_groups
from deberta_jax.planning.hlo import parse_hlo

MESH = {"data": 2, "fsdp": 4}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def found(program):
    return {(c.kind, c.axes): c for c in program.collectives}


def test_collectives_of_a_loop_are_counted_by_trip_axis_and_byte(mesh):
    def here(x):  # 64 x 32 float32 a device
        def trip(x, _):
            whole = jax.lax.all_gather(x, "fsdp", axis=0, tiled=True)
            x = x + jax.lax.psum_scatter(jnp.sin(whole), "fsdp", scatter_dimension=0, tiled=True)
            x = x + jax.lax.psum(jnp.cos(x), "data")
            x = jax.lax.all_to_all(jnp.tanh(x), "fsdp", 0, 0, tiled=True)
            return jax.lax.ppermute(jnp.exp(-x), "data", [(0, 1), (1, 0)]), None

        return jax.lax.scan(trip, x, None, length=5)[0]

    spec = PartitionSpec(("data", "fsdp"))
    run = jax.jit(jax.shard_map(here, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    text = run.lower(jax.ShapeDtypeStruct((8 * 64, 32), jnp.float32)).compile().as_text()
    mine, costs = 64 * 32 * 4, count(parse_hlo(text), MESH)
    expected = {
        ("all-gather", ("fsdp",)): 4 * mine * 3 / 4,
        ("reduce-scatter", ("fsdp",)): 4 * mine * 3 / 4,
        ("all-reduce", ("data",)): 2 * mine / 2,
        ("all-to-all", ("fsdp",)): mine * 3 / 4,
        ("collective-permute", ("data",)): mine,
    }
    assert {key: c.sent for key, c in found(costs).items()} == {key: 5 * value for key, value in expected.items()}
    whole = {"all-gather": 4 * mine, "reduce-scatter": 4 * mine}
    assert {key: c.bytes for key, c in found(costs).items()} == {key: 5 * whole.get(key[0], mine) for key in expected}
    assert all(c.count == 5 for c in costs.collectives)
    assert found(costs)["all-gather", ("fsdp",)].largest == 4 * mine


def test_products_count_by_trip_also_in_nested_loops():
    def program(x, w):
        def inner(x, w):
            return jnp.tanh(x @ w), None

        def outer(x, _):
            return jax.lax.scan(inner, x, w)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0]

    x, w = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((7, 64, 64), jnp.float32)
    lowered = jax.jit(program).lower(x, w)
    costs = count(parse_hlo(lowered.compile().as_text()), {"data": 1})
    by_hand = 3 * 7 * 2 * 32 * 64 * 64
    assert costs.flops == by_hand
    # A trip reads x and one of the seven matrices and writes x; a CPU also copies the matrix, and writes x twice.
    least = 21 * 4 * (64 * 64 + 2 * 32 * 64)
    assert least <= costs.hbm_bytes <= 3 * least


def test_a_counter_that_begins_at_one_and_grows_by_two():
    """As XLA's loops over a ring do that send both ways at once; they carry no count of their trips."""

    def program(x, w):
        trip = lambda carry: (carry[0] + 2, jnp.tanh(carry[1] @ w))
        return jax.lax.while_loop(lambda carry: carry[0] < 8, trip, (1, x))[1]

    x, w = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
    text = jax.jit(program).lower(x, w).compile().as_text()
    for given in (text, re.sub(r'"known_trip_count":\{"n":"\d+"\}', "", text)):
        assert count(parse_hlo(given), {"data": 1}).flops == 4 * 2 * 32 * 64 * 64


def test_each_devices_products_are_a_fraction_of_the_whole(mesh):
    x, w = jax.ShapeDtypeStruct((64, 128), jnp.float32), jax.ShapeDtypeStruct((128, 256), jnp.float32)
    places = NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), NamedSharding(mesh, PartitionSpec())
    text = jax.jit(jnp.matmul, in_shardings=places, out_shardings=places[0]).lower(x, w).compile().as_text()
    assert count(parse_hlo(text), MESH).flops == 2 * 64 * 128 * 256 / 8


def test_a_convolution_over_batch_positions_counts_what_meets_no_padding():
    """A TPU writes a product with heads as a convolution; every output reads each head once."""
    text = """HloModule m

ENTRY %main (a: f32[8,128,768,12], b: f32[12,64,768]) -> f32[12,8,128,64] {
  %a = bf16[8,128,768]{2,1,0} parameter(0)
  %b = bf16[768,12,64]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = f32[8,128,12,64]{1,3,2,0:T(8,128)} convolution(%a, %b), window={size=12 pad=11_11 rhs_reversal=1}, \
dim_labels=bsf_i0o->bs0f
}
"""
    # the left operand has no such axis: as XLA has it, an axis of size 1
    text = text.replace("bf16[8,128,768]{2,1,0} parameter", "bf16[1024,1,768]{2,1,0} parameter")
    text = text.replace("f32[8,128,12,64]{1,3,2,0:T(8,128)} conv", "f32[1024,12,64]{1,2,0:T(8,128)} conv")
    text = text.replace("dim_labels=bsf_i0o->bs0f", "dim_labels=b0f_i0o->b0f")
    costs = count(parse_hlo(text), {"data": 1})
    assert costs.flops == 2 * 1024 * 768 * 12 * 64
    assert costs.hbm_bytes == 2 * 1024 * 768 + 4 * 1024 * 12 * 64  # the kernel's S(1): it lies on the chip


def test_a_loop_without_a_known_count_reads_its_condition():
    text = """HloModule m

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8] get-tuple-element(%p), index=1
  %y = f32[4,8]{1,0} copy(%x)
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %y)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[4,8]) -> (s32[], f32[4,8]) {
  %zero = s32[] constant(0)
  %x = f32[4,8]{1,0} parameter(0)
  %start = (s32[], f32[4,8]) tuple(%zero, %x)
  ROOT %w = (s32[], f32[4,8]) while(%start), condition=%condition, body=%body
}
"""
    assert count(parse_hlo(text), {"data": 1}).hbm_bytes == 12 * 2 * 4 * 8 * 4


def test_a_slice_is_read_as_one_also_in_a_fusion_within_a_fusion():
    text = """HloModule m

%inner (stack: f32[12,4,8], at: s32[]) -> f32[1,4,8] {
  %stack = f32[12,4,8] parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,4,8] dynamic-slice(%stack, %at, %zero, %zero), dynamic_slice_sizes={1,4,8}
}

%outer (stack: f32[12,4,8], at: s32[]) -> f32[4,8] {
  %at = s32[] parameter(1)
  %stack = f32[12,4,8] parameter(0)
  %sliced = f32[1,4,8] fusion(%stack, %at), kind=kLoop, calls=%inner
  %flat = f32[4,8] bitcast(%sliced)
  ROOT %y = f32[4,8] negate(%flat)
}

ENTRY %main (stack: f32[12,4,8], at: s32[]) -> f32[4,8] {
  %stack = f32[12,4,8] parameter(0)
  %at = s32[]{:T(128)S(6)} parameter(1)
  ROOT %f = f32[4,8] fusion(%stack, %at), kind=kOutput, calls=%outer
}
"""
    assert count(parse_hlo(text), {"data": 1}).hbm_bytes == 2 * 4 * 8 * 4


@pytest.mark.parametrize(
    ("text", "groups", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ((0, 1, 2, 3), (4, 5, 6, 7)), ("fsdp",)),
        ("replica_groups=[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7)), ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7)), ("data",)),
        ("replica_groups=[1,8]<=[8]", (tuple(range(8)),), ("data", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ((0, 1, 2, 3), (4, 5, 6, 7)), ("fsdp",)),
        (
            "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}",
            ((0, 4), (1, 5), (2, 6), (3, 7)),
            ("data",),
        ),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ((0, 1, 2, 3), (4, 5, 6, 7)), ("fsdp",)),
        ("source_target_pairs={{0,4},{4,0}}", ((0, 4), (4, 0)), ("data",)),
        ("dimensions={0}", (tuple(range(8)),), ("data", "fsdp")),
    ],
)
def test_groups_in_all_notations(text, groups, axes):
    read = device_groups(text, 8)
    assert {frozenset(group) for group in read} == {frozenset(group) for group in groups}
    assert axes_of(read, MESH) == axes


def test_not_a_program():
    with pytest.raises(ValueError, match="no entry computation"):
        parse_hlo("HloModule nothing\n")
