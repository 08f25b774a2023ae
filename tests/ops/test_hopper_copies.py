"""The copies of the Hopper kernels in JAX's simulator of a GPU: nothing is read, or overwritten, too early."""

import dataclasses

import jax
import pytest

from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention
from deberta_jax.ops.attention.pallas.platforms import import_kernels
from deberta_jax.ops.attention.pallas.tiling import KernelSizes
from tests.kernel_cases import BOTH, C2P, assert_agree, definition, make_case, run

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="the simulator of JAX 0.12")


def simulated(interpreted):
    """The operations of the interpreter, but copies and barriers as on a device, in a kernel that JAX simulates."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    @dataclasses.dataclass(frozen=True)
    class Simulated(interpreted):
        def copy(self, pairs, barrier):
            plgpu.commit_smem()  # products read by ordinary loads here; on a device they read as copies write
            for source, target in pairs:
                plgpu.copy_gmem_to_smem(source, target, barrier)

        def wait(self, barrier):
            plgpu.barrier_wait(barrier)

        def scratch(self):
            return super().scratch() | self.barriers()

        def call(self, name, kernel, grid, inputs, outputs):
            scratch, axes = self.scratch(), ("first", "second")

            def body(*refs):
                named = dict(zip((*inputs, *outputs, *scratch), refs, strict=True))
                kernel(named, *map(jax.lax.axis_index, axes))

            run = plgpu.kernel(
                body,
                out_type=tuple(outputs.values()),
                grid=grid,
                grid_names=axes,
                scratch_types=list(scratch.values()),
                interpret=plgpu.InterpretGPUParams(detect_races=True),
            )
            return dict(zip(outputs, run(*inputs.values()), strict=True))

    return Simulated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "size", "mask", "without"),
    [(100, 16, "segments", BOTH), (40, 16, "none", C2P), (60, 128, "padding", BOTH)],
)
def test_copies_are_complete_when_read_and_buffers_free_when_filled(monkeypatch, length, size, mask, without):
    """With far blocks on both sides, several outer blocks a program, and heads of two chunks."""
    kernels = import_kernels("gpu")
    monkeypatch.setattr(kernels, "HopperWarpgroup", simulated(kernels.HopperWarpgroup))
    arrays, masks, relative_index = make_case(length, 1, size, mask=mask, without=without, batch=1)

    def attend(inputs):
        sizes = KernelSizes(block_size=16, max_programs=2, hopper=True)
        return pallas_attention(inputs, interpret="gpu", sizes=sizes)

    found = run(attend, arrays, masks, relative_index)
    assert_agree(found, run(definition, arrays, masks, relative_index))
