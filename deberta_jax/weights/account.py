"""Plans how the tensors of a file fill the leaves of the tree, and explains every tensor and every leaf.

A tensor is loaded or dropped for a reason; a leaf is filled or initialized. Anything else is an error. Only tensors
whose values decide are read: a decoder that may be tied, and biases that may be zero.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from deberta_jax.config import V1, V2, DebertaConfig
from deberta_jax.errors import InputError, listed
from deberta_jax.models import all_parts
from deberta_jax.weights import names as table
from deberta_jax.weights.names import Row
from deberta_jax.weights.report import SourceRow, TargetRow
from deberta_jax.weights.source import FLOATS, Checkpoint, Folded, Tensor, kind

Foreign = Literal["refused", "dropped", "listed"]

_WORD_EMBEDDINGS = "deberta.embeddings.word_embeddings.weight"
_POSITIONS = "deberta.embeddings.position_embeddings.weight"
_DECODER = {"cls.predictions.decoder.weight": _WORD_EMBEDDINGS, "cls.predictions.decoder.bias": "cls.predictions.bias"}

# Names in an error message: how many are shown, and how many are searched for similar ones.
_MOST_SHOWN, _MOST_COMPARED = 50, 500

# Names of the tensors that bitsandbytes, GPTQ, AWQ, PyTorch and others store beside quantized integers.
_SCALES = re.compile(
    r"\.(SCB|absmax|quant_map|nested_absmax|nested_quant_map|qweight|qzeros|weight_scale|weight_format|"
    r"weight_zero_point|scale|zero_point)$|quant_state|_packed_params"
)


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """Holds how a tree is filled from a file.

    Attributes:
      config, parts: the architecture, and the parts of heads in the tree.
      sizes: the sizes of the letters in ``names``.
      fills: for each filled leaf its row, its index among the row's leaves, and its tensors, one for each layer.
      shapes: the shape of every leaf of the tree, filled or not, with its axis of layers.
      tensors: what became of every tensor of the file.
      targets: where every leaf comes from.
      notes: remarks for the report.
      problem: why the tree cannot be filled, for a plan that lists tensors only; empty for one that can be carried out.
    """

    config: DebertaConfig
    parts: tuple[str, ...]
    sizes: Mapping[str, int]
    fills: Mapping[str, tuple[Row, int, tuple[Tensor, ...]]]
    shapes: Mapping[str, tuple[int, ...]]
    tensors: tuple[SourceRow, ...]
    targets: tuple[TargetRow, ...]
    notes: tuple[str, ...]
    problem: str = ""

    def dtype(self, path: str) -> np.dtype:
        """Returns the dtype in which the file stores a leaf; float32 if the dtypes of its layers differ."""
        dtypes = {tensor.dtype for tensor in self.fills[path][2]}
        return dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def slice(self, path: str, layer: int | None) -> np.ndarray:
        """Reads one leaf, or one layer of it, in the dtype of the file."""
        row, index, tensors = self.fills[path]
        return row.transform.to_tree(tensors[layer or 0].read(), self.sizes)[index]


def parts_present(file_tensors: Iterable[str]) -> tuple[str, ...]:
    """Returns the parts of heads of which a file has a tensor, given the canonical names of its tensors."""
    present = {table.part_of(name) for name in file_tensors if table.is_head_name(name)}
    return tuple(part for part in all_parts() if part in present)


def layout_of(config: DebertaConfig, file_tensors: Mapping[str, Tensor]) -> tuple[DebertaConfig, str, list[str]]:
    """Returns the config, the layout (``hf`` or ``microsoft``) and notes of a file.

    A v1 file with the names of v2's modules has the layout ``microsoft``. If its key biases are not zero, it is no
    longer a v1 model, and its config becomes that of a v2 model.
    """
    prefix = "deberta.encoder.layer.0.attention.self"
    if config.model_type != V1 or f"{prefix}.query_proj.weight" not in file_tensors:
        return config, "hf", []
    biases = [f"deberta.encoder.layer.{i}.attention.self.key_proj.bias" for i in range(config.num_hidden_layers)]
    if all(np.count_nonzero(file_tensors[name].read()) == 0 for name in biases if name in file_tensors):
        return config, "microsoft", ["v1 weights under the names of Microsoft's modules"]
    config = dataclasses.replace(config, model_type=V2)
    return config, "hf", ["a v1 model trained on with key biases, which v1 lacks: read as model_type deberta-v2"]


def plan_load(
    checkpoint: Checkpoint,
    file_tensors: Mapping[str, Tensor],
    config: DebertaConfig,
    parts: tuple[str, ...],
    labels: int,
    *,
    new: Mapping[str, str],
    may_be_new: bool,
    notes: Collection[str] = (),
    outside: Mapping[str, Tensor] | None = None,
    rows: Collection[SourceRow] = (),
    foreign: Foreign = "refused",
) -> LoadPlan:
    """Returns the plan that fills the tree of an encoder and ``parts`` from a file.

    Args:
      file_tensors: the tensors of the file by canonical name.
      labels: number of rows of the classifier in the tree.
      new: parts that are initialized though the file may have them, with the reason.
      may_be_new: parts that the file lacks are initialized; otherwise they are an error.
      notes: remarks for the report.
      outside: tensors that do not belong to the model, by their own names.
      rows: tensors that are explained already.
      foreign: whether tensors outside and those of unknown heads are refused or dropped. They are always refused if
        something else is missing or unexplained, because they may be the missing tensors under wrong names.
        ``listed``: they are dropped, and in that case the plan has a ``problem``, and rows for all tensors of the file.

    Raises:
      InputError: a tensor or a leaf is not explained; the message lists up to 50 of each kind. Or, for ``listed`` too,
        the file has a form that is not supported, such as quantized weights.
    """
    config, layout, more = layout_of(config, file_tensors)
    sizes = table.sizes(config, labels)
    table_rows = table.table(config, parts, layout)
    present = set(parts_present(file_tensors))
    absent = {part: "the file has no such head" for part in parts if part not in present} if may_be_new else {}
    absent |= new
    match = _match(file_tensors, table_rows, config, sizes, absent)
    sources, unexplained = _explain(file_tensors, match.used, config, parts, absent)
    unknown = {
        name: file_tensors[name]
        for name in unexplained
        if table.part_of(name) != table.ENCODER and not table.is_head_name(name)
    }
    unexplained = [name for name in unexplained if name not in unknown]
    unknown |= outside or {}
    problem = ""
    if match.missing or match.wrong or unexplained or (unknown and foreign == "refused"):
        cause = _common_cause(file_tensors)
        problem = cause or _error_message(match, unexplained, unknown, file_tensors)
        if cause is not None or foreign != "listed":
            raise InputError(f"{checkpoint.path}: {problem}")
        sources = _with_problems(sources, match.wrong, file_tensors, unexplained)
    sources += [
        SourceRow(t.name, t.shape, kind(t.dtype), "dropped", "of no head that is known here") for t in unknown.values()
    ]
    if unknown and not problem:
        more = [*more, f"left out, of no head that is known here: {listed(t.name for t in unknown.values())}"]
    targets = tuple(match.targets)
    whole = (*rows, *sources)
    return LoadPlan(config, parts, sizes, match.fills, match.shapes, whole, targets, (*notes, *more), problem)


def _with_problems(
    sources: Iterable[SourceRow],
    wrong: Mapping[str, str],
    file_tensors: Mapping[str, Tensor],
    unexplained: Iterable[str],
) -> list[SourceRow]:
    """Returns the rows of tensors with those that do not fit marked as unknown, and rows for the unexplained ones."""
    misfits = {file_tensors[name].name: reason for name, reason in wrong.items()}
    rows = [
        dataclasses.replace(row, fate="unknown", reason=misfits[row.name]) if row.name in misfits else row
        for row in sources
    ]
    others = (file_tensors[name] for name in unexplained)
    return rows + [SourceRow(t.name, t.shape, kind(t.dtype), "unknown", "of no part of the model") for t in others]


@dataclasses.dataclass
class _Match:
    """Holds the result of looking up the tensors of rows in a file.

    Attributes:
      fills, shapes, targets: as in ``LoadPlan``.
      used: names of the tensors in use; with the reason for those that fill no leaf.
      missing: names of tensors that the file lacks.
      wrong: for tensors with another shape or dtype than expected, by name, both.
    """

    fills: dict[str, tuple[Row, int, tuple[Tensor, ...]]] = dataclasses.field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    targets: list[TargetRow] = dataclasses.field(default_factory=list)
    used: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    wrong: dict[str, str] = dataclasses.field(default_factory=dict)


def _match(
    file_tensors: Mapping[str, Tensor],
    rows: Iterable[Row],
    config: DebertaConfig,
    sizes: Mapping[str, int],
    absent: Mapping[str, str],
) -> _Match:
    """Looks up the tensors of rows in a file, except those of ``absent`` parts, which are initialized."""
    out = _Match()
    for row in rows:
        for path, shape in zip(row.tree, row.leaf_shapes(sizes), strict=True):
            out.shapes[path] = (config.num_hidden_layers, *shape) if row.layered else shape
        part = table.part_of(row.torch)
        if part in absent:
            out.targets += [TargetRow(path, out.shapes[path], (), absent[part]) for path in row.tree]
            continue
        tensors = []
        for name in row.names(config):
            tensor = file_tensors.get(name)
            if tensor is None:
                out.missing += [name] if row.tree else []
                continue
            out.used[name] = "" if row.tree else "a bias that has no effect"
            tensors.append(tensor)
            if tensor.shape != row.torch_shape(sizes) or tensor.dtype not in FLOATS:
                expected = list(row.torch_shape(sizes))
                out.wrong[name] = f"is {kind(tensor.dtype)} {list(tensor.shape)}, expected {expected}"
        if len(tensors) == len(row.names(config)):
            out.fills |= {path: (row, index, tuple(tensors)) for index, path in enumerate(row.tree)}
            names = tuple(tensor.name for tensor in tensors)
            out.targets += [TargetRow(path, out.shapes[path], names) for path in row.tree]
    return out


def _explain(
    file_tensors: Mapping[str, Tensor],
    used: Mapping[str, str],
    config: DebertaConfig,
    parts: Collection[str],
    absent: Mapping[str, str],
) -> tuple[list[SourceRow], list[str]]:
    """Returns a row for every tensor of the file that can be explained, and the names of the others."""
    rows, unexplained = [], []
    for name, tensor in file_tensors.items():
        if name in used:
            drop_reason = used[name] or None
        else:
            drop_reason = _drop_reason(name, tensor, file_tensors, config, parts, absent)
            if drop_reason is None:
                unexplained.append(name)
                continue
        folded = isinstance(tensor, Folded)
        fate = "folded" if folded and drop_reason is None else "loaded" if drop_reason is None else "dropped"
        reason = drop_reason or (tensor.reason if isinstance(tensor, Folded) else "")
        rows.append(SourceRow(tensor.name, tensor.shape, kind(tensor.dtype), fate, reason))
    return rows, unexplained


def _drop_reason(
    name: str,
    tensor: Tensor,
    file_tensors: Mapping[str, Tensor],
    config: DebertaConfig,
    parts: Collection[str],
    absent: Mapping[str, str],
) -> str | None:
    """Returns why a tensor that fills no leaf may be dropped; None if there is no reason."""
    part = table.part_of(name)
    if name.endswith(".position_ids"):
        return "the numbers 0, 1, 2, ..., which need no storing"
    if name == _POSITIONS and not config.has_position_table:
        return "absolute positions, which only the masked-lm head's mask decoder reads"
    if name.endswith("_embeddings._weight"):
        sum_name = name.removesuffix("_weight") + "weight"
        if sum_name in file_tensors:
            return f"the difference that training kept apart; {sum_name} is the sum"
        if sum_name == _POSITIONS and not config.has_position_table:
            return "absolute positions, which only the masked-lm head's mask decoder reads"
    if table.is_head_name(name) and part in absent:
        return f"replaced: {absent[part]}"
    if table.is_head_name(name) and part not in parts:
        return f"belongs to another head ({part})"
    twin = file_tensors.get(_DECODER.get(name, ""))
    if twin is not None and config.tie_word_embeddings and np.array_equal(tensor.read(), twin.read()):
        return f"tied: equal to {_DECODER[name]}"
    return None


def _error_message(
    match: _Match, unexplained: list[str], unknown: Mapping[str, Tensor], file_tensors: Mapping[str, Tensor]
) -> str:
    """Returns one line that lists all tensors that are wrong, missing or not explained."""
    missing, wrong = match.missing, [f"{name} {reason}" for name, reason in match.wrong.items()]

    def near(names: list[str], pool: Sequence[str]) -> str:
        out = []
        collapsed = table.collapse(names)
        for name in collapsed[:_MOST_SHOWN]:
            close = difflib.get_close_matches(name, pool[:_MOST_COMPARED], 1, 0.8)
            out.append(f"{name} (nearest: {close[0]})" if close else name)
        return ", ".join(out) + _more(collapsed)

    sentences = []
    if wrong:
        sentences.append(f"do not fit config.json: {'; '.join(wrong[:_MOST_SHOWN])}{_more(wrong)}")
    if missing:
        sentences.append(f"missing: {near(missing, table.collapse([*unexplained, *unknown]))}")
    if unexplained or unknown:
        names = [*unexplained, *(tensor.name for tensor in unknown.values())]
        sentences.append(f"not explained: {near(names, table.collapse(missing))}")
        tied = [name for name in unexplained if name in _DECODER]
        if tied:
            sentences.append(f"{tied[0]} differs from {_DECODER[tied[0]]}: set tie_word_embeddings to false")
    if unknown:
        patterns = list(dict.fromkeys(_pattern(name) for name in unknown))
        sentences.append(
            f"To leave out the head that is not known here, pass ignore=[{listed(map(repr, patterns), 5)}] (on the "
            f"command line --ignore {listed(map(repr, patterns), 5).replace(',', '')}), or take the encoder alone "
            "(head 'encoder')"
        )
    heads = sorted({table.part_of(name) for name in missing} & set(all_parts()))
    if heads:
        has = ", ".join(parts_present(file_tensors)) or "none"
        sentences.append(
            f"the file has no head {', '.join(heads)} (it has: {has}); train one with finetune, or "
            "start one with from_pretrained(..., new_head=0) or convert --new-head 0"
        )
    count = len(missing) + len(wrong) + len(unexplained) + len(unknown)
    return f"{count} tensors do not add up. " + ". ".join(sentences)


def _common_cause(file_tensors: Mapping[str, Tensor]) -> str | None:
    """Returns an error message for a file in an unsupported form, such as quantized weights; None for other files."""
    quantized = [name for name, tensor in file_tensors.items() if _is_quantized(name, tensor)]
    if quantized:
        return (
            f"quantized weights ({listed(quantized, 3)}), of which float weights cannot be read; save the model "
            "dequantized (in transformers: model.dequantize())"
        )
    if any(name.endswith("_flat_param") for name in file_tensors):
        return "FSDP's flattened parameters; save the model with the state dict type FULL_STATE_DICT"
    if sum(tensor.shape == (0,) for tensor in file_tensors.values()) > len(file_tensors) // 2:
        return "empty tensors, as DeepSpeed ZeRO-3 leaves them; join its pieces with zero_to_fp32.py"
    return None


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""


def _pattern(name: str) -> str:
    """Returns a pattern for ``ignore`` that matches a tensor of an unknown head and the other tensors of that head."""
    components = name.split(".")
    kept = components[: 2 if components[0] in all_parts() else 1]
    return ".".join([*kept, "*"]) if len(kept) < len(components) else name


def _is_quantized(name: str, tensor: Tensor) -> bool:
    """Tells whether a tensor belongs to quantized weights: a matrix of integers, or the scales that dequantize it."""
    if table.part_of(name) not in (table.ENCODER, *all_parts()):
        return False
    return _SCALES.search(name) is not None or (tensor.dtype.kind in "iu" and name.endswith(".weight"))
