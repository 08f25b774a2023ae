"""Defines what a pickle is read as: plain containers, and descriptions of tensors and of objects that are not built."""

from typing import Any, NamedTuple

from deberta_jax.pickles.names import Global


class PickleError(ValueError):
    """Signals a program that is damaged, or that does more than build tensors and plain containers."""


class Storage(NamedTuple):
    """Describes a flat array of numbers that is stored outside the program, under ``key``."""

    key: str
    dtype: Any
    """What the caller gave for the class of storage."""
    numel: int


class StoredTensor(NamedTuple):
    """Describes a tensor as a view of a storage; strides and offset count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Placeholder:
    """Stands for an object that is not built. ``parts`` holds its arguments, state and items, which may be tensors."""

    __slots__ = ("kind", "parts")

    def __init__(self, kind: Global, *parts: Any):
        self.kind = kind
        self.parts: list[Any] = list(parts)

    def __repr__(self) -> str:
        return f"Placeholder({self.kind.module}.{self.kind.name})"


class Result(NamedTuple):
    """Holds what a program has built, and where it ends.

    Attributes:
      value: the value.
      end: the offset directly after the program.
      storages: all storages that the program mentions, in its order.
    """

    value: Any
    end: int
    storages: list[Storage]
