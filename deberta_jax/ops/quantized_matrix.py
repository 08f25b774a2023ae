"""Quantizes matrices to 8 or 4 bits, on the host.

A value is ``level[code] * scale``. ``int8`` has one scale for each row of a torch matrix, which is an output channel;
the 4-bit schemes have one for each block of consecutive inputs. ``nf4`` has the 16 levels of Dettmers et al. 2023,
QLoRA; ``int4`` has 15 equally spaced levels; ``fp4``, which is only read, has those of 4-bit floats. With double
quantization the scales themselves have 8 bits (QLoRA, section 3). Codes and scales equal those of bitsandbytes 0.50.

Letters of shapes: I inputs, O outputs.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from deberta_jax.errors import InputError, check_choice, shown

SCHEMES = ("int8", "int4", "nf4")
"""The schemes that weights can be quantized by; ``fp4`` can be read, too."""

BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256
"""Number of scales that share a scale of their own in double quantization."""

_LEVELS = {
    "nf4": (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    # Code 0, which would be -8/7, is not used.
    "int4": tuple((code - 8) / 7 for code in range(16)),
    "fp4": tuple(v / 12 for v in (0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3)),
}
INT8_STEP = np.float32(1 / 127)
_SMALLEST = np.float32(1e-38)


def levels(scheme: str) -> np.ndarray:
    """Returns the 16 values of a 4-bit scheme by code, float32, between -1 and 1 (``int4``: code 0 is not used)."""
    return np.array(_LEVELS[scheme], np.float32)


@functools.cache
def nested_levels() -> np.ndarray:
    """Returns the 256 values of scales in double quantization, float32: bitsandbytes' dynamic map.

    A value has a sign, a decimal exponent and an equally spaced fraction. The more bits the exponent takes, the fewer
    the fraction has (Dettmers et al. 2022, 8-bit Optimizers via Block-wise Quantization, section 2.1).
    """
    first, positive = np.float32(0.1), []
    for exponent in range(7):
        # From both ends, with a float32 step, as torch.linspace computes them.
        steps = np.arange(2**exponent + 1)
        step = (np.float32(1) - first) / np.float32(2**exponent)
        low, high = float(first) + float(step) * steps, 1 - float(step) * steps[::-1]
        bounds = np.where(steps < steps.size // 2, low, high).astype(np.float32)
        means = (bounds[:-1] + bounds[1:]) / np.float32(2)
        positive += (np.float32(10.0 ** (exponent - 6)) * means).tolist()
    return np.sort(np.array([0.0, 1.0, *positive, *(-value for value in positive)], np.float32))


@dataclasses.dataclass(frozen=True)
class QuantizedMatrix:
    """Holds a quantized torch matrix [O,I] on the host.

    Attributes:
      codes: ``int8``: int8 [O,I]. 4 bits: uint8 [ceil(O*I/2)], of two consecutive codes the first in the high bits.
      scales: largest magnitude of each row (``int8``, float32 [O]) or block (float32 [ceil(O*I/block)]); with double
        quantization codes of ``nested_levels``, uint8.
      nested_scales: float32, one for each 256 of ``scales``; None without double quantization.
      offset: float32 scalar, added to the dequantized ``scales``; None without double quantization.
      scheme: ``int8``, ``int4``, ``nf4`` or ``fp4``.
      shape: (O, I).
      block: inputs that share a scale; for ``int8`` all.
      dtype: dtype in which the values are read: that of the model that another program quantized, float32 of ours.
    """

    codes: np.ndarray
    scales: np.ndarray
    nested_scales: np.ndarray | None
    offset: np.ndarray | None
    scheme: str
    shape: tuple[int, int]
    block: int
    dtype: np.dtype

    @property
    def is_regular(self) -> bool:
        """Returns whether no block spans two rows, so that the matrix can be stored as a ``QuantizedArray``."""
        return self.scheme == "int8" or self.shape[1] % self.block == 0

    def plain_scales(self) -> np.ndarray:
        """Returns the scales in float32, after double quantization is undone."""
        if self.nested_scales is None or self.offset is None:
            return self.scales
        scales = nested_levels()[self.scales] * np.repeat(self.nested_scales, NESTED_BLOCK)[: self.scales.size]
        return scales + self.offset

    def dequantize(self) -> np.ndarray:
        """Returns the values, float32 [O,I]."""
        if self.scheme == "int8":
            return self.codes.astype(np.float32) * (self.scales * INT8_STEP)[:, None]
        size = self.shape[0] * self.shape[1]
        codes = np.stack([self.codes >> 4, self.codes & 15], axis=-1).reshape(-1)[:size]
        values = levels(self.scheme)[codes]
        if size % self.block:
            return (values * np.repeat(self.plain_scales(), self.block)[:size]).reshape(self.shape)
        return (values.reshape(-1, self.block) * self.plain_scales()[:, None]).reshape(self.shape)

    def take_rows(self, rows: np.ndarray) -> "QuantizedMatrix":
        """Returns the matrix of some rows of a regular one. Double quantization is undone where its blocks are cut."""
        matrix = self
        if self.nested_scales is not None and self.offset is not None:
            positions = np.arange(self.scales.size).reshape(self.shape[0], -1)[rows].reshape(-1)
            blocks = positions // NESTED_BLOCK
            if blocks.size % NESTED_BLOCK or np.any(np.ptp(blocks.reshape(-1, NESTED_BLOCK), axis=1)):
                matrix = dataclasses.replace(self, scales=self.plain_scales(), nested_scales=None, offset=None)
            else:
                matrix = dataclasses.replace(self, nested_scales=self.nested_scales[blocks[::NESTED_BLOCK]])

        def take(array: np.ndarray) -> np.ndarray:
            return array.reshape(self.shape[0], -1)[rows]

        codes = take(matrix.codes)
        if self.scheme != "int8":
            codes = codes.reshape(-1)
        return dataclasses.replace(
            matrix, codes=codes, scales=take(matrix.scales).reshape(-1), shape=(len(rows), self.shape[1])
        )


def quantize(matrix: np.ndarray, scheme: str, *, block: int = 64, double_quantization: bool = False) -> QuantizedMatrix:
    """Quantizes a torch matrix.

    Args:
      matrix: finite floats [O,I], of any float dtype.
      scheme: ``int8``, ``int4`` or ``nf4``.
      block: inputs that share a scale, of the 4-bit schemes.
      double_quantization: store the scales in 8 bits; for 4-bit schemes.

    Raises:
      InputError: an option is not one of the possible ones, or a row has no whole number of blocks.
    """
    check_scheme(scheme, block, double_quantization)
    # The caller looks for NaN and infinity in the scales.
    with np.errstate(invalid="ignore", over="ignore"):
        return _quantize(matrix, scheme, block, double_quantization)


def _quantize(matrix: np.ndarray, scheme: str, block: int, double_quantization: bool) -> QuantizedMatrix:
    """Computes ``quantize`` after its options have been checked."""
    values, shape, dtype = matrix.astype(np.float32), (matrix.shape[0], matrix.shape[1]), np.dtype(np.float32)
    if scheme == "int8":
        scales = np.abs(values).max(axis=1)
        factors = np.float32(1) / np.where(scales == 0, np.float32(1), scales) * np.float32(127)
        codes = np.rint(values * factors[:, None]).astype(np.int8)
        return QuantizedMatrix(codes, scales, None, None, scheme, shape, shape[1], dtype)
    _check_blocks(shape, block)
    blocks = values.reshape(-1, block)
    scales = np.abs(blocks).max(axis=1)
    normalized = np.clip(blocks * (np.float32(1) / np.maximum(scales, _SMALLEST))[:, None], -1, 1)
    codes = _nearest(normalized.reshape(-1), levels(scheme))
    packed = codes[::2] << 4 | codes[1::2]
    if not double_quantization:
        return QuantizedMatrix(packed, scales, None, None, scheme, shape, block, dtype)
    offset = np.float32(np.mean(scales, dtype=np.float64))
    nested = quantize_scales(scales, offset)
    return QuantizedMatrix(packed, *nested, np.asarray(offset), scheme, shape, block, dtype)


def empty_matrix(
    shape: tuple[int, int], scheme: str, *, block: int = 64, double_quantization: bool = False
) -> QuantizedMatrix:
    """Returns what ``quantize`` returns for a matrix of zeros [O,I], without computing it: for shapes and dtypes."""
    check_scheme(scheme, block, double_quantization)
    dtype, size = np.dtype(np.float32), shape[0] * shape[1]
    if scheme == "int8":
        return QuantizedMatrix(
            np.zeros(shape, np.int8), np.zeros(shape[0], dtype), None, None, scheme, shape, shape[1], dtype
        )
    _check_blocks(shape, block)
    codes, scales = np.zeros(size // 2, np.uint8), np.zeros(size // block, dtype)
    if not double_quantization:
        return QuantizedMatrix(codes, scales, None, None, scheme, shape, block, dtype)
    nested = np.zeros(-(-scales.size // NESTED_BLOCK), dtype)
    return QuantizedMatrix(codes, scales.astype(np.uint8), nested, np.zeros((), dtype), scheme, shape, block, dtype)


def _check_blocks(shape: tuple[int, int], block: int) -> None:
    if shape[1] % block:
        raise InputError(f"a matrix of shape {list(shape)} has no whole blocks of {block} inputs; use int8")


def quantize_scales(scales: np.ndarray, offset: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Quantizes the scales [S] minus ``offset`` to 8 bits: double quantization.

    Returns:
      Codes of ``nested_levels``, uint8 [S], and the largest magnitude of each 256 of them, float32 [ceil(S/256)].
    """
    centered = scales - offset
    padded = np.zeros(-(-centered.size // NESTED_BLOCK) * NESTED_BLOCK, np.float32)
    padded[: centered.size] = centered
    blocks = padded.reshape(-1, NESTED_BLOCK)
    nested_scales = np.abs(blocks).max(axis=1)
    normalized = blocks * (np.float32(1) / np.maximum(nested_scales, _SMALLEST))[:, None]
    # bitsandbytes looks up the level that is nearest to the nearest of 65536 equally spaced values.
    spaced = np.floor((normalized.reshape(-1)[: centered.size] + np.float32(1)) * np.float32(32767.5) + np.float32(0.5))
    return _nearest(spaced * np.float32(2 / 65535) - np.float32(1), nested_levels()), nested_scales


def _nearest(values: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns the index of the level nearest to each value, uint8; of two equally near ones the lower."""
    return np.searchsorted((levels[:-1] + levels[1:]) / np.float32(2), values, side="left").astype(np.uint8)


def check_scheme(scheme: Any, block: Any = 64, double_quantization: bool = False) -> None:
    """Checks the options of ``quantize``. Raises InputError."""
    check_choice("quantization", scheme, SCHEMES)
    if scheme == "int8" and (double_quantization or block != BLOCKS[0]):
        raise InputError("int8 has one scale for each output channel; blocks and double quantization are for 4 bits")
    if block not in BLOCKS:
        small = "too small a block" if isinstance(block, int) and block < BLOCKS[0] else "no size of a block"
        raise InputError(f"block {shown(block)}: {small}; give one of {', '.join(map(str, BLOCKS))}")


def join_rows(parts: Sequence[tuple[np.ndarray, QuantizedMatrix]]) -> QuantizedMatrix:
    """Returns the matrix of which each part has some rows, given their indices.

    Undoes ``QuantizedMatrix.take_rows``.
    """
    if len(parts) == 1:
        return parts[0][1]
    first, outputs = parts[0][1], sum(rows.size for rows, _ in parts)

    def joined(pick: Any) -> np.ndarray:
        found = pick(first).reshape(first.shape[0], -1)
        out = np.empty((outputs, found.shape[1]), found.dtype)
        for rows, matrix in parts:
            out[rows] = pick(matrix).reshape(matrix.shape[0], -1)
        return out

    nested_scales = first.nested_scales
    if nested_scales is not None:
        positions = np.arange(outputs * (first.scales.size // first.shape[0])).reshape(outputs, -1)
        nested_scales = np.empty(positions.size // NESTED_BLOCK, np.float32)
        for rows, matrix in parts:
            nested_scales[positions[rows].reshape(-1)[::NESTED_BLOCK] // NESTED_BLOCK] = matrix.nested_scales
    codes = joined(lambda matrix: matrix.codes)
    return dataclasses.replace(
        first,
        codes=codes if first.scheme == "int8" else codes.reshape(-1),
        scales=joined(lambda matrix: matrix.scales).reshape(-1),
        nested_scales=nested_scales,
        shape=(outputs, first.shape[1]),
    )
