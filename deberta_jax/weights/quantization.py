"""Chooses what of a model is quantized, and converts between torch matrices and quantized leaves of the tree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, check_choice, shown
from deberta_jax.models import Model, abstract_params, spec_of_model
from deberta_jax.ops.quantization import QuantizedArray, matrix_of, quantized_table, stack_matrices, table_matrix
from deberta_jax.ops.quantized_matrix import SCHEMES, QuantizedMatrix, check_scheme, empty_matrix, join_rows, quantize
from deberta_jax.weights import names as table
from deberta_jax.weights.account import LoadPlan
from deberta_jax.weights.names import Row, Sizes
from deberta_jax.weights.quantized_tensors import QuantizedTensor, config_entry

LINEAR_LAYERS = (table.LINEAR, table.HEADS_IN, table.HEADS_OUT, table.QKV)
"""Lists the transforms of the matrices of torch's ``Linear``."""

_WORD_EMBEDDINGS = "deberta.embeddings.word_embeddings.weight"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """Holds how a model is quantized.

    The kernels of all dense layers of the encoder and of the heads are, except the last layer of a head, which computes
    the logits.

    Attributes:
      scheme: ``int8``, ``int4`` or ``nf4``.
      double: store the scales of the blocks in 8 bits, which saves 0.37 bits for each weight; for 4 bits.
      block: inputs that share a scale; for 4 bits.
      embeddings: also quantize the word embeddings, by ``int8`` with one scale for each row, whatever the scheme.
      keep: tensors to keep in float, in all layers: names of modules, such as ``pooler``, ``attention.self`` or
        ``embeddings``, or patterns (``*``, ``?``) of whole names.

    Raises:
      InputError: an option is not one of the possible ones.
    """

    scheme: str
    double: bool = False
    block: int = 64
    embeddings: bool = False
    keep: Sequence[str] = ()

    def __post_init__(self):
        for name in ("double", "embeddings"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}={shown(getattr(self, name))}: give True or False")
        check_scheme(self.scheme, self.block, self.double)
        if isinstance(self.keep, str) or not all(isinstance(pattern, str) for pattern in self.keep):
            raise InputError(f"keep={shown(self.keep)}: give a list of modules or patterns, such as ['pooler']")
        contrary = next((pattern for pattern in self.keep if _matches(_WORD_EMBEDDINGS, pattern)), None)
        if self.embeddings and contrary is not None:
            raise InputError(f"keep {contrary!r}: keeps the word embeddings, which are to be quantized; leave one out")

    def scheme_of(self, row: Row, name: str) -> str | None:
        """Returns the scheme for a tensor of a row; None if it is kept in float."""
        if not is_quantizable(row) or any(_matches(name, pattern) for pattern in self.keep):
            return None
        if row.torch == _WORD_EMBEDDINGS:
            return "int8" if self.embeddings else None
        last = row.torch.endswith(("classifier.weight", "qa_outputs.weight"))
        return None if last else self.scheme

    def quantize(self, matrix: np.ndarray | tuple[int, int], scheme: str, name: str) -> QuantizedMatrix:
        """Quantizes a torch matrix by ``scheme``; given a shape [O,I], makes the result's arrays without values.

        Raises:
          InputError: it cannot be quantized; the message names the tensor.
        """
        options: Any = {} if scheme == "int8" else {"block": self.block, "double_quantization": self.double}
        make: Any = quantize if isinstance(matrix, np.ndarray) else empty_matrix
        try:
            return make(matrix, scheme, **options)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None

    def check_keep(self, config: DebertaConfig, parts: Sequence[str]) -> None:
        """Checks that each entry of ``keep`` matches a tensor of a model, in all layers or none, but not every tensor.

        Raises:
          InputError: it does not, or nothing is left to quantize.
        """
        all_rows = table.table(config, parts)
        rows = [row.names(config) for row in all_rows]
        for pattern in self.keep:
            found = [[_matches(name, pattern) for name in names] for names in rows]
            if not any(map(any, found)):
                raise InputError(f"keep {pattern!r}: matches no tensor of the model")
            if any(any(matches) and not all(matches) for matches in found):
                raise InputError(f"keep {pattern!r}: matches some of the layers; all layers are one array here")
        if not any(self.scheme_of(row, name) for row, names in zip(all_rows, rows, strict=True) for name in names):
            raise InputError(f"keep {shown(list(self.keep))}: nothing is left to quantize")


def _matches(name: str, pattern: str) -> bool:
    """Returns whether the name of a tensor has a module, or all of it matches a pattern."""
    return fnmatchcase(name, pattern) or f".{pattern}." in f".{name}."


def scheme_of_bits(bits: int | None, scheme: str | None) -> str:
    """Returns the scheme that a number of bits, a scheme, or both stand for; for 4 bits ``nf4``.

    Raises:
      InputError: neither is given, they contradict each other, or there is no such scheme.
    """
    default = {8: "int8", 4: "nf4"}
    if bits is not None and bits not in default:
        raise InputError(f"bits {bits}: weights are quantized to 8 or 4 bits")
    if scheme is None:
        if bits is None:
            raise InputError("give the scheme (int8, int4 or nf4) or the bits (8 or 4)")
        return default[bits]
    check_choice("--scheme", scheme, SCHEMES)
    if bits is not None and (bits == 8) != (scheme == "int8"):
        raise InputError(f"bits {bits}: the scheme {scheme} has {8 if scheme == 'int8' else 4}; leave out one of them")
    return scheme


def as_quantization(value: "Quantization | str | None") -> "Quantization | None":
    """Returns the options that a user gave as such, or as the name of a scheme. Raises InputError for other values."""
    if value is None or isinstance(value, Quantization):
        return value
    return Quantization(scheme=value)


def is_quantizable(row: Row) -> bool:
    """Returns whether a leaf of a row may be quantized: the kernels of ``Linear``, and the word embeddings.

    Not the matrix of an untied decoder, nor parameters of heads that are defined outside this package.
    """
    if row.torch == _WORD_EMBEDDINGS:
        return True
    return row.transform in LINEAR_LAYERS and row.shape not in ("N N", "V E") and table.is_built_in(row.torch)


def rows_of_leaves(row: Row, sizes: Sizes) -> list[np.ndarray]:
    """Returns which rows of a torch matrix each leaf of its row has, int [O] each: all, except for v1's ``in_proj``."""
    indices = np.arange(row.torch_shape(sizes)[0])
    if len(row.tree) == 1:
        return [indices]
    return [leaf.reshape(-1) for leaf in row.transform.to_tree(indices[:, None], sizes)]


def leaf_of_row(row: Row, index: int, matrices: Sequence[QuantizedMatrix], sizes: Sizes) -> QuantizedArray:
    """Returns one of the leaves of a row, given the row's torch matrices, one for each layer."""
    if row.torch == _WORD_EMBEDDINGS:
        return quantized_table(matrices[0])
    if len(row.tree) > 1:
        rows = rows_of_leaves(row, sizes)[index]
        matrices = [matrix.take_rows(rows) for matrix in matrices]
    return stack_matrices(matrices, row.leaf_shapes(sizes)[index], layered=row.layered)


def quantized_shapes(model: Model, quantization: Quantization) -> dict[str, Any]:
    """Returns the parameter tree of a quantized model with a ``jax.ShapeDtypeStruct`` for every array.

    Raises:
      InputError: a matrix has no whole blocks.
    """
    head, spec = spec_of_model(model)
    sizes, layers = table.sizes(model.config, spec.num_outputs(model.config)), model.config.num_hidden_layers
    quantized: dict[str, QuantizedArray] = {}
    for row in table.table(model.config, spec.parts_in(model.config)):
        name = row.names(model.config)[0]
        scheme = quantization.scheme_of(row, name)
        if scheme is None:
            continue
        outputs, inputs = row.torch_shape(sizes)
        matrix = quantization.quantize((outputs, inputs), scheme, name)
        for index, path in enumerate(row.tree):
            stack = (layers,) if row.layered else ()
            array_of = lambda a, stack=stack: jax.ShapeDtypeStruct((*stack, *a.shape[len(stack) :]), a.dtype)
            quantized[path] = jax.tree.map(array_of, leaf_of_row(row, index, [matrix], sizes))

    def leaf(keys: Any, shape: Any) -> Any:
        path = "/".join(key.key for key in keys)
        return quantized.get(f"{table.ENCODER}/{path}" if head == "encoder" else path, shape)

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(model))


class QuantizedLeaves:
    """Gives the quantized leaves of a plan: those that the file has so, or that ``quantization`` asks for.

    The matrices of the last row are kept, because several leaves may come from one row.
    """

    def __init__(self, plan: LoadPlan, quantization: Quantization | None):
        self._plan, self._quantization = plan, quantization
        self._last: tuple[Row, list[QuantizedMatrix]] | None = None

    def leaf(self, path: str) -> QuantizedArray | None:
        """Returns a leaf, with arrays of the host; None if it is not quantized. Raises InputError as ``quantize``."""
        row, index, tensors = self._plan.fills[path]
        if not is_quantizable(row):
            return None
        if self._last is None or self._last[0] is not row:
            matrices = self._read(row, tensors)
            if matrices is None:
                return None
            self._last = row, matrices
        return leaf_of_row(row, index, self._last[1], self._plan.sizes)

    def _read(self, row: Row, tensors: Sequence[Any]) -> list[QuantizedMatrix] | None:
        """Returns the matrices of a row, one for each layer; None if they stay in float."""
        q, names = self._quantization, row.names(self._plan.config)
        if q is not None:
            scheme = q.scheme_of(row, names[0])
            if scheme is None:
                return None
            return [q.quantize(t.read(), scheme, name) for t, name in zip(tensors, names, strict=True)]
        schemes = {tensor.scheme if isinstance(tensor, QuantizedTensor) else None for tensor in tensors}
        if None in schemes or len(schemes) > 1 or (row.torch == _WORD_EMBEDDINGS and schemes != {"int8"}):
            return None
        matrices = [tensor.read_matrix() for tensor in tensors]
        alike = len({(matrix.block, matrix.dtype) for matrix in matrices}) == 1
        return matrices if alike and all(matrix.is_regular for matrix in matrices) else None


def matrix_of_row(row: Row, leaves: Sequence[QuantizedArray], layer: int | None, sizes: Sizes) -> QuantizedMatrix:
    """Returns the torch matrix of a row, given its leaves, of one layer if ``layer`` is given."""
    if row.torch == _WORD_EMBEDDINGS:
        return table_matrix(leaves[0])
    matrices = [matrix_of(leaf, layer) for leaf in leaves]
    return join_rows(list(zip(rows_of_leaves(row, sizes), matrices, strict=True)))


class Quantizer:
    """Quantizes the tensors of a checkpoint while they are listed for writing, and remembers what it did.

    Attributes:
      matrices: the quantized matrices by the names of their tensors.
      kept: names of the tensors of linear layers that stay in float.
    """

    def __init__(self, quantized: Callable[[Row, int | None, str, Callable[[], np.ndarray]], QuantizedMatrix | None]):
        self._quantized = quantized
        self.matrices: dict[str, QuantizedMatrix] = {}
        self.kept: list[str] = []

    def __call__(
        self, row: Row, layer: int | None, name: str, compute: Callable[[], np.ndarray]
    ) -> QuantizedMatrix | None:
        """Returns the quantized matrix of a tensor; None if it stays in float.

        Args:
          row, layer: the row of the tensor, and its layer if there is one for each.
          name: the name of the tensor in the file.
          compute: returns its values.
        """
        matrix = self._quantized(row, layer, name, compute) if is_quantizable(row) else None
        if matrix is not None:
            self.matrices[name] = matrix
        elif row.transform in LINEAR_LAYERS:
            self.kept.append(name)
        return matrix

    def config(self) -> dict[str, Any]:
        """Returns what config.json says of the quantization; {} if nothing was quantized."""
        return {"quantization_config": config_entry(self.matrices, self.kept)} if self.matrices else {}


def quantized_names(plan: LoadPlan) -> Mapping[str, str]:
    """Returns the scheme of each tensor of a plan that the file has quantized, by its name."""
    tensors = (tensor for _, _, tensors in plan.fills.values() for tensor in tensors)
    return {tensor.name: tensor.scheme for tensor in tensors if isinstance(tensor, QuantizedTensor)}


def other_schemes(plan: LoadPlan, scheme: str) -> list[str]:
    """Returns the schemes other than ``scheme`` that kernels of a plan's file have."""
    names = quantized_names(plan)
    return sorted({found for name, found in names.items() if not name.endswith("word_embeddings.weight")} - {scheme})
