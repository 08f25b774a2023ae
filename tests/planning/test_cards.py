"""Plans for GPUs: which cards there are, and what their programs' own forms of products and collectives count."""

import importlib.util

import pytest

from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.planning.cards import CARDS, target_config
from deberta_jax.planning.costs import count
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.kernels import gpu_kernel_cost
from deberta_jax.planning.report import roofline
from deberta_jax.planning.targets import target_of

# As XLA for GPUs writes it: a product by cuBLAS, and the sum of gradients over all GPUs.
TEXT = """HloModule step

ENTRY %main (x: f32[6,512,64], y: f32[128,6,64]) -> f32[6,512,128] {
  %x = f32[6,512,64]{2,1,0} parameter(0)
  %y = f32[128,6,64]{2,1,0} parameter(1)
  %product = (f32[6,512,128]{2,1,0}, s8[4096]{0}) custom-call(%x, %y), custom_call_target="__cublas$lt$matmul", \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],\
"rhs_contracting_dimensions":["2"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["1"]}}}
  %given = f32[6,512,128]{2,1,0} get-tuple-element(%product), index=0
  %start = ((f32[6,512,128]{2,1,0}), f32[6,512,128]{2,1,0}) all-reduce-start(%given), channel_id=1, \
replica_groups=mesh['data'=4,'fsdp'=2] {'data','fsdp'}, to_apply=%add
  ROOT %done = f32[6,512,128]{2,1,0} all-reduce-done(%start)
}
"""
BYTES = 6 * 512 * 128 * 4


def test_a_product_by_the_library_counts_as_any_other():
    costs = count(parse_hlo(TEXT), {"data": 4, "fsdp": 2})
    assert costs.flops == 2 * 6 * 512 * 128 * 64
    (sum_over_all,) = costs.collectives
    assert (sum_over_all.kind, sum_over_all.axes, sum_over_all.bytes) == ("all-reduce", ("data", "fsdp"), BYTES)
    assert (costs.network_sent, costs.network_count) == (0, 0)


# As XLA writes the attention kernels of 2 rows of 512 tokens and 12 heads of 64; U stands for the rows of a table.
KERNELS = """HloModule step

ENTRY %main (x: bf16[2,512,768], t: bf16[U,768], l: f32[2,12,512]) -> bf16[2,512,768] {
  %x = bf16[2,512,768]{2,1,0} parameter(0)
  %t = bf16[U,768]{1,0} parameter(1)
  %l = f32[2,12,512]{2,1,0} parameter(2)
  %mpmd_map.1 = (bf16[2,512,768]{2,1,0}, f32[2,12,512]{2,1,0}, bf16[2,512,768]{2,1,0}) custom-call(%x, %x, %x, %t, \
%t), custom_call_target="mosaic_gpu_v2", metadata={op_name="jit(f)/disentangled_attention_forward/mpmd_map"}
  %mpmd_map.2 = (bf16[2,512,768]{2,1,0}, f32[16,12,U,64]{3,2,1,0}) custom-call(%x, %x, %x, %x, %t, %t, \
%l, %l), custom_call_target="mosaic_gpu_v2", metadata={op_name="jit(f)/disentangled_attention_backward_query/mpmd_map"}
  %mpmd_map.3 = (bf16[2,512,768]{2,1,0}, bf16[2,512,768]{2,1,0}, f32[16,12,U,64]{3,2,1,0}) custom-call(%x, %x, %x, %x, \
%t, %t, %l, %l), custom_call_target="mosaic_gpu_v2", \
metadata={op_name="jit(f)/disentangled_attention_backward_key/mpmd_map"}
  ROOT %y = bf16[2,512,768]{2,1,0} get-tuple-element(%mpmd_map.3), index=0
}
"""


@pytest.mark.parametrize(("rows", "near"), [(1024, 64), (384, 22)])  # of all distances, of neighbours
def test_attention_kernels_count_what_they_multiply(rows, near):
    costs = count(parse_hlo(KERNELS.replace("U", str(rows))), {"data": 1}, gpu_kernel_cost)
    product = 2 * 12 * 2 * 64 * 64 * 64
    assert costs.flops == product * ((2 + 3 + 4) * 64 + (4 + 8 + 8) * near)
    assert sum(costs.kernels.values()) == 3


@pytest.mark.parametrize(("hosts", "sent"), [(2, 2 * BYTES / 4 / 2), (4, 2 * BYTES / 2 * 3 / 4)])
def test_hosts_exchange_their_cards_parts(hosts, sent):
    costs = count(parse_hlo(TEXT), {"data": 4, "fsdp": 2}, hosts=hosts)
    assert (costs.network_sent, costs.network_count) == (sent, 1)
    terms = roofline(costs, CARDS["h100"].chip)
    assert terms["network"] == sent / 50e9
    assert terms["interconnect"] == 2 * BYTES * 7 / 8 / 450e9


@pytest.mark.parametrize(
    ("text", "topology", "chips", "hosts"),
    [
        ("h100:8", "h100:8", 8, 1),
        ("H200:8x2", "h200:8", 16, 2),
        ("a100-80:8", "a100-80:8", 8, 1),
        ("a100-40", "a100-40:1", 1, 1),
        ("l4:1", "l4:1", 1, 1),
        ("b200:4x3", "b200:4", 12, 3),
    ],
)
def test_cards_of_one_host_and_of_several(text, topology, chips, hosts):
    target = target_of(text)
    assert (target.platform, target.topology, target.chips, target.slices) == ("cuda", topology, chips, hosts)
    assert target.card is not None
    assert target.chip is target.card.chip


@pytest.mark.parametrize(
    "text", ["h100:0", "h100:8x0", "h100:8x", "h100:x2", "h100:-8", "a100:8", "a100-60:8", "h100-8x"]
)
def test_what_is_no_card_is_refused(text):
    with pytest.raises(InputError, match="give"):
        target_of(text)
    with pytest.raises(InputError, match="--slices 2: give a number of TPU slices"):
        target_of("h100:8", slices=2)


@pytest.mark.parametrize("name", CARDS)
def test_descriptions_have_what_the_data_sheets_say(name):
    """Cards' marketing names carry their memory; the rest is checked by the compiler in ``make test-gpu``."""
    text, card = target_config(CARDS[name]), CARDS[name]
    gigabytes = {"a100-40": 40, "a100-80": 80, "l4": 24, "h100": 80, "h200": 141, "b200": 180}[name]
    assert gigabytes == pytest.approx(card.chip.hbm / 2**30, rel=0.07)
    assert f"device_memory_size: {card.chip.hbm}\n" in text
    assert text.count("{") == text.count("}") == 3
    assert card.kind in text


@pytest.mark.skipif(importlib.util.find_spec("jax_plugins") is not None, reason="a GPU's compiler may be here")
def test_without_the_compiler_says_how_to_get_it(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--model", "deberta-v3-base", "--topology", "h100:8x2"])
    assert ended.value.code == 2
    # Before it one line may say why this JAX has no kernel for GPUs.
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --topology h100:8x2: needs the compiler for GPUs; `pip install 'jax[cuda12]'`")
    assert "cuda:16" in said
