"""What slices send each other through the data-centre network, from the form in which libtpu writes it."""

import dataclasses
import json

import pytest

from deberta_jax.errors import InputError
from deberta_jax.planning.candidates import candidates
from deberta_jax.planning.chips import CHIPS
from deberta_jax.planning.costs import Collective, count
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.report import roofline
from deberta_jax.planning.request import check_mesh, make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import RunOptions

TRANSFER = (
    'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    '_xla_host_transfer_rendezvous="psum.6_0",_xla_megascale_reduce_operation="SUM",'
    '_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="KIND"}'
)
TEXT = """HloModule step

ENTRY %main (p: f32[16,8,128]) -> f32[16,8,128] {
  %p = f32[16,8,128]{2,1,0:T(8,128)} parameter(0)
  %all-reduce.1 = f32[16,8,128]{2,1,0:T(8,128)} all-reduce(%p), channel_id=1, replica_groups={{0,1},{2,3}}
  %after-all = token[] after-all(), frontend_attributes={MegascaleRendezvousKeyName="psum.6_0"}
  %send = (f32[16,8,128]{2,1,0:T(8,128)}, u32[], token[]) send(%all-reduce.1, %after-all), channel_id=2, TRANSFER
  %recv = (f32[16,8,128]{2,1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=3, TRANSFER
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %recv-done = (f32[16,8,128]{2,1,0:T(8,128)}, token[]) recv-done(%recv), channel_id=3, is_host_transfer=true
  ROOT %out = f32[16,8,128]{2,1,0:T(8,128)} get-tuple-element(%recv-done), index=0
}
"""
BYTES = 16 * 8 * 128 * 4


def counted(kind: str, slices: int):
    text = TEXT.replace("TRANSFER", TRANSFER.replace("KIND", kind))
    return count(parse_hlo(text), {"data": 2, "fsdp": 2}, slices=slices)


@pytest.mark.parametrize(
    ("kind", "slices", "sent"),
    [("ALL_REDUCE", 2, 1.0), ("ALL_REDUCE", 4, 1.5), ("ALL_GATHER", 4, 3.0), ("REDUCE_SCATTER", 4, 0.75)],
)
def test_what_a_chip_sends_to_other_slices_is_counted_apart(kind, slices, sent):
    costs = counted(kind, slices)
    assert (costs.network_sent, costs.network_count) == (sent * BYTES, 1)
    assert costs.hbm_bytes == 4 * BYTES, "the sum and the exchange each read and write the array once"
    inside = Collective("all-reduce", ("fsdp",), 1.0, float(BYTES), float(BYTES), BYTES)
    assert costs.collectives == (inside,), "groups are of the devices of a slice"


def test_the_network_can_be_what_a_step_waits_for():
    chip = CHIPS["v5e"]
    terms = roofline(counted("ALL_REDUCE", 2), chip)
    assert terms["network"] == BYTES / 3.125e9 == terms["step"]
    one_slice = dataclasses.replace(counted("ALL_REDUCE", 2), network_sent=0.0, network_count=0.0)
    assert "network" not in roofline(one_slice, chip)


def request_on(slices: int, **mesh: int):
    runtime = RunOptions(**{f"mesh_{name}": size for name, size in mesh.items()})
    target = target_of("v5e:4x4", slices=slices)
    return make_request(
        "finetune", PRESETS["deberta-v3-base"], target, batch_size=64, length=128, dtype="bfloat16", runtime=runtime
    )


def test_meshes_keep_parameters_within_a_slice():
    assert request_on(2, data=4, fsdp=8, tensor=1).slice_mesh == {"data": 2, "fsdp": 8, "tensor": 1}
    with pytest.raises(InputError, match="data is not a multiple of the 2 slices"):
        check_mesh(request_on(2, data=1, fsdp=32, tensor=1))
    found = candidates(request_on(2, data=2, fsdp=16, tensor=1))
    assert found
    assert all(candidate.request.mesh["data"] % 2 == 0 for candidate in found)


def test_a_number_of_slices_that_cannot_be_is_refused():
    for topology, slices in (("v5e:4x4", 0), ("cuda:8", 2), ("cpu:8", 2)):
        with pytest.raises(InputError, match=f"--slices {slices}: give a number of TPU slices"):
            target_of(topology, slices=slices)
    target = target_of("v5e:4x4", slices=2)
    assert (target.chips, target.name, target.typed) == (32, "2 x v5e:4x4", "--topology v5e:4x4 --slices 2")
    assert json.loads(json.dumps(dataclasses.asdict(target)))["slices"] == 2
