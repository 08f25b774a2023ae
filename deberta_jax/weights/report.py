"""Reports what became of every tensor of a file, and where every leaf of the parameter tree came from."""

import dataclasses
from typing import Any, Literal

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import brief, printable
from deberta_jax.weights.names import collapse

Fate = Literal["loaded", "folded", "dropped", "unknown"]


@dataclasses.dataclass(frozen=True)
class SourceRow:
    """Describes what became of one tensor of the file. ``reason`` is empty for a tensor that is loaded as it is.

    Only ``inspect`` has ``unknown`` tensors, which keep a model from being loaded.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    fate: Fate
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class TargetRow:
    """Describes the origin of one leaf of the tree: the names of its tensors, or why it was initialized."""

    path: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    reason: str = ""

    @property
    def initialised(self) -> bool:
        """Returns whether the leaf was not in the file."""
        return not self.sources


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds the result of ``load`` or ``convert``. Every tensor and every leaf has exactly one row."""

    source: str
    files: tuple[str, ...]
    config: DebertaConfig
    parts: tuple[str, ...]
    tensors: tuple[SourceRow, ...]
    targets: tuple[TargetRow, ...]
    notes: tuple[str, ...] = ()
    """Decisions and warnings, such as changes of the config, NaN and infinity, and missing files."""

    def count(self, fate: Fate) -> int:
        """Returns the number of tensors with this fate."""
        return sum(row.fate == fate for row in self.tensors)

    @property
    def initialised(self) -> tuple[TargetRow, ...]:
        """Returns the leaves that were not in the file."""
        return tuple(row for row in self.targets if row.initialised)

    def text(self) -> str:
        """Returns the report as text, with one line per decision; the layers of one tensor share a line."""
        files = ", ".join(map(brief, self.files)) if len(self.files) < 4 else f"{len(self.files)} files"
        unknown = f", {self.count('unknown')} unknown" if self.count("unknown") else ""
        lines = [
            f"{printable(self.source)}: {len(self.tensors)} tensors in {files}: {self.count('loaded')} loaded, "
            f"{self.count('folded')} folded, {self.count('dropped')} dropped{unknown}; {len(self.targets)} leaves, "
            f"{len(self.initialised)} initialised"
        ]
        for fate in ("folded", "dropped", "unknown"):
            reasons: dict[str, list[str]] = {}
            for row in self.tensors:
                if row.fate == fate:
                    reasons.setdefault(row.reason, []).append(row.name)
            lines += [
                f"  {fate} {name}: {printable(reason)}" for reason, names in reasons.items() for name in collapse(names)
            ]
        lines += [f"  initialised {row.path}: {row.reason}" for row in self.initialised]
        lines += [f"  note: {printable(note)}" for note in self.notes]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns the report as a JSON object."""
        out = dataclasses.asdict(self)
        out["config"] = self.config.to_hf()
        return out
