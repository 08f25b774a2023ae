"""Joins the features of consecutive parts of a table, in memory or in files."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from deberta_jax.data.features import Features

NOT_ARRAYS = ("level", "choices", "cut")
"""The fields of ``Features`` that are no arrays."""

ARRAYS = tuple(field.name for field in dataclasses.fields(Features) if field.name not in NOT_ARRAYS)


class _InMemory:
    """Joins arrays in memory."""

    def __init__(self):
        self.parts: list[np.ndarray] = []

    def append(self, array: np.ndarray) -> None:
        self.parts.append(array)

    def end(self) -> np.ndarray:
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)


class _InFile:
    """Joins arrays in a ``.npy`` file, which has the bytes that ``np.save`` writes of the whole array."""

    def __init__(self, file: BinaryIO):
        self.file, self.count = file, 0
        self.like: np.ndarray | None = None

    def append(self, array: np.ndarray) -> None:
        if self.like is None:
            self.like = array[:0]
            self._write_header()
        self.count += len(array)
        self.file.write(np.ascontiguousarray(array, self.like.dtype).tobytes())

    def end(self) -> None:
        self.file.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        # numpy leaves room in it, so that it has one length whatever the number of items.
        assert self.like is not None
        descr = np.lib.format.dtype_to_descr(self.like.dtype)
        shape = (self.count, *self.like.shape[1:])
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)


class JoinedFeatures:
    """Joins features part by part. The result is that of the whole table, whatever the parts are.

    Args:
      opened: returns a file for the array with a name; None: arrays are joined in memory.
    """

    def __init__(self, opened: Callable[[str], BinaryIO] | None = None):
        self.opened = opened
        self.arrays: dict[str, _InMemory | _InFile] = {}
        self.first: Features | None = None
        self.rows, self.cut = 0, 0
        # The lengths of the texts are joined in memory: a later part may have more choices for an example.
        self.lengths: list[tuple[int, np.ndarray]] = []

    def add(self, part: Features) -> None:
        """Adds the features of the next rows."""
        names = [name for name in ARRAYS if getattr(part, name) is not None]
        if self.first is None:
            self.first = dataclasses.replace(part, **{name: getattr(part, name)[:0] for name in names})
            self.arrays = {name: self._sink(name) for name in names}
        alike = names == list(self.arrays) and part.level == self.first.level
        assert alike, "a task makes other fields for other rows"
        for name in names:
            if name != "starts":
                array: np.ndarray = getattr(part, name)
                self.arrays[name].append(array + np.int32(self.rows) if name == "row" else array)
        self.lengths.append((part.choices, part.lengths))
        self.rows += len(part) if part.row is None else int(part.row[-1]) + 1
        self.cut += part.cut

    def _sink(self, name: str) -> _InMemory | _InFile:
        return _InMemory() if self.opened is None else _InFile(self.opened(name))

    def end(self) -> dict[str, Any]:
        """Returns the fields: without the arrays, which are complete, if these are in files. There was a part."""
        assert self.first is not None
        choices = max(count for count, _ in self.lengths)
        lengths = np.concatenate([_padded(array, count, choices) for count, array in self.lengths])
        self.arrays["starts"].append(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
        ended = {name: sink.end() for name, sink in self.arrays.items()}
        fields = {"level": self.first.level, "choices": choices, "cut": self.cut}
        return fields if self.opened is not None else fields | ended


def _padded(lengths: np.ndarray, choices: int, wanted: int) -> np.ndarray:
    """Returns the lengths of the texts of examples that have ``wanted`` choices, of which the last have no tokens."""
    if choices == wanted:
        return lengths
    padded = np.zeros((len(lengths) // choices, wanted), np.int64)
    padded[:, :choices] = lengths.reshape(-1, choices)
    return padded.ravel()


def join_features(parts: Iterable[Features]) -> Features:
    """Returns the features of a table from those of its parts, of which there is at least one."""
    joined = JoinedFeatures()
    for part in parts:
        joined.add(part)
    return Features(**joined.end())
