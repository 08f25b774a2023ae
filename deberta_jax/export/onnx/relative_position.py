"""Adds the relative index of a text of any length to a graph, from a table of distances that the file holds.

From some distance on, all distances read the same row of the relative table. The file holds the rows of the distances
up to there, so the graph needs no logarithm, whose rounding could differ between machines.
"""

import math
from typing import NamedTuple

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.ops.attention.relative_position import make_relative_index

LARGEST_DISTANCE = 10**7
"""Largest distance whose row a file may hold."""


class RelativeIndex(NamedTuple):
    """Holds the names of values that all layers share.

    Attributes:
      start, stop: the range of rows of the relative table that a text of this length reads, int64 [1].
      index: for each pair of query and key the row within this range, int32 [B,N,T,T].
    """

    start: str
    stop: str
    index: str


def last_distance(config: DebertaConfig) -> int:
    """Returns a distance from which on the row does not change.

    Raises:
      InputError: the distances of an unusual model change their row up to an extremely large one.
    """
    c = config
    half = c.position_buckets // 2
    last = c.max_distance
    if c.position_buckets > 0 and c.position_buckets % 2 and not c.clamps_distances and half > 1:
        # The logarithmic buckets of an odd number end two buckets, not one, beyond those of max_distance.
        last = math.ceil(half * ((c.max_distance - 1) / half) ** (half / (half - 1))) + 1
    if last > LARGEST_DISTANCE:
        raise InputError(f"position_buckets={c.position_buckets}: distances up to {last} differ, too many to export")
    return last


def add_relative_index(graph: Graph, config: DebertaConfig, input_ids: str) -> RelativeIndex:
    """Adds the relative index for a batch of texts ``input_ids`` [B,T]."""
    c, last = config, last_distance(config)
    rows = make_relative_index(
        last + 1, c.relative_span, buckets=c.position_buckets, max_distance=c.max_distance, clamp=c.clamps_distances
    )
    with graph.scope("relative_position"):
        batch, length = graph.size(input_ids, 0), graph.size(input_ids, 1)
        zero, one = graph.integers(0), graph.integers(1)
        table = graph.weight("relative_index", rows, np.int32)

        def row_of(distance: str) -> str:
            clipped = graph.add("Clip", distance, graph.integers(-last), graph.integers(last))
            return graph.add("Gather", table, graph.add("Add", clipped, graph.integers(last)))

        largest = graph.add("Sub", length, graph.integers([1]))
        first_row, last_row = row_of(graph.add("Neg", largest)), row_of(largest)
        positions = graph.add("Range", zero, graph.reshape(length, ()), one)
        distance = graph.add("Sub", graph.unsqueeze(positions, 1), graph.unsqueeze(positions, 0))
        index = graph.add("Sub", row_of(distance), first_row)
        shape = graph.add("Concat", batch, graph.integers([c.num_attention_heads]), length, length, axis=0)
        stop = graph.add("Add", graph.cast(last_row, np.int64), graph.integers([1]))
        return RelativeIndex(graph.cast(first_row, np.int64), stop, graph.add("Expand", index, shape))
