"""Chooses what of a model is quantized, and converts between torch matrices and quantized leaves of the tree."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from deberta_jax.errors import InputError, listed, shown
from deberta_jax.ops.quantization import QuantizedArray, matrix_of, quantized_table, stack_matrices, table_matrix
from deberta_jax.ops.quantized_matrix import QuantizedMatrix, check_scheme, join_rows, quantize
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
      keep: patterns (``*``, ``?``) of tensors to keep in float, such as ``*.layer.0.*`` or ``pooler.*``.

    Raises:
      InputError: an option is not one of the possible ones.
    """

    scheme: str
    double: bool = False
    block: int = 64
    embeddings: bool = False
    keep: Sequence[str] = ()

    def __post_init__(self):
        check_scheme(self.scheme, self.block, self.double)
        if isinstance(self.keep, str) or not all(isinstance(pattern, str) for pattern in self.keep):
            raise InputError(f"keep={shown(self.keep)}: give a list of patterns, such as ['pooler.*']")

    def scheme_of(self, row: Row, name: str) -> str | None:
        """Returns the scheme for a tensor of a row; None if it is kept in float."""
        if not is_quantizable(row) or any(fnmatchcase(name, pattern) for pattern in self.keep):
            return None
        if row.torch == _WORD_EMBEDDINGS:
            return "int8" if self.embeddings else None
        last = row.torch.endswith(("classifier.weight", "qa_outputs.weight"))
        return None if last else self.scheme

    def quantize(self, matrix: np.ndarray, scheme: str, name: str) -> QuantizedMatrix:
        """Quantizes a torch matrix by ``scheme``. Raises InputError, which names the tensor, if it cannot be."""
        options = {} if scheme == "int8" else {"block": self.block, "double_quantization": self.double}
        try:
            return quantize(matrix, scheme, **options)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None

    def check_used(self, names: Sequence[str]) -> None:
        """Checks that every pattern of ``keep`` matches a tensor. Raises InputError for one that does not."""
        idle = [pattern for pattern in self.keep if not any(fnmatchcase(name, pattern) for name in names)]
        if idle:
            raise InputError(f"keep {listed(idle)}: matches no tensor of the model")


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
        matrices = self._last[1]
        if row.torch == _WORD_EMBEDDINGS:
            return quantized_table(matrices[0])
        if len(row.tree) > 1:
            rows = rows_of_leaves(row, self._plan.sizes)[index]
            matrices = [matrix.take_rows(rows) for matrix in matrices]
        shape = self._plan.shapes[path]
        return stack_matrices(matrices, shape[1:] if row.layered else shape, layered=row.layered)

    def _read(self, row: Row, tensors: Sequence[Any]) -> list[QuantizedMatrix] | None:
        """Returns the matrices of a row, one for each layer; None if they stay in float."""
        q, names = self._quantization, row.names(self._plan.config)
        if q is not None:
            schemes = {q.scheme_of(row, name) for name in names}
            if len(schemes) > 1:
                raise InputError(f"keep: {row.torch} is one array of all layers here; keep all of them or none")
            scheme = schemes.pop()
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
