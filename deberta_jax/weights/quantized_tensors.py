"""Reads and writes quantized tensors as bitsandbytes' checkpoints have them.

8 bits: ``X.weight`` int8 [O,I] and ``X.SCB`` float32 [O]. 4 bits: ``X.weight`` uint8 [O*I/2,1], ``X.weight.absmax``,
``X.weight.quant_map`` and ``X.weight.quant_state.bitsandbytes__nf4``, a JSON object in bytes; with double quantization
also ``X.weight.nested_absmax`` and ``X.weight.nested_quant_map``. ``int4``, which bitsandbytes lacks, has the state
``deberta_jax__int4``.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from deberta_jax.errors import InputError, brief, shown
from deberta_jax.ops.quantized_matrix import NESTED_BLOCK, QuantizedMatrix, levels, nested_levels
from deberta_jax.storage import AnyPath
from deberta_jax.weights.adapters import Merged
from deberta_jax.weights.report import SourceRow
from deberta_jax.weights.safetensors_file import Pending
from deberta_jax.weights.source import BFLOAT16, Folded, Tensor, kind

_STATE = re.compile(r"(.+\.weight)\.quant_state\.(?:bitsandbytes|deberta_jax)__(nf4|fp4|int4)")
_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
_LONGEST_STATE = 4096


@dataclasses.dataclass(frozen=True)
class QuantizedTensor(Folded):
    """Describes a quantized matrix of a file. ``read`` dequantizes it."""

    scheme: str = ""
    """``int8``, ``int4``, ``nf4`` or ``fp4``."""
    read_matrix: Callable[[], QuantizedMatrix] = lambda: _no_matrix()
    """Reads the matrix as it is stored."""


def _no_matrix() -> QuantizedMatrix:
    raise AssertionError("a quantized tensor is made with its reader")


def fold_quantized(found: Mapping[str, Tensor], where: AnyPath) -> Merged:
    """Joins the tensors of each quantized matrix to one ``QuantizedTensor``.

    Args:
      found: tensors by canonical name.
      where: the file, for messages.

    Raises:
      InputError: the tensors of a matrix contradict each other, or have levels that no scheme here has.
    """
    out, rows, schemes = dict(found), [], {}
    for name, tensor in found.items():
        state = _STATE.fullmatch(name)
        if state is not None and state[1] in found:
            weight = state[1]
            parts = {n.removeprefix(f"{weight}."): t for n, t in found.items() if n.startswith(f"{weight}.")}
            folded = _four_bit(found[weight], tensor, parts, state[2], f"{where}: {brief(weight, 200)}")
            used = [f"{weight}.{part}" for part in parts]
        elif name.endswith(".SCB") and _is_int8(found, name):
            weight = f"{name.removesuffix('SCB')}weight"
            folded = _int8(found[weight], tensor)
            used = [name, f"{weight}_format"]
        else:
            continue
        out[weight] = folded
        schemes[folded.scheme] = None
        for part in (out.pop(part) for part in used if part in out):
            rows.append(SourceRow(part.name, part.shape, kind(part.dtype), "folded", "scales or levels of its matrix"))
    notes = (f"the file's matrices are quantized: {', '.join(schemes)}",) if schemes else ()
    return Merged(out, tuple(rows), notes)


def _is_int8(found: Mapping[str, Tensor], scales: str) -> bool:
    """Returns whether scales belong to an int8 matrix, one for each row."""
    weight = found.get(f"{scales.removesuffix('SCB')}weight")
    if weight is None or weight.dtype != np.int8 or len(weight.shape) != 2:
        return False
    return found[scales].shape == weight.shape[:1] and found[scales].dtype.kind == "f"


def _int8(weight: Tensor, scales: Tensor) -> QuantizedTensor:
    def read() -> QuantizedMatrix:
        codes, shape = weight.read(), (weight.shape[0], weight.shape[1])
        return QuantizedMatrix(
            codes, scales.read().astype(np.float32), None, None, "int8", shape, shape[1], _DTYPES["float32"]
        )

    return _tensor(weight, weight.shape, _DTYPES["float32"], "int8", read)


def _four_bit(weight: Tensor, state: Tensor, parts: Mapping[str, Tensor], scheme: str, where: str) -> QuantizedTensor:
    """Returns the matrix of 4-bit codes whose other tensors are ``parts``. Raises InputError if they do not agree."""
    said = _read_state(state, where)
    rows, columns, block, dtype = _described(said, scheme, where)
    blocks = -(-rows * columns // block)
    nested = "nested_absmax" in parts
    expected: dict[str, tuple[int, str]] = {"absmax": (blocks, "u" if nested else "f"), "quant_map": (16, "f")}
    if nested:
        expected |= {"nested_absmax": (-(-blocks // NESTED_BLOCK), "f"), "nested_quant_map": (256, "f")}
        offset = said.get("nested_offset")
        if said.get("nested_blocksize") != NESTED_BLOCK or not isinstance(offset, int | float):
            raise InputError(f"{where}: its scales are quantized otherwise than in blocks of {NESTED_BLOCK}")
    for part, (size, letter) in expected.items():
        tensor = parts.get(part)
        if tensor is None or int(np.prod(tensor.shape)) != size or tensor.dtype.kind != letter:
            raise InputError(f"{where}: damaged: {part} is missing, or not the {size} values that its shape needs")
    if int(np.prod(weight.shape)) * weight.dtype.itemsize != -(-rows * columns // 2):
        raise InputError(f"{where}: damaged: has {list(weight.shape)} codes for a matrix [{rows}, {columns}]")
    for part, known in (("quant_map", levels(scheme)), ("nested_quant_map", nested_levels())):
        if part in expected and not np.allclose(parts[part].read().reshape(-1), known, rtol=0, atol=1e-6):
            raise InputError(f"{where}: {part} has other levels than {scheme}; save the model dequantized")
    values = lambda part: np.ascontiguousarray(parts[part].read()).reshape(-1)

    def read() -> QuantizedMatrix:
        return QuantizedMatrix(
            np.ascontiguousarray(weight.read()).reshape(-1).view(np.uint8),
            values("absmax") if nested else values("absmax").astype(np.float32),
            values("nested_absmax").astype(np.float32) if nested else None,
            np.asarray(said["nested_offset"], np.float32) if nested else None,
            scheme,
            (rows, columns),
            block,
            dtype,
        )

    return _tensor(weight, (rows, columns), dtype, scheme, read)


def _described(said: Mapping[str, Any], scheme: str, where: str) -> tuple[int, int, int, np.dtype]:
    """Returns O, I, the size of a block and the dtype of a quant_state. Raises InputError if it has others."""
    shape, block, dtype = said.get("shape"), said.get("blocksize"), _DTYPES.get(str(said.get("dtype")))
    if isinstance(shape, list) and len(shape) == 2 and dtype is not None and said.get("quant_type") == scheme:
        numbers = [n for n in (*shape, block) if type(n) is int and 0 < n < 2**31]
        if len(numbers) == 3:
            return numbers[0], numbers[1], numbers[2], dtype
    raise InputError(f"{where}: damaged: its quant_state is {shown(said)}")


def _read_state(state: Tensor, where: str) -> dict[str, Any]:
    """Returns the JSON object in a tensor of bytes. Raises InputError if there is none."""
    try:
        if state.dtype != np.uint8 or int(np.prod(state.shape)) > _LONGEST_STATE:
            raise ValueError("not the bytes of a JSON object")
        said = json.loads(np.asarray(state.read()).tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: damaged: its quant_state is no JSON object ({brief(error, 120)})") from None
    if not isinstance(said, dict):
        raise InputError(f"{where}: damaged: its quant_state is no JSON object")
    return said


def _tensor(
    weight: Tensor, shape: tuple[int, ...], dtype: np.dtype, scheme: str, read: Callable[[], QuantizedMatrix]
) -> QuantizedTensor:
    return QuantizedTensor(
        weight.name,
        shape,
        dtype,
        lambda: read().dequantize().astype(dtype),
        f"quantized, {scheme}",
        scheme,
        read,
    )


def stored_tensors(name: str, matrix: QuantizedMatrix) -> list[Pending]:
    """Returns the tensors that a file has for a quantized matrix; ``name`` ends with ``.weight``."""
    if matrix.scheme == "int8":
        module = name.removesuffix("weight")
        return _pending(
            {name: matrix.codes, f"{module}SCB": matrix.scales, f"{module}weight_format": np.zeros((), np.uint8)}
        )
    state: dict[str, Any] = {
        "quant_type": matrix.scheme,
        "blocksize": matrix.block,
        "dtype": matrix.dtype.name,
        "shape": list(matrix.shape),
    }
    tensors = {
        name: matrix.codes[:, None],
        f"{name}.absmax": matrix.scales,
        f"{name}.quant_map": levels(matrix.scheme),
    }
    if matrix.nested_scales is not None and matrix.offset is not None:
        state |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(matrix.offset)}
        tensors |= {f"{name}.nested_absmax": matrix.nested_scales, f"{name}.nested_quant_map": nested_levels()}
    owner = "deberta_jax" if matrix.scheme == "int4" else "bitsandbytes"
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return _pending(tensors | {f"{name}.quant_state.{owner}__{matrix.scheme}": raw})


def _pending(tensors: Mapping[str, np.ndarray]) -> list[Pending]:
    return [Pending(name, array.shape, array.dtype, lambda array=array: array) for name, array in tensors.items()]


def config_entry(quantized: Mapping[str, QuantizedMatrix], kept: Sequence[str]) -> dict[str, Any]:
    """Returns ``quantization_config`` of config.json.

    transformers loads what bitsandbytes can hold: all matrices of one scheme, not ``int4``, and no embeddings.

    Args:
      quantized: the quantized matrices by the names of their tensors.
      kept: names of the tensors of linear layers that are not quantized.
    """
    matrices = list(quantized.values())
    schemes = sorted({matrix.scheme for matrix in matrices})
    nested = any(matrix.nested_scales is not None for matrix in matrices)
    skipped = sorted({name.removesuffix(".weight") for name in kept} | {"cls.predictions.decoder"})
    if len(schemes) > 1 or schemes == ["int4"] or any("embeddings" in name for name in quantized):
        return {"quant_method": "deberta_jax", "schemes": schemes, "skip_modules": skipped}
    entry = {"quant_method": "bitsandbytes", "llm_int8_skip_modules": skipped}
    if schemes == ["int8"]:
        return entry | {"load_in_8bit": True, "load_in_4bit": False, "llm_int8_threshold": 0.0}
    return entry | {
        "load_in_8bit": False,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": schemes[0],
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
    }
