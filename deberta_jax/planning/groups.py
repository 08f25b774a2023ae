"""Reads which devices a collective joins, in any of XLA's notations, and finds the mesh axes they differ in."""

import math
import re
from collections.abc import Mapping

import numpy as np


def device_groups(text: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Returns the groups of device numbers in the attributes of a collective.

    The notations are: lists ``{{0,1},{2,3}}``; ``[2,2]<=[4]`` and ``[2,2]<=[2,2]T(1,0)``, an arange that is reshaped,
    transposed and reshaped; ``mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}``, the axes of a mesh that are joined;
    and ``source_target_pairs``. Without any of them all devices are one group.
    """
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", text)
    if listed:
        return tuple(tuple(int(n) for n in group.split(",")) for group in re.findall(r"\{([\d, ]+)\}", listed[1]))
    ranged = re.search(r"replica_groups=(\[[\d,]+\])<=(\[[\d,]+\])(?:T\(([\d,]+)\))?", text)
    if ranged:
        shape, source = (_numbers(ranged[n]) for n in (1, 2))
        return _rows(_arange(source, ranged[3]).reshape(shape))
    order = r"(?:, device_ids=\((\[[\d,]+\])(?:T\(([\d,]+)\))?\))?"
    named = re.search(rf"replica_groups=mesh\[([^\]]*)\]{order} \{{([^}}]*)\}}", text)
    if named:
        return _mesh_groups(named)
    return (tuple(range(devices)),)


def _mesh_groups(named: re.Match) -> tuple[tuple[int, ...], ...]:
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
    total = math.prod(axes.values())
    numbers = _arange(_numbers(named[2]), named[3]) if named[2] else np.arange(total)
    numbers = numbers.reshape(tuple(axes.values()))
    joined = [re.match(r"([^:]+)(?::\((\d+)\)(\d+))?", name) for name in re.findall(r"'([^']+)'", named[4])]
    names = [match[1] for match in joined if match is not None]
    order = [n for n, name in enumerate(axes) if name not in names] + [list(axes).index(name) for name in names]
    return _rows(numbers.transpose(order).reshape(-1, math.prod(axes[name] for name in names)))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


def _arange(shape: tuple[int, ...], order: str | None) -> np.ndarray:
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return numbers.transpose(_numbers(order)) if order else numbers


def _rows(array: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(n) for n in row) for row in array)


def axes_of(groups: tuple[tuple[int, ...], ...], mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which members of a group differ; devices are numbered in the order of the axes."""
    coordinates = np.stack(np.unravel_index(np.array([n for group in groups for n in group]), tuple(mesh.values())))
    varies = np.zeros(len(mesh), bool)
    start = 0
    for group in groups:
        part = coordinates[:, start : start + len(group)]
        varies |= (part != part[:, :1]).any(axis=1)
        start += len(group)
    return tuple(name for name, differs in zip(mesh, varies, strict=True) if differs)
