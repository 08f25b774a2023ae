"""Finds out what a checkpoint holds and which heads it can be loaded with, without reading its weights."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deberta_jax.config import V1
from deberta_jax.errors import InputError, listed, printable
from deberta_jax.models import HEADS
from deberta_jax.storage import AnyPath
from deberta_jax.text import load_tokenizer
from deberta_jax.weights.account import parts_present
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import make_report, plan_all, plan_head
from deberta_jax.weights.names import part_of
from deberta_jax.weights.opening import TOKENIZER_FILES, open_source
from deberta_jax.weights.report import Report


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Holds the results of ``deberta-jax inspect``. Counts are numbers of parameters.

    Attributes:
      generation: ``v1``, ``v2`` or ``v3``, in words for others.
      report: every tensor of the file and every leaf of the tree.
      embeddings: parameters of the word, position and token-type embeddings.
      backbone: parameters of the encoder without embeddings, which published sizes such as 86M count.
      heads: parameters of each part of a head.
      dtypes: number of tensors of each dtype.
      uses: for each head ``ready``, or why it cannot be loaded.
      tokenizer: names of the tokenizer's files.
      tokenizer_rule: which of them decides the ids, in words; None without a tokenizer.
      problem: which tensors keep the model from being loaded; empty if there are none.
    """

    generation: str
    report: Report
    embeddings: int
    backbone: int
    heads: dict[str, int]
    dtypes: dict[str, int]
    uses: dict[str, str]
    tokenizer: tuple[str, ...]
    tokenizer_rule: str | None
    problem: str = ""

    @property
    def total(self) -> int:
        """Returns the number of all parameters."""
        return self.embeddings + self.backbone + sum(self.heads.values())

    def _has_labels(self) -> bool:
        classifiers = {part_of(spec.classifier) for spec in HEADS.values() if spec.classifier}
        return bool(classifiers & set(self.heads))

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and ``total`` as JSON."""
        out = dataclasses.asdict(self)
        out["report"] = self.report.to_json()
        return {**out, "total": self.total}

    def text(self) -> str:
        """Returns the lines that ``deberta-jax inspect`` prints."""
        c = self.report.config
        ready = [head for head, use in self.uses.items() if use == "ready"]
        heads = ", ".join(f"{part} ({count:,})" for part, count in self.heads.items()) or "none"
        lines = [
            f"{printable(self.report.source)}: DeBERTa {self.generation}",
            f"  sizes       {c.num_hidden_layers} layers, width {c.hidden_size}, {c.num_attention_heads} heads of "
            f"{c.head_size}, mlp {c.intermediate_size}, vocabulary {c.vocab_size}",
            f"  parameters  {self.total:,}: backbone {self.backbone:,}, embeddings {self.embeddings:,}, "
            f"heads {sum(self.heads.values()):,}",
            f"  stored as   {', '.join(f'{kind} ({count} tensors)' for kind, count in self.dtypes.items())}",
            f"  heads       {heads}",
            f"  labels      {listed(c.id2label, 50)}" if self._has_labels() else "",
            "  relative    terms differ between layers: deberta_jax alone loads this model"
            if c.layer_pos_att_type
            else "",
            f"  other keys  {listed(c.unknown_keys, 20)} (in config.json; without effect)" if c.unknown_keys else "",
            f"  tokenizer   {', '.join(self.tokenizer) or 'no files'}",
            f"  ids by      {self.tokenizer_rule}" if self.tokenizer_rule else "",
            f"  ready for   {', '.join(ready) or 'nothing'}",
            f"  problem     {printable(self.problem)}" if self.problem else "",
        ]
        lines += [f"  not for     {head}: {use}" for head, use in self.uses.items() if use != "ready"]
        return "\n".join([line for line in lines if line] + self.report.text().split("\n")[1:])


def inspect(
    source: str | Path,
    *,
    revision: str | None = None,
    ignore: Sequence[str] = (),
    base_model: str | Path | None = None,
) -> Inspection:
    """Returns what a source holds, including tensors of heads that are not known here.

    Args:
      source: a directory, file or hub id, as for ``from_pretrained``; so are revision, ignore and base_model.

    Raises:
      InputError: the source cannot be read, or has a form that is not supported. Tensors that are not explained, and
        those that are missing, are listed in the result.
    """
    opened = open_source(source, revision=revision, ignore=ignore, base_model=base_model)
    plan = plan_all(opened, foreign="listed")
    counts: Counter[str] = Counter()
    for path in plan.fills:
        shape = plan.shapes[path]
        part = path.split("/", 1)[0]
        group = "embeddings" if path.endswith("_embeddings/embedding") and "/embeddings/" in path else part
        counts[group] += math.prod(shape)
    uses = {}
    for head, spec in HEADS.items():
        try:
            plan_head(opened, HeadRequest(head))
            uses[head] = "ready"
        except InputError as error:
            absent = sorted(spec.missing_parts(parts_present(opened.found)))
            reason = "see the problem below" if plan.problem else str(error)
            uses[head] = f"the file has no {' and no '.join(absent)}" if absent else reason
    config = plan.config
    generation = "v1" if config.model_type == V1 else "v2" if config.conv_kernel_size else "v3"
    if generation == "v3" and not (config.share_att_key and config.position_buckets > 0):
        generation = "v2/v3, of no released kind"
    kinds = Counter(row.dtype for row in plan.tensors)
    return Inspection(
        generation,
        make_report(source, opened, plan),
        counts.pop("embeddings", 0),
        counts.pop("deberta", 0),
        dict(counts),
        dict(kinds),
        uses,
        tuple(name for name in TOKENIZER_FILES if (opened.directory / name).is_file()),
        _tokenizer_rule(opened.directory),
        plan.problem,
    )


def _tokenizer_rule(directory: AnyPath) -> str | None:
    if not isinstance(directory, Path):
        return None
    try:
        return load_tokenizer(directory).rule
    except InputError:
        return None
