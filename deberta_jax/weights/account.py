"""Every tensor of a file against every leaf of the tree: what fills what, what is left over and why, what is missing.

Nothing is read here but the few tensors whose values decide (a tied decoder, a zero bias, a GDES difference).
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

Foreign = Literal["refused", "dropped"]

_WORDS = "deberta.embeddings.word_embeddings.weight"
_POSITIONS = "deberta.embeddings.position_embeddings.weight"
_DECODER = {"cls.predictions.decoder.weight": _WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}

# In a message that says what does not fit.
_MOST_SHOWN, _MOST_COMPARED = 50, 500

# What bitsandbytes, GPTQ, AWQ, PyTorch and others keep beside integers.
_SCALES = re.compile(
    r"\.(SCB|absmax|quant_map|nested_absmax|nested_quant_map|qweight|qzeros|weight_scale|weight_format|"
    r"weight_zero_point|scale|zero_point)$|quant_state|_packed_params"
)


@dataclasses.dataclass(frozen=True)
class LoadPlan:
    """How a tree is filled. ``fills`` maps a leaf's path to its row, its place in the row, and its tensors by layer."""

    config: DebertaConfig
    parts: tuple[str, ...]
    sizes: Mapping[str, int]
    fills: Mapping[str, tuple[Row, int, tuple[Tensor, ...]]]
    shapes: Mapping[str, tuple[int, ...]]
    """Every leaf of the tree, filled or not, with its layer axis."""
    tensors: tuple[SourceRow, ...]
    targets: tuple[TargetRow, ...]
    notes: tuple[str, ...]

    def dtype(self, path: str) -> np.dtype:
        """The dtype the file keeps a leaf in; float32 where its layers differ."""
        kinds = {tensor.dtype for tensor in self.fills[path][2]}
        return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)

    def slice(self, path: str, layer: int | None) -> np.ndarray:
        """One leaf, or one layer of it, as the file stores it."""
        row, place, tensors = self.fills[path]
        return row.transform.to_tree(tensors[layer or 0].read(), self.sizes)[place]


def parts_present(found: Iterable[str]) -> tuple[str, ...]:
    """Returns the parts of which a file has a tensor, by their canonical names."""
    present = {table.part_of(name) for name in found if table.is_head_name(name)}
    return tuple(part for part in all_parts() if part in present)


def layout_of(config: DebertaConfig, found: Mapping[str, Tensor]) -> tuple[DebertaConfig, str, list[str]]:
    """Whether a v1 file names its projections as v2's modules do, and whether it then still is a v1 model."""
    prefix = "deberta.encoder.layer.0.attention.self"
    if config.model_type != V1 or f"{prefix}.query_proj.weight" not in found:
        return config, "hf", []
    biases = [f"deberta.encoder.layer.{i}.attention.self.key_proj.bias" for i in range(config.num_hidden_layers)]
    if all(np.count_nonzero(found[name].read()) == 0 for name in biases if name in found):
        return config, "microsoft", ["v1 weights under the names of Microsoft's modules"]
    config = dataclasses.replace(config, model_type=V2)
    return config, "hf", ["a v1 model trained on with key biases, which v1 lacks: read as model_type deberta-v2"]


def plan_load(
    checkpoint: Checkpoint,
    found: Mapping[str, Tensor],
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
    """Matches a file with the tree of an encoder and ``parts``.

    Args:
      found: the tensors by canonical name.
      labels: rows of the classifier in the tree.
      new: parts that are initialised though the file may hold them, with the reason.
      may_be_new: parts that the file lacks are initialised; otherwise their absence is an error.
      outside: tensors beside the model, by their own names.
      rows: tensors that are accounted for already.
      foreign: what becomes of tensors outside, and of those of heads that are not known. They are refused in any case
        where something else does not add up: they may be what is missing, misnamed.

    Raises:
      InputError: any tensor or leaf without an explanation; the one line lists them, up to 50 of a kind.
    """
    config, layout, more = layout_of(config, found)
    sizes = table.sizes(config, labels)
    table_rows = table.table(config, parts, layout)
    present = set(parts_present(found))
    absent = {part: "the file has no such head" for part in parts if part not in present} if may_be_new else {}
    absent |= new
    match = _match(found, table_rows, config, sizes, absent)
    sources, odd = _explain(found, match.used, config, parts, absent)
    strange = {
        name: found[name] for name in odd if table.part_of(name) != table.ENCODER and not table.is_head_name(name)
    }
    odd = [name for name in odd if name not in strange]
    strange |= outside or {}
    if match.missing or match.wrong or odd or (strange and foreign == "refused"):
        raise InputError(f"{checkpoint.path}: {_complaint(match, odd, strange, found)}")
    sources += [
        SourceRow(t.name, t.shape, kind(t.dtype), "dropped", "of no head that is known here") for t in strange.values()
    ]
    if strange:
        more = [*more, f"left out, of no head that is known here: {listed(t.name for t in strange.values())}"]
    targets = tuple(match.targets)
    return LoadPlan(config, parts, sizes, match.fills, match.shapes, (*rows, *sources), targets, (*notes, *more))


@dataclasses.dataclass
class _Match:
    """What the rows of the table find in a file: filled leaves and tensors in use, missing ones, and wrong ones."""

    fills: dict[str, tuple[Row, int, tuple[Tensor, ...]]] = dataclasses.field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    targets: list[TargetRow] = dataclasses.field(default_factory=list)
    used: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)


def _match(
    found: Mapping[str, Tensor],
    rows: Iterable[Row],
    config: DebertaConfig,
    sizes: Mapping[str, int],
    absent: Mapping[str, str],
) -> _Match:
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
            tensor = found.get(name)
            if tensor is None:
                out.missing += [name] if row.tree else []
                continue
            out.used[name] = "" if row.tree else "a bias that has no effect"
            tensors.append(tensor)
            if tensor.shape != row.torch_shape(sizes) or tensor.dtype not in FLOATS:
                out.wrong.append(
                    f"{name} is {kind(tensor.dtype)} {list(tensor.shape)}, expected {list(row.torch_shape(sizes))}"
                )
        if len(tensors) == len(row.names(config)):
            out.fills |= {path: (row, place, tuple(tensors)) for place, path in enumerate(row.tree)}
            names = tuple(tensor.name for tensor in tensors)
            out.targets += [TargetRow(path, out.shapes[path], names) for path in row.tree]
    return out


def _explain(
    found: Mapping[str, Tensor],
    used: Mapping[str, str],
    config: DebertaConfig,
    parts: Collection[str],
    absent: Mapping[str, str],
) -> tuple[list[SourceRow], list[str]]:
    """A row for every tensor of the file, and those for which there is none."""
    rows, odd = [], []
    for name, tensor in found.items():
        if name in used:
            why = used[name] or None
        else:
            why = _reason(name, tensor, found, config, parts, absent)
            if why is None:
                odd.append(name)
                continue
        folded = isinstance(tensor, Folded)
        fate = "folded" if folded and why is None else "loaded" if why is None else "dropped"
        reason = why or (tensor.reason if isinstance(tensor, Folded) else "")
        rows.append(SourceRow(tensor.name, tensor.shape, kind(tensor.dtype), fate, reason))
    return rows, odd


def _reason(
    name: str,
    tensor: Tensor,
    found: Mapping[str, Tensor],
    config: DebertaConfig,
    parts: Collection[str],
    absent: Mapping[str, str],
) -> str | None:
    """Why a tensor that fills nothing may be left out, or None."""
    part = table.part_of(name)
    if name.endswith(".position_ids"):
        return "the numbers 0, 1, 2, ..., which need no storing"
    if name == _POSITIONS and not config.has_position_table:
        return "absolute positions, which only the masked-lm head's mask decoder reads"
    if name.endswith("_embeddings._weight"):
        sum_name = name.removesuffix("_weight") + "weight"
        if sum_name in found:
            return f"the difference that training kept apart; {sum_name} is the sum"
        if sum_name == _POSITIONS and not config.has_position_table:
            return "absolute positions, which only the masked-lm head's mask decoder reads"
    if table.is_head_name(name) and part in absent:
        return f"replaced: {absent[part]}"
    if table.is_head_name(name) and part not in parts:
        return f"belongs to another head ({part})"
    twin = found.get(_DECODER.get(name, ""))
    if twin is not None and config.tie_word_embeddings and np.array_equal(tensor.read(), twin.read()):
        return f"tied: equal to {_DECODER[name]}"
    return None


def _complaint(match: _Match, odd: list[str], strange: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """One line with everything that does not fit, or with the one cause of it."""
    cause = _cause(found)
    if cause is not None:
        return cause
    missing, wrong = match.missing, match.wrong

    def near(names: list[str], pool: Sequence[str]) -> str:
        out = []
        collapsed = table.collapse(names)
        for name in collapsed[:_MOST_SHOWN]:
            close = difflib.get_close_matches(name, pool[:_MOST_COMPARED], 1, 0.8)
            out.append(f"{name} (nearest: {close[0]})" if close else name)
        return ", ".join(out) + _more(collapsed)

    says = []
    if wrong:
        says.append(f"do not fit config.json: {'; '.join(wrong[:_MOST_SHOWN])}{_more(wrong)}")
    if missing:
        says.append(f"missing: {near(missing, table.collapse([*odd, *strange]))}")
    if odd or strange:
        names = [*odd, *(tensor.name for tensor in strange.values())]
        says.append(f"not explained: {near(names, table.collapse(missing))}")
        tied = [name for name in odd if name in _DECODER]
        if tied:
            says.append(f"{tied[0]} differs from {_DECODER[tied[0]]}: set tie_word_embeddings to false")
    if strange:
        patterns = list(dict.fromkeys(_pattern(name) for name in strange))
        says.append(
            f"To leave out the head that is not known here, pass ignore=[{listed(map(repr, patterns), 5)}] (on the "
            f"command line --ignore {listed(map(repr, patterns), 5).replace(',', '')}), or take the encoder alone "
            "(head 'encoder')"
        )
    heads = sorted({table.part_of(name) for name in missing} & set(all_parts()))
    if heads:
        has = ", ".join(parts_present(found)) or "none"
        says.append(
            f"the file has no head {', '.join(heads)} (it has: {has}); to start one, pass new_head=jax.random.key(0), "
            "or to convert --new-head 0"
        )
    count = len(missing) + len(wrong) + len(odd) + len(strange)
    return f"{count} tensors do not add up. " + ". ".join(says)


def _cause(found: Mapping[str, Tensor]) -> str | None:
    """What has been done to the weights of a whole file, in words; None where nothing of that kind is seen."""
    quantized = [name for name, tensor in found.items() if _is_quantized(name, tensor)]
    if quantized:
        return (
            f"quantized weights ({listed(quantized, 3)}), of which float weights cannot be read; save the model "
            "dequantized (in transformers: model.dequantize())"
        )
    if any(name.endswith("_flat_param") for name in found):
        return "FSDP's flattened parameters; save the model with the state dict type FULL_STATE_DICT"
    if sum(tensor.shape == (0,) for tensor in found.values()) > len(found) // 2:
        return "empty tensors, as DeepSpeed ZeRO-3 leaves them; join its pieces with zero_to_fp32.py"
    return None


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _MOST_SHOWN} more" if len(names) > _MOST_SHOWN else ""


def _pattern(name: str) -> str:
    """A pattern for ``ignore`` that matches a tensor of a head that is not known, and those that belong with it."""
    words = name.split(".")
    kept = words[: 2 if words[0] in all_parts() else 1]
    return ".".join([*kept, "*"]) if len(kept) < len(words) else name


def _is_quantized(name: str, tensor: Tensor) -> bool:
    """A tensor that only quantized weights have: integers in place of a matrix, or what makes floats of them."""
    if table.part_of(name) not in (table.ENCODER, *all_parts()):
        return False
    return _SCALES.search(name) is not None or (tensor.dtype.kind in "iu" and name.endswith(".weight"))
