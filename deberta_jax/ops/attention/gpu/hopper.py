"""Performs the operations of the GPU kernels on a Hopper (compute capability 9.0): ``wgmma`` products, and TMA copies.

The four warps of a program multiply together: the right side of a product stands in shared memory, and the left side
there or in registers. So no warp loads a block that another one loads too, and what a product gives is at once the left
side of the next. Blocks come from the device's memory by asynchronous copies, which count on barriers.

Shared memory holds the outer block, and of each table the window of the current pair: two blocks, of which the next
pair reads one again. The forward kernel has two places for inner blocks and fetches one while it works on the other.
Two programs fit on a multiprocessor with heads of 64: while one waits, the other works.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from deberta_jax.ops.attention.gpu.warpgroup import Chunks, Warpgroup
from deberta_jax.ops.products import F32

# Named here, so that a JAX without one of them fails when this module is imported.
_wgmma, _copy, _wait, _barrier, _sums = (
    plgpu.wgmma,
    plgpu.copy_gmem_to_smem,
    plgpu.barrier_wait,
    plgpu.Barrier,
    plgpu.ACC,
)


@dataclasses.dataclass(frozen=True)
class HopperWarpgroup(Warpgroup):
    """Describes the arrays that a program works on, as ``Warpgroup`` does."""

    keeps_blocks: ClassVar[bool] = True

    @property
    def slots(self) -> int:
        """Inner blocks that shared memory holds; with two outer arrays there is room for one."""
        return 3 - self.arrays

    def left(self, refs: Sequence[Any]) -> Chunks:
        """Returns chunks in shared memory as the left side of products: in registers, where a program has enough.

        Products then read only their right side from shared memory.
        """
        return super().left(refs) if self.arrays == 1 and self.chunks == 1 else tuple(refs)

    def left_anew(self, refs: Sequence[Any]) -> Chunks:
        """Returns chunks in shared memory as the left side of products, which read them there."""
        return tuple(refs)

    def left_of(self, buffer: Any, x: Any) -> Any:
        """Returns a tile [S,S] as the left side of a product in ``dtype``; it stays in registers."""
        return x.astype(self.dtype)

    def copy(self, pairs: Sequence[tuple[Any, Any]], barrier: Any) -> None:
        """Starts to copy chunks from the device's memory to shared memory; all that reads the latter has ended."""
        for source, target in pairs:
            if self.interpret:
                target[...] = source[...]
            else:
                _copy(source, target, barrier)

    def wait(self, barrier: Any) -> None:
        """Waits until as many chunks as ``barrier`` counts have been copied."""
        if not self.interpret:
            _wait(barrier)

    def times(self, left: Chunks, right: Sequence[Any]) -> Any:
        """Returns left @ right^T, float32 [S,S], of two blocks in shared memory."""
        if self.interpret:
            return super().times(left, right)

        def multiply(sums):
            for x, y in zip(left, right, strict=True):
                _wgmma(sums, x, y.transpose((1, 0)))
            return sums[...]

        return pl.run_scoped(multiply, _sums((self.size, self.size), F32))

    def add_times(self, sums: Chunks, left: Any, right: Sequence[Any]) -> Chunks:
        """Returns sums + left @ right, of a tile ``left`` [S,S] in registers and a block [S,H] in shared memory."""
        if self.interpret:
            return super().add_times(sums, left, right)
        add = lambda total, y: pl.run_state(lambda ref: _wgmma(ref, left, y))(_sums.init(total))
        return tuple(add(total, y) for total, y in zip(sums, right, strict=True))

    def _left_layout(self) -> Any:
        return plgpu.Layout.WGMMA

    def scratch(self) -> dict[str, Any]:
        """Returns the buffers of a program in shared memory, and the barriers that copies to them count on."""
        outer, inner = ("outer_buffer", "outer_value_buffer")[: self.arrays], ("inner_buffer", "inner_value_buffer")
        buffers = {name: self.blocks(1) for name in outer} | {name: self.blocks(self.slots) for name in inner}
        if self.tables:
            buffers |= {f"{table}_buffer": self.blocks(2) for table in self.tables}
            buffers["products_buffer"] = self.products()
        return buffers if self.interpret else buffers | self.barriers()

    def barriers(self) -> dict[str, Any]:
        """Returns the barriers by name: each counts the chunks that are copied at a time."""
        outer = _barrier(num_arrivals=self.arrays * self.chunks)
        inner = _barrier(num_arrivals=2 * self.chunks, num_barriers=self.slots)
        barriers = {"outer_barrier": outer, "inner_barrier": inner}
        if self.tables:
            barriers["window_barrier"] = _barrier(num_arrivals=len(self.tables) * self.chunks)
        return barriers
