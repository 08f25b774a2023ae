"""Runs a checkpoint on fixed inputs and compares it layer by layer with another checkpoint or a recording.

Without either it is compared with itself after conversion to torch's layout and back.
"""

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax import storage
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.models import HEADS, head_spec
from deberta_jax.pickles import archive
from deberta_jax.weights import names as table
from deberta_jax.weights.account import LoadPlan, plan_load
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import Source, open_source
from deberta_jax.weights.save import torch_tensors
from deberta_jax.weights.source import Checkpoint, Tensor, kind
from deberta_jax.weights.trees import nested
from deberta_jax.weights.values import read_leaf

_ROWS, _LENGTH = 2, 24

_TOLERANCES = {"bf16": 0.1, "f16": 0.01}
"""Largest difference that passes by default where one of two sources is stored in this dtype. Otherwise ``_EXACT``."""
_EXACT = 1e-4


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Holds how far the outputs of two models differ.

    Attributes:
      differences: largest absolute difference of every layer's output and of every head's logits.
      scales: largest absolute value of the same outputs.
      tolerance: largest difference that passes.
      checked: lines on the comparison of the files with the digests that were listed when they were written.
      reason: why the default tolerance is larger than that of float32; empty if it is not.
    """

    differences: dict[str, float]
    scales: dict[str, float]
    tolerance: float
    checked: tuple[str, ...] = ()
    reason: str = ""

    @property
    def passed(self) -> bool:
        """Tells whether every difference is within the tolerance."""
        return all(difference <= self.tolerance for difference in self.differences.values())

    def text(self) -> str:
        """Returns the lines that ``deberta-jax verify`` prints."""
        width = max(map(len, self.differences))
        lines = [
            f"{name:<{width}}  max difference {difference:.3g}  (values up to {self.scales[name]:.3g})"
            for name, difference in self.differences.items()
        ]
        verdict = "pass" if self.passed else "FAIL"
        largest = max(self.differences.values())
        return "\n".join(
            [
                *self.checked,
                *lines,
                f"{verdict}: largest difference {largest:.3g}, tolerance {self.tolerance:g}{self.reason}",
            ]
        )


def verify(
    source: str | Path,
    against: str | Path | None = None,
    *,
    tolerance: float | None = None,
    record: str | Path | None = None,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> Comparison:
    """Compares the outputs of a source, layer by layer, in float32.

    First every byte of its files, and of those of ``against``, is compared with the digests in checksums.json, if there
    is such a list.

    Args:
      against: another source, or an ``.npz`` recording. None: the source's own tensors after conversion to torch's
        layout and back, which must not change them.
      tolerance: largest absolute difference that passes. None: 1e-4; but if the two are stored in different dtypes, or
        outputs are recorded, 0.1 for a model in bfloat16 and 0.01 for one in float16.
      record: an ``.npz`` file to write the outputs to.
      revision, ignore, base_model: as for ``from_pretrained``; ``ignore`` also applies to ``against``.

    Raises:
      InputError: a source cannot be read or is damaged, the recording has other outputs, or outputs are not finite.
    """
    if record is not None:
        storage.check_output_file("--record", record)
    opened = open_source(source, revision=revision, ignore=ignore, base_model=base_model, check="full")
    checked = [result.text for result in opened.checked]
    recorded = _recording(against) if against is not None and str(against).endswith(".npz") else None
    mine = outputs(opened)
    broken = [name for name, value in mine.items() if not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{source}: not finite: {', '.join(broken)}; the weights are damaged")
    dtypes = [_stored_dtypes(opened)]
    if against is None:
        theirs = outputs(opened, round_trip=True)
    elif recorded is not None:
        theirs = recorded
        dtypes.append(frozenset())
    else:
        other = open_source(against, ignore=ignore, must_match=False, check="full")
        checked += [result.text for result in other.checked]
        theirs = outputs(other)
        dtypes.append(_stored_dtypes(other))
    if record is not None:  # after the comparison, which may be with the file of that name
        with storage.output_file("--record", record) as file:
            np.savez(file, **mine)  # pyright: ignore[reportArgumentType]
    common = [name for name in mine if name in theirs]
    if "embeddings" not in common or {n for n in mine if n[:5] == "layer"} != {n for n in theirs if n[:5] == "layer"}:
        raise InputError(f"{against}: its layers are not those of {source}; compare models of one architecture")
    for name in common:
        if mine[name].shape != theirs[name].shape:
            raise InputError(f"{against}: {name} has shape {theirs[name].shape}, {source} has {mine[name].shape}")
    reason = ""
    if tolerance is None:
        tolerance, reason = _default_tolerance(dtypes)
    return Comparison(
        {name: _difference(mine[name], theirs[name]) for name in common},
        {name: float(np.max(np.abs(mine[name]))) for name in common},
        tolerance,
        tuple(checked),
        reason,
    )


def _stored_dtypes(source: Source) -> frozenset[str]:
    """Returns the short names of the dtypes of a source's tensors."""
    return frozenset(kind(tensor.dtype) for tensor in source.found.values())


def _default_tolerance(dtypes: Sequence[frozenset[str]]) -> tuple[float, str]:
    """Returns the tolerance for two sources with these dtypes, and the reason where it is not that of float32."""
    if len(set(dtypes)) > 1:
        stored = frozenset().union(*dtypes)
        for name, tolerance in _TOLERANCES.items():
            if name in stored:
                return tolerance, f" (that of {name}, in which weights are stored)"
    return _EXACT, ""


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    largest = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
    return largest if np.isfinite(largest) else float("inf")


def _recording(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a recording. Each is as large as its part of the file: nothing in it is compressed."""
    if storage.is_remote(path):
        folder, _, name = str(path).rpartition("/")
        path = storage.local_copy(folder, lambda names: [name for found in names if found == name]) / name
    try:
        with storage.mapped(path) as data:
            return {
                name.removesuffix(".npy"): _array(data[entry.start : entry.start + entry.size])
                for name, entry in archive.read_entries(data).items()
            }
    except InputError:
        raise
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{path}: no recording of verify ({brief(error, 80)})") from None


def _array(raw: bytes) -> np.ndarray:
    """Returns the float32 array in the bytes of a ``.npy`` file. Raises ValueError if it is none of that size."""
    stream = io.BytesIO(raw)
    np.lib.format.read_magic(stream)
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype != np.float32 or len(shape) > 8 or math.prod(shape) * dtype.itemsize != len(raw) - stream.tell():
        raise ValueError(f"an array {shown(shape)} of {shown(str(dtype))}")
    return np.frombuffer(raw, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def fixed_inputs(vocabulary: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns int32 token ids [2, length] spread over the vocabulary, and the attention mask of the same shape.

    The last third of the second row is padding.
    """
    ids = (np.arange(_ROWS * length, dtype=np.int64) * 7919 + 5) % max(vocabulary - 1, 1) + (vocabulary > 1)
    ids = ids.astype(np.int32).reshape(_ROWS, length)
    mask = np.ones_like(ids)
    mask[1, length - length // 3 :] = 0
    return ids, mask


def outputs(source: Source, *, round_trip: bool = False) -> dict[str, np.ndarray]:
    """Returns the hidden states of every layer and the logits of every head that the source has, float32.

    Args:
      round_trip: convert the tensors to torch's layout and back first.
    """
    out: dict[str, np.ndarray] = {}
    for head in HEADS:
        try:
            plan = plan_head(source, HeadRequest(head))
        except InputError:
            if head == "encoder":
                raise
            continue
        if round_trip:
            plan = _round_trip(plan)
        out |= _run(head, plan)
    return out


def _run(head: str, plan: LoadPlan) -> dict[str, np.ndarray]:
    """Returns the outputs of one head on the fixed inputs, by name."""
    params = nested({path: jnp.asarray(read_leaf(plan, path, np.dtype(np.float32))) for path in plan.fills})
    spec = head_spec(head)
    model = spec.model(plan.config)
    ids, mask = fixed_inputs(plan.config.vocab_size, min(_LENGTH, plan.config.max_position_embeddings))
    variables = {"params": params[table.ENCODER] if head == "encoder" else params}
    if model.reads_choices:
        ids, mask = ids[None], mask[None]
    options: dict[str, Any] = {"output_hidden_states": True} if head == "encoder" else {}
    run = jax.jit(lambda variables, ids, mask: model.apply(variables, ids, attention_mask=mask, **options))
    output: Any = run(variables, jnp.asarray(ids), jnp.asarray(mask))
    if head == "encoder":
        states = [np.asarray(state, np.float32) for state in output.hidden_states]
        return {"embeddings": states[0]} | {f"layer {i}": state for i, state in enumerate(states[1:], 1)}
    if len(spec.outputs) == 1:
        return {f"{head} {name}": np.asarray(getattr(output, name), np.float32) for name in spec.outputs}
    return {f"{head} {name.removesuffix('_logits')}": np.asarray(getattr(output, name)) for name in spec.outputs}


def _round_trip(plan: LoadPlan) -> LoadPlan:
    """Returns the plan for loading the tensors that the model of a plan would be saved as."""
    labels = plan.sizes["C"]
    pending = torch_tensors(plan.config, plan.parts, labels, plan, None, "hf", bare=False, broken=[])
    file_tensors: Mapping[str, Tensor] = {t.name: Tensor(t.name, t.shape, t.dtype, t.produce) for t in pending}
    checkpoint = Checkpoint(Path("memory"), (), file_tensors)
    return plan_load(checkpoint, file_tensors, plan.config, plan.parts, labels, new={}, may_be_new=False)
