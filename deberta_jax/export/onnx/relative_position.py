"""Adds the relative table and the relative index of a text of any length to a graph.

From some distance on, all distances read the same row of the relative table. The file holds the rows of the distances
up to there, so the graph needs no logarithm, whose rounding could differ between machines.
"""

import math
from typing import NamedTuple

import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.export.onnx.modules import Params, layer_norm
from deberta_jax.ops.attention.relative_position import make_relative_index

LARGEST_DISTANCE = 10**7
"""Largest distance whose row a file may hold."""


class RelativePositions(NamedTuple):
    """Holds the names of values that all layers share.

    Attributes:
      table: the whole relative table, normalized where the model does so [R,D].
      start, stop: the range of rows of the relative table that a text of this length reads, int64 [1].
      index: for each pair of query and key the row within this range, int32 [B,N,T,T].
    """

    table: str
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


def add_relative_positions(graph: Graph, config: DebertaConfig, encoder: Params, input_ids: str) -> RelativePositions:
    """Adds the relative table, and the relative index for a batch of texts ``input_ids`` [B,T].

    Args:
      encoder: the parameters of the encoder's layers and table.
    """
    c, last = config, last_distance(config)
    rows = make_relative_index(
        last + 1, c.relative_span, buckets=c.position_buckets, max_distance=c.max_distance, clamp=c.clamps_distances
    )
    table = graph.weight("rel_embeddings", encoder["rel_embeddings"]["embedding"])
    if c.normalizes_relative_table:
        table = layer_norm(graph, "LayerNorm", table, encoder["LayerNorm"], c.layer_norm_eps)
    with graph.scope("relative_position"):
        batch, length = graph.size(input_ids, 0), graph.size(input_ids, 1)
        zero, one = graph.integers(0), graph.integers(1)
        row_table = graph.weight("relative_index", rows, np.int32)

        def row_of(distance: str) -> str:
            clipped = graph.add("Clip", distance, graph.integers(-last), graph.integers(last))
            return graph.add("Gather", row_table, graph.add("Add", clipped, graph.integers(last)))

        largest = graph.add("Sub", length, graph.integers([1]))
        first_row, last_row = row_of(graph.add("Neg", largest)), row_of(largest)
        positions = graph.add("Range", zero, graph.reshape(length, ()), one)
        distance = graph.add("Sub", graph.unsqueeze(positions, 1), graph.unsqueeze(positions, 0))
        index = graph.add("Sub", row_of(distance), first_row)
        shape = graph.add("Concat", batch, graph.integers([c.num_attention_heads]), length, length, axis=0)
        stop = graph.add("Add", graph.cast(last_row, np.int64), graph.integers([1]))
        return RelativePositions(table, graph.cast(first_row, np.int64), stop, graph.add("Expand", index, shape))
