"""Performs the operations of the GPU kernels: through Mosaic GPU on a device, on whole arrays in Pallas' interpreter.

A program is one warpgroup of 128 threads. Its tiles are S by S, S = 64 on a device, and tokens by head size; the latter
are held in *chunks* of at most 64 columns. Products run on the matrix units by ``mma.sync``, which every NVIDIA GPU has
from Ampere on; ``hopper`` has those of a Hopper. Only these two modules import Mosaic GPU, whose interface changes with
JAX.

The relative shift is a change of pitch. A product [S,2S] by distance is written to shared memory in rows of ``pitch``
numbers. Read from number S-1 on in rows of ``pitch - 1`` numbers, element (i,j) is the one that was written at
(i, S-1-i+j): no gather, and no memory outside of the multiprocessor. Gradients go the same way back. These reads are of
one number at a time, since rows of an odd pitch are not aligned for more.

Pallas puts barriers around every store to shared memory. Mosaic's stores and loads name layouts, which say what thread
holds which element; the interpreter has none.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic.gpu import warpgroup_barrier
from jax.experimental.pallas import mosaic_gpu as plgpu

from deberta_jax.ops.products import F32

CHUNK = 64
Chunks = tuple[Any, ...]

# Named here, so that a JAX without one of them fails when this module is imported.
_mma, _load, _kernel = plgpu.mma, plgpu.load, plgpu.kernel
_INLINE: Any = plgpu.inline_mgpu
_LEFT, _RIGHT, _COPY = plgpu.Layout.MMA_LHS, plgpu.Layout.MMA_RHS, plgpu.Layout.SMEM_GMEM_COPY
_TILES: Any = plgpu.TilingTransform
_SWIZZLE: Any = plgpu.SwizzleTransform
_SUM = plgpu.Layout.WGMMA  # equals that of a sum of mma.sync
_SINGLE = plgpu.Layout.TILED(  # the same in vectors of one number
    plgpu.Tiling(((64, 8), (16, 8), (8, 8), (2,), (1,))), warp_dims=(-8,), lane_dims=(-4, -3), vector_dim=-1
)


def _put(ref: Any, x: Any, layout: Any) -> None:
    """Stores an array of a layout where its numbers may meet in a bank, or in the device's memory.

    Through Mosaic itself, as Pallas has no such store before JAX 0.12.
    """

    @_INLINE(arg_types=(plgpu.RefType(), layout))
    def put(context, ref, x):
        warpgroup_barrier()  # as around Pallas' own stores
        x.store_untiled(ref, optimized=False)
        warpgroup_barrier()

    put(ref, x)


@dataclasses.dataclass(frozen=True)
class Warpgroup:
    """Describes the arrays that a program works on.

    A block in shared memory, or in the device's, is given as a list of references to its chunks [S, at most 64].

    Attributes:
      dtype: of the operands of products.
      size: S, tokens of a block.
      columns: of the arrays [S,H]: lanes of a head.
      interpret: True in Pallas' interpreter, where sizes and dtypes are free.
      tables: names of the tables by distance that there are.
      arrays: of tokens that a program reads of each outer and each inner block: 2, or 1 of the outer one's.
    """

    dtype: Any
    size: int
    columns: int
    interpret: bool
    tables: tuple[str, ...]
    arrays: int

    keeps_blocks: ClassVar[bool] = False
    """Whether shared memory keeps the outer block, and of both tables the window of a pair of blocks."""

    @property
    def slots(self) -> int:
        """Inner blocks that shared memory holds: of two, one is fetched while the other is worked on."""
        return 1

    @property
    def chunk(self) -> int:
        """Columns of one chunk."""
        return min(self.columns, CHUNK)

    @property
    def chunks(self) -> int:
        """Number of chunks of an array [S,H]."""
        return self.columns // self.chunk

    @property
    def window_blocks(self) -> int:
        """Blocks of a table that its buffer holds: both of a window, where shared memory has room for them."""
        return 2 if self.chunks == 1 else 1

    @property
    def pitch(self) -> int:
        """Numbers of a row of the buffer of products by distance; chosen for few conflicts of banks."""
        return 2 * self.size + 8

    def zeros(self) -> Chunks:
        """Returns sums [S,H], float32, of zeros."""
        return tuple(self.full((self.size, self.chunk), 0.0) for _ in range(self.chunks))

    def full(self, shape: tuple[int, int], number: float) -> Any:
        """Returns a float32 array of one number, in the layout of sums."""
        return self._cast(jnp.full(shape, number, F32), _SUM)

    def full_rows(self, number: float) -> Any:
        """Returns one number for each row, float32 [S]."""
        return self._cast(jnp.full((self.size,), number, F32), _SUM.reduce(1))

    def positions(self, axis: int, dtype: Any) -> Any:
        """Returns the number of each row, or column, of a tile [S,S]."""
        shape = (self.size, self.size)
        if self.interpret:
            return lax.broadcasted_iota(dtype, shape, axis)
        return plgpu.broadcasted_iota(dtype, shape, axis, layout=_SUM)

    def rows(self, ref: Any) -> Any:
        """Returns one number for each row of a tile, from memory [S]."""
        return self._load(ref, _SUM.reduce(1))

    def spread_columns(self, ref: Any, shape: tuple[int, int] | None = None) -> Any:
        """Returns a tile, by default [S,S], in which each column has its number from memory."""
        return lax.broadcast_in_dim(self._load(ref, _SUM.reduce(0)), shape or (self.size, self.size), [1])

    def spread_rows(self, x: Any, columns: int | None = None) -> Any:
        """Returns a tile, by default [S,S], in which each row has its number of ``x`` [S]."""
        return lax.broadcast_in_dim(x, (self.size, columns or self.size), [0])

    def tile(self, ref: Any, *, transposed: bool = False) -> Any:
        """Returns a tile [S,S] from memory of the device, or its transpose."""
        if self.interpret:
            return ref[...].T if transposed else ref[...]
        x = _load(ref.transpose((1, 0)) if transposed else ref, layout=_SINGLE, optimized=False)
        return plgpu.layout_cast(x.astype(jnp.int32), _SUM)

    def left(self, refs: Sequence[Any]) -> Chunks:
        """Returns chunks in memory as the left side of products, held in registers."""
        return tuple(self._load(ref, self._left_layout()) for ref in refs)

    def left_anew(self, refs: Sequence[Any]) -> Chunks:
        """Returns chunks as the left side of products, each loaded again for every product: that spares registers."""
        return tuple(functools.partial(lambda ref: self.left([ref])[0], ref) for ref in refs)

    def left_of(self, buffer: Any, x: Any) -> Any:
        """Returns a tile [S,S] as the left side of a product in ``dtype``; it passes through shared memory."""
        buffer[...] = x.astype(self.dtype)
        return self.left([buffer])[0]

    def copy(self, pairs: Sequence[tuple[Any, Any]], barrier: Any) -> None:
        """Starts to copy chunks from the device's memory to shared memory.

        Args:
          pairs: of source and target.
          barrier: counts the chunks, for ``wait``.
        """
        loaded = [self._load(source, self._copy_layout(source.shape)) for source, _ in pairs]
        for x, (_, target) in zip(loaded, pairs, strict=True):
            target[...] = x

    def wait(self, barrier: Any) -> None:
        """Waits until as many chunks as ``barrier`` counts have been copied. Nothing to do where copies are at once."""

    def times(self, left: Chunks, right: Sequence[Any]) -> Any:
        """Returns left @ right^T, float32 [S,S], of ``left`` or ``left_anew`` and a block in shared memory."""
        total = self.full((self.size, self.size), 0.0)
        for x, y in zip(left, right, strict=True):
            total = self._add(total, x() if callable(x) else x, y, transposed=True)
        return total

    def add_times(self, sums: Chunks, left: Any, right: Sequence[Any]) -> Chunks:
        """Returns sums + left @ right, of a tile ``left`` [S,S] and a block [S,H] in shared memory."""
        return tuple(self._add(total, left, y, transposed=False) for total, y in zip(sums, right, strict=True))

    def put_products(self, buffer: Any, half: int, x: Any) -> None:
        """Stores one half [S,S] of the products by distance."""
        if self.interpret:
            whole = buffer[...][: self.size * self.pitch].reshape(self.size, self.pitch)
            whole = whole.at[:, half * self.size : (half + 1) * self.size].set(x)
            buffer[...] = jnp.pad(whole.reshape(-1), (0, self.size))
        else:
            _put(self._half(buffer, half), x, _SUM)

    def take_scores(self, buffer: Any, *, transposed: bool) -> Any:
        """Returns the products [S,S] where their keys stand, float32.

        Args:
          buffer: the products by distance.
          transposed: the products are those of the columns' tokens.
        """
        if self.interpret:
            x = self._shifted(buffer[...])[:, : self.size]
            return x.T if transposed else x
        view = self._band(buffer)
        x = _load(view.transpose((1, 0)) if transposed else view, layout=_SINGLE, optimized=False)
        return plgpu.layout_cast(x, _SUM)

    def put_scores(self, buffer: Any, x: Any) -> None:
        """Stores a tile [S,S], float32, so that ``left_half`` finds it by distance, and zeros elsewhere."""
        if self.interpret:
            band = jnp.pad(x, ((0, 0), (0, self.pitch - 1 - self.size))).reshape(-1)
            buffer[...] = jnp.pad(band, (self.size - 1, self.size * 2 + 1 - self.size))
            return
        for half in range(2):
            _put(self._half(buffer, half), self.full((self.size, self.size), 0.0), _SUM)
        _put(self._band(buffer), plgpu.layout_cast(x, _SINGLE), _SINGLE)

    def left_half(self, buffer: Any, half: int, through: Any, *, transposed: bool = False) -> Any:
        """Returns one half [S,S] of what ``put_scores`` stored, by row and distance, as the left side of a product.

        Args:
          buffer: the one that holds it.
          half: 0 or 1.
          through: a buffer [S,S] that a transpose passes through.
          transposed: by distance and row.
        """
        if self.interpret:
            whole = buffer[...][: self.size * self.pitch].reshape(self.size, self.pitch)
            x = whole[:, half * self.size : (half + 1) * self.size].astype(self.dtype)
            return x.T if transposed else x
        view = self._half(buffer, half)
        if not transposed:
            return self._load(view, self._left_layout()).astype(self.dtype)
        x = _load(view.transpose((1, 0)), layout=_SINGLE, optimized=False)
        return self.left_of(through, plgpu.layout_cast(x, _SUM))

    def store(self, ref: Any, x: Any) -> None:
        """Stores sums [S,H], or a number for each row [S], in the device's memory, in that memory's dtype."""
        x = x.astype(ref.dtype)
        if self.interpret:
            ref[...] = x
        else:
            _put(ref, x, _SUM if x.ndim == 2 else _SUM.reduce(1))

    def add_in_memory(self, refs: Sequence[Any], left: Any, right: Sequence[Any]) -> None:
        """Adds left @ right, of a tile ``left`` [S,S] and a block [S,H], to float32 chunks in the device's memory."""
        for ref, y in zip(refs, right, strict=True):
            (total,) = self.add_times((self._load(ref, _SUM),), left, [y])
            self.store(ref, total)

    def scratch(self) -> dict[str, Any]:
        """Returns the buffers of a program in shared memory, by name."""
        tile = plgpu.SMEM((self.size, self.size), self.dtype, transforms=self._tiles(self.size))
        buffers = {"inner_buffer": self.blocks(1), "inner_value_buffer": self.blocks(1), "tile_buffer": tile}
        if self.tables:
            buffers |= {"window_buffer": self.blocks(self.window_blocks), "products_buffer": self.products()}
        return buffers

    def blocks(self, count: int) -> Any:
        """Returns a buffer for blocks [S,H]: their chunks one after the other."""
        shape = (count * self.chunks, self.size, self.chunk)
        return plgpu.SMEM(shape, self.dtype, transforms=self._tiles(self.chunk))

    def products(self) -> Any:
        """Returns a buffer for products by distance."""
        return plgpu.SMEM((self.size * self.pitch + self.size,), F32)

    def call(
        self,
        name: str,
        kernel: Callable[..., None],
        grid: tuple[int, ...],
        inputs: dict[str, Any],
        outputs: dict[str, Any],
    ) -> dict[str, jax.Array]:
        """Returns what ``kernel(refs by name, *numbers of the program)`` stores, by name.

        Args:
          name: of the kernel, in profiles and in what the compiler says.
          kernel: the program.
          grid: numbers of programs.
          inputs: arrays by name.
          outputs: shapes by name.
        """
        scratch = self.scratch()
        names = (*inputs, *outputs, *scratch)
        axes = ("first", "second", "third")[: len(grid)]

        def body(*given):
            numbers = map(pl.program_id, range(len(grid))) if self.interpret else map(lax.axis_index, axes)
            kernel(dict(zip(names, given, strict=True)), *numbers)

        body.__name__ = name
        shapes = tuple(outputs.values())
        if self.interpret:
            run = pl.pallas_call(body, grid=grid, out_shape=shapes, scratch_shapes=[*scratch.values()], interpret=True)
        else:
            parameters = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane)
            run = _kernel(
                body,
                out_type=shapes,
                grid=grid,
                grid_names=axes,
                scratch_types=list(scratch.values()),
                compiler_params=parameters,
            )
        return dict(zip(outputs, run(*inputs.values()), strict=True))

    def _left_layout(self) -> Any:
        return None if self.interpret else _LEFT(self.dtype)

    def _cast(self, x: Any, layout: Any) -> Any:
        return x if self.interpret else plgpu.layout_cast(x, layout)

    def _load(self, ref: Any, layout: Any) -> Any:
        return ref[...] if self.interpret else _load(ref, layout=layout, optimized=False)

    def _add(self, total: Any, left: Any, right: Any, *, transposed: bool) -> Any:
        if self.interpret:
            precision = lax.Precision.HIGHEST if self.dtype == F32 else None
            right = right[...].T if transposed else right[...]
            return total + jnp.dot(left[...], right, precision=precision, preferred_element_type=F32)
        right = right.transpose((1, 0)) if transposed else right
        return _mma(total, left, self._load(right, _RIGHT(self.dtype)))

    def _half(self, buffer: Any, half: int) -> Any:
        rows = buffer.at[pl.ds(0, self.size * self.pitch)].reshape(self.size, self.pitch)
        return rows.at[:, pl.ds(half * self.size, self.size)]

    def _band(self, buffer: Any) -> Any:
        pitch = self.pitch - 1
        return buffer.at[pl.ds(self.size - 1, self.size * pitch)].reshape(self.size, pitch).at[:, pl.ds(0, self.size)]

    def _shifted(self, numbers: Any) -> Any:
        first, pitch = self.size - 1, self.pitch - 1
        return numbers[first : first + self.size * pitch].reshape(self.size, pitch)

    def _swizzle(self, columns: int) -> int:
        return columns * jnp.dtype(self.dtype).itemsize

    def _tiles(self, columns: int) -> tuple[Any, ...]:
        if self.interpret:
            return ()
        return (_TILES((8, columns)), _SWIZZLE(self._swizzle(columns)))

    def _copy_layout(self, shape: tuple[int, ...]) -> Any:
        return None if self.interpret else _COPY(shape, self.dtype, self._swizzle(shape[-1]))
