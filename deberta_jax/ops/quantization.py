"""Holds quantized leaves of a parameter tree, and dequantizes them where they are used.

The layers of a ``QuantizedArray`` are a leading axis, and the inputs come first, so that dequantization is elementwise
along the outputs and ``jax.lax.scan`` slices a layer as it slices an array. ``quantized_matrix`` has the schemes.

Letters of shapes: L layers, I inputs, O outputs, G blocks of inputs, V and E rows and columns of an embedding table.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.ops.quantized_matrix import INT8_STEP, NESTED_BLOCK, QuantizedMatrix, levels, nested_levels


@dataclasses.dataclass(frozen=True)
class QuantizedArray:
    """Holds a quantized leaf of the parameter tree; in ``jax.lax.scan`` and ``jax.tree.map`` a node of arrays.

    Attributes:
      codes: int8 [L,I,O]; 4 bits: uint8 [L,I/2,O], the codes of inputs 2i in the high and 2i+1 in the low bits. A table
        of embeddings has its rows in place of the inputs, and no axis L.
      scales: float32 [L,G,O]; for a table of embeddings [V,1]. With double quantization uint8 [L,O*G], in the order of
        the file.
      nested_scales: float32 [L, ceil(O*G/256)]; None without double quantization.
      offset: float32 [L]; None without double quantization.
      scheme: ``int8``, ``int4``, ``nf4`` or ``fp4``.
      unstacked_shape: shape of the leaf without the axis L, such as (D, N, H).
      dtype: as of ``QuantizedMatrix``.
    """

    codes: Any
    scales: Any
    nested_scales: Any
    offset: Any
    scheme: str
    unstacked_shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of the leaf, with the axis L if it has one."""
        return (*self.codes.shape[:-2], *self.unstacked_shape)

    @property
    def ndim(self) -> int:
        """Returns the number of axes of the leaf."""
        return len(self.shape)

    def dequantize(self, dtype: Any = None) -> jax.Array:
        """Returns the values in ``dtype``; None: in ``self.dtype``. The product is computed in float32."""
        stack, outputs = self.codes.shape[:-2], self.codes.shape[-1]
        if self.scheme == "int8":
            values, scales = jnp.asarray(self.codes, jnp.float32), jnp.asarray(self.scales) * INT8_STEP
        else:
            values, scales = _look_up(self._unpacked(), self.scheme), self._plain_scales()
        groups = scales.shape[-2]
        blocks = values.reshape(*stack, groups, values.shape[-2] // groups, outputs)
        return (blocks * scales[..., None, :]).reshape(self.shape).astype(dtype or self.dtype)

    def _unpacked(self) -> jax.Array:
        """Returns the 4-bit codes, int32 [L,I,O]."""
        *stack, half, outputs = self.codes.shape
        codes = jnp.asarray(self.codes, jnp.int32)[..., None, :]
        shifts = jnp.array([4, 0], jnp.int32).reshape(*(1 for _ in stack), 1, 2, 1)
        return ((codes >> shifts) & 15).reshape(*stack, 2 * half, outputs)

    def _plain_scales(self) -> jax.Array:
        """Returns the scales, float32 [L,G,O], after double quantization is undone."""
        if self.nested_scales is None:
            return jnp.asarray(self.scales)
        *stack, count = self.scales.shape
        nested = jnp.repeat(self.nested_scales, NESTED_BLOCK, axis=-1)[..., :count]
        product = jnp.asarray(nested_levels())[jnp.asarray(self.scales, jnp.int32)] * nested
        # The minimum changes nothing, but without it compilers join product and sum in one instruction that rounds
        # once: the scales would not be those of bitsandbytes, nor those that a conversion to floats writes.
        scales = jnp.minimum(product, nested) + jnp.asarray(self.offset)[..., None]
        return jnp.swapaxes(scales.reshape(*stack, self.codes.shape[-1], -1), -1, -2)


def _look_up(codes: jax.Array, scheme: str) -> jax.Array:
    """Returns the levels of 4-bit codes. A tree of selections, because vector units are slow at table look-ups."""
    values: list[Any] = [jnp.float32(value) for value in levels(scheme)]
    for bit in range(4):
        is_set = (codes >> bit) & 1 != 0
        values = [jnp.where(is_set, high, low) for low, high in zip(values[::2], values[1::2], strict=True)]
    return values[0]


@dataclasses.dataclass(frozen=True)
class LowRankSum:
    """Holds a quantized kernel with a low-rank update, ``base + scale * a @ b``, that is summed where it is used.

    Attributes:
      base: the kernel.
      a, b: float [L,I,rank] and [L,rank,O].
      scale: factor of the product.
    """

    base: QuantizedArray
    a: Any
    b: Any
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of the kernel."""
        return self.base.shape

    @property
    def dtype(self) -> np.dtype:
        """Returns the dtype of the sum."""
        return self.base.dtype

    def dequantize(self, dtype: Any = None) -> jax.Array:
        """Returns the sum in ``dtype``; None: the dtype of the kernel. It is computed in float32."""
        # With a batch axis, because ``remat="dots"`` would keep a product without one, for all layers.
        a, b = (array.reshape(-1, *array.shape[-2:]) for array in (self.a, self.b))
        update = self.scale * jnp.einsum("LIR,LRO->LIO", a, b)
        return (self.base.dequantize(jnp.float32) + update.reshape(self.shape)).astype(dtype or self.dtype)


def _register(kind: type, arrays: tuple[str, ...], rest: tuple[str, ...]) -> None:
    """Makes a dataclass a node of trees. Its arrays have keys as those of a dict, as everything in a parameter tree."""

    def flatten(node: Any) -> tuple[Any, Any]:
        keyed = tuple((jax.tree_util.DictKey(name), getattr(node, name)) for name in arrays)
        return keyed, tuple(getattr(node, name) for name in rest)

    def unflatten(values: Any, children: Any) -> Any:
        return kind(**dict(zip(arrays, children, strict=True)), **dict(zip(rest, values, strict=True)))

    jax.tree_util.register_pytree_with_keys(kind, flatten, unflatten)


_register(QuantizedArray, ("codes", "scales", "nested_scales", "offset"), ("scheme", "unstacked_shape", "dtype"))
_register(LowRankSum, ("base", "a", "b"), ("scale",))

Compressed = QuantizedArray | LowRankSum
"""Leaves of a parameter tree that are no arrays; both have ``shape``, ``dtype`` and ``dequantize``."""


def is_compressed(leaf: Any) -> bool:
    """Returns whether a node of a parameter tree is a ``QuantizedArray`` or a ``LowRankSum``."""
    return isinstance(leaf, Compressed)


def dense_values(weight: Any, dtype: Any = None) -> jax.Array:
    """Returns the values of an array, a ``QuantizedArray`` or a ``LowRankSum`` in ``dtype``; None: in their own."""
    return weight.dequantize(dtype) if isinstance(weight, Compressed) else weight.astype(dtype or weight.dtype)


def stack_matrices(matrices: Sequence[QuantizedMatrix], shape: tuple[int, ...], *, layered: bool) -> QuantizedArray:
    """Returns the kernel whose layers are regular torch matrices.

    Args:
      matrices: one for each layer, all of one scheme; a single one if not ``layered``.
      shape: shape of the kernel without the axis of layers.
      layered: whether the kernel has an axis of layers.
    """
    first = matrices[0]
    outputs = first.shape[0]
    if any(m.nested_scales is None for m in matrices):
        matrices = [dataclasses.replace(m, scales=m.plain_scales(), nested_scales=None, offset=None) for m in matrices]
    nested = matrices[0].nested_scales is not None
    stack = np.stack if layered else lambda arrays: arrays[0]
    inputs_first = lambda array: np.ascontiguousarray(array.reshape(outputs, -1).T)
    return QuantizedArray(
        stack([inputs_first(m.codes) for m in matrices]),
        stack([m.scales if nested else inputs_first(m.scales) for m in matrices]),
        stack([np.asarray(m.nested_scales) for m in matrices]) if nested else None,
        stack([np.asarray(m.offset) for m in matrices]) if nested else None,
        first.scheme,
        shape,
        first.dtype,
    )


def matrix_of(array: QuantizedArray, layer: int | None) -> QuantizedMatrix:
    """Returns a kernel, or one layer of it, as a torch matrix; undoes ``stack_matrices``."""
    pick = lambda a: None if a is None else np.asarray(a if layer is None else a[layer])
    codes, scales = np.asarray(pick(array.codes)), np.asarray(pick(array.scales))
    outputs, nested = codes.shape[1], array.nested_scales is not None
    inputs = codes.shape[0] * (1 if array.scheme == "int8" else 2)
    codes = np.ascontiguousarray(codes.T)
    return QuantizedMatrix(
        codes if array.scheme == "int8" else codes.reshape(-1),
        scales if nested else np.ascontiguousarray(scales.T).reshape(-1),
        pick(array.nested_scales),
        pick(array.offset),
        array.scheme,
        (outputs, inputs),
        inputs * outputs // scales.size,
        np.dtype(array.dtype),
    )


def quantized_table(matrix: QuantizedMatrix) -> QuantizedArray:
    """Returns a table of embeddings [V,E], of which ``int8`` has one scale for each row."""
    return QuantizedArray(matrix.codes, matrix.scales[:, None], None, None, "int8", matrix.shape, matrix.dtype)


def table_matrix(array: QuantizedArray) -> QuantizedMatrix:
    """Undoes ``quantized_table``."""
    codes = np.asarray(array.codes)
    scales = np.asarray(array.scales).reshape(-1)
    shape = (codes.shape[0], codes.shape[1])
    return QuantizedMatrix(codes, scales, None, None, "int8", shape, shape[1], np.dtype(array.dtype))
