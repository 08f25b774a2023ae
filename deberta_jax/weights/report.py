"""The account of a conversion: what became of every tensor of the file, and where every leaf of the tree came from."""

import dataclasses
from typing import Any, Literal

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import printable
from deberta_jax.weights.names import collapse

Fate = Literal["loaded", "folded", "dropped"]


@dataclasses.dataclass(frozen=True)
class SourceRow:
    """One tensor of the file. ``reason`` is empty for a tensor loaded as it is."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    fate: Fate
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class TargetRow:
    """One leaf of the tree: filled from the named tensors, or initialised for a reason."""

    path: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    reason: str = ""

    @property
    def initialised(self) -> bool:
        return not self.sources


@dataclasses.dataclass(frozen=True)
class Report:
    """What ``load`` and ``convert`` did. Every tensor and every leaf has exactly one row."""

    source: str
    files: tuple[str, ...]
    config: DebertaConfig
    parts: tuple[str, ...]
    tensors: tuple[SourceRow, ...]
    targets: tuple[TargetRow, ...]
    notes: tuple[str, ...] = ()
    """Decisions and warnings: what was adjusted in the config, values that are no numbers, files that lack."""

    def count(self, fate: Fate) -> int:
        return sum(row.fate == fate for row in self.tensors)

    @property
    def initialised(self) -> tuple[TargetRow, ...]:
        return tuple(row for row in self.targets if row.initialised)

    def text(self) -> str:
        """The account for people: one line a decision, names of layers collapsed."""
        files = ", ".join(self.files) if len(self.files) < 4 else f"{len(self.files)} files"
        lines = [
            f"{self.source}: {len(self.tensors)} tensors in {files}: {self.count('loaded')} loaded, "
            f"{self.count('folded')} folded, {self.count('dropped')} dropped; {len(self.targets)} leaves, "
            f"{len(self.initialised)} initialised"
        ]
        for fate in ("folded", "dropped"):
            reasons: dict[str, list[str]] = {}
            for row in self.tensors:
                if row.fate == fate:
                    reasons.setdefault(row.reason, []).append(row.name)
            lines += [f"  {fate} {name}: {reason}" for reason, names in reasons.items() for name in collapse(names)]
        lines += [f"  initialised {row.path}: {row.reason}" for row in self.initialised]
        lines += [f"  note: {printable(note)}" for note in self.notes]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        out = dataclasses.asdict(self)
        out["config"] = self.config.to_hf()
        return out
