"""Maps the tensors of checkpoints to the leaves of the parameter tree, for every generation and head.

A ``Row`` gives the torch name of a tensor, its shape, the leaves that it fills, and the transform between them. Loading
and saving read the same rows, so that a tensor that can be loaded can be saved. A name with ``{i}`` exists once for
each layer; its leaves are stacked on a leading axis L. A torch ``Linear`` stores ``[out, in]``; the tree stores
``[in, out]`` with a separate axis for heads: ``[D, N, H]``, ``[N, H, D]``.

Letters of shapes: V vocabulary, E embedding width, D hidden width, F mlp, N heads, H head size, R rows of the relative
table, P positions, T token types, K size of the convolution kernel, G convolution input channels in a group, C labels.
``N*H`` is one axis of that size.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from deberta_jax.config import V1, DebertaConfig
from deberta_jax.errors import InputError, brief
from deberta_jax.models import HEADS, abstract_params, all_parts

ENCODER = "deberta"
WORD_EMBEDDINGS = "deberta/embeddings/word_embeddings/embedding"

Sizes = Mapping[str, int]


class LayoutTransform(NamedTuple):
    """Holds the two functions that convert one torch tensor (of one layer) to leaves and back.

    Both return views where they can.
    """

    to_tree: Callable[[np.ndarray, Sizes], tuple[np.ndarray, ...]]
    to_torch: Callable[[tuple[np.ndarray, ...], Sizes], np.ndarray]


SAME = LayoutTransform(lambda x, s: (x,), lambda leaves, s: leaves[0])
LINEAR = LayoutTransform(lambda x, s: (x.T,), lambda leaves, s: leaves[0].T)
# [N*H, D] <-> [D, N, H]: rows h*H to (h+1)*H of the projection belong to head h.
HEADS_IN = LayoutTransform(
    lambda x, s: (x.T.reshape(-1, s["N"], s["H"]),),
    lambda leaves, s: leaves[0].reshape(-1, s["N"] * s["H"]).T,
)
HEADS_BIAS = LayoutTransform(lambda x, s: (x.reshape(s["N"], s["H"]),), lambda leaves, s: leaves[0].reshape(-1))
# [D, N*H] <-> [N, H, D]
HEADS_OUT = LayoutTransform(
    lambda x, s: (x.T.reshape(s["N"], s["H"], -1),),
    lambda leaves, s: leaves[0].reshape(s["N"] * s["H"], -1).T,
)
# torch Conv1d [out, in/groups, K] <-> [K, in/groups, out]
CONV = LayoutTransform(lambda x, s: (x.transpose(2, 1, 0),), lambda leaves, s: leaves[0].transpose(2, 1, 0))


def _split_qkv(x: np.ndarray, s: Sizes) -> tuple[np.ndarray, ...]:
    grouped = x.reshape(s["N"], 3, s["H"], -1)
    return tuple(grouped[:, part].transpose(2, 0, 1) for part in range(3))


def _join_qkv(leaves: tuple[np.ndarray, ...], s: Sizes) -> np.ndarray:
    grouped = np.stack([leaf.transpose(1, 2, 0) for leaf in leaves], axis=1)
    return grouped.reshape(3 * s["N"] * s["H"], -1)


# v1 stores one matrix [3*N*H, D] whose rows are grouped by head: q, k, v of head 0, q, k, v of head 1, ...
QKV = LayoutTransform(_split_qkv, _join_qkv)


# Bias vectors that another program's modules have but that do not change the function: no leaf holds them, and they are
# saved as zeros.
ABSENT_HEADS = LayoutTransform(lambda x, s: (), lambda leaves, s: np.zeros(s["N"] * s["H"], np.float32))
ABSENT_VOCABULARY = LayoutTransform(lambda x, s: (), lambda leaves, s: np.zeros(s["V"], np.float32))


def _always(config: DebertaConfig) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Row:
    """Describes one torch tensor, or one for each layer, and the leaves that it fills.

    Attributes:
      torch: the tensor's name; it contains ``{i}`` if there is one tensor for each layer.
      tree: the paths of the leaves.
      shape: the tensor's axes in the letters of this module, such as ``"N*H D"``.
      transform: converts the tensor to the leaves and back.
      when: tells whether a model with a config has the tensor.
    """

    torch: str
    tree: tuple[str, ...]
    shape: str
    transform: LayoutTransform = SAME
    when: Callable[[DebertaConfig], bool] = _always

    @property
    def layered(self) -> bool:
        """Tells whether there is one tensor for each layer."""
        return "{i}" in self.torch

    def names(self, config: DebertaConfig) -> list[str]:
        """Returns the torch names of the row's tensors: one, or one for each layer."""
        return [self.torch.format(i=i) for i in range(config.num_hidden_layers)] if self.layered else [self.torch]

    def torch_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Returns the shape of the torch tensor, given the sizes that the letters stand for."""
        return tuple(
            math.prod(int(f) if f.isdigit() else sizes[f] for f in axis.split("*")) for axis in self.shape.split()
        )

    def leaf_shapes(self, sizes: Sizes) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of the leaves, without the axis of layers."""
        probe = np.broadcast_to(np.zeros((), np.int8), self.torch_shape(sizes))
        return tuple(leaf.shape for leaf in self.transform.to_tree(probe, sizes))


def _dense(
    name: str,
    out: str,
    inp: str,
    when=_always,
    transform: LayoutTransform = LINEAR,
    bias: LayoutTransform = SAME,
    tree: str | None = None,
) -> tuple[Row, ...]:
    path = tree or _path(name)
    return (
        Row(f"{name}.weight", (f"{path}/kernel",), f"{out} {inp}", transform, when),
        Row(f"{name}.bias", (f"{path}/bias",), out, bias, when),
    )


def _norm(name: str, size: str, when=_always) -> tuple[Row, ...]:
    path = _path(name)
    return (
        Row(f"{name}.weight", (f"{path}/scale",), size, SAME, when),
        Row(f"{name}.bias", (f"{path}/bias",), size, SAME, when),
    )


def _embedding(name: str, shape: str, when=_always) -> tuple[Row, ...]:
    return (Row(f"{name}.weight", (f"{_path(name)}/embedding",), shape, SAME, when),)


def _path(name: str) -> str:
    return name.replace("encoder.layer.{i}.", "encoder.layers.").replace(".", "/")


def _c2p(c: DebertaConfig) -> bool:
    return "c2p" in c.relative_terms and not c.share_att_key


def _p2c(c: DebertaConfig) -> bool:
    return "p2c" in c.relative_terms and not c.share_att_key


def _normed_table(c: DebertaConfig) -> bool:
    return c.relative_attention and c.normalizes_relative_table


def _conv(c: DebertaConfig) -> bool:
    return c.conv_kernel_size > 0


_LAYER = "deberta.encoder.layer.{i}"
_SELF = f"{_LAYER}.attention.self"
_SELF_TREE = _path(_SELF)

_ATTENTION_V2 = tuple(
    row
    for name, when in (
        ("query_proj", _always),
        ("key_proj", _always),
        ("value_proj", _always),
        ("pos_key_proj", _c2p),
        ("pos_query_proj", _p2c),
    )
    for row in _dense(f"{_SELF}.{name}", "N*H", "D", when, HEADS_IN, HEADS_BIAS)
)

_TALKING = tuple(
    Row(f"{_SELF}.{name}.weight", (f"{_SELF_TREE}/{name}/kernel",), "N N", LINEAR, lambda c: c.talking_head)
    for name in ("head_logits_proj", "head_weights_proj")
)

_ATTENTION_V1 = (
    Row(
        f"{_SELF}.in_proj.weight",
        tuple(f"{_SELF_TREE}/{name}/kernel" for name in ("query_proj", "key_proj", "value_proj")),
        "3*N*H D",
        QKV,
    ),
    Row(f"{_SELF}.q_bias", (f"{_SELF_TREE}/query_proj/bias",), "N*H", HEADS_BIAS),
    Row(f"{_SELF}.v_bias", (f"{_SELF_TREE}/value_proj/bias",), "N*H", HEADS_BIAS),
    Row(f"{_SELF}.pos_proj.weight", (f"{_SELF_TREE}/pos_key_proj/kernel",), "N*H D", HEADS_IN, _c2p),
    *_dense(f"{_SELF}.pos_q_proj", "N*H", "D", _p2c, HEADS_IN, HEADS_BIAS, tree=f"{_SELF_TREE}/pos_query_proj"),
    *_TALKING,
)

# A v1 model with the names of v2's modules, as Microsoft's code saves it after training.
_ATTENTION_V1_MICROSOFT = (
    *(
        dataclasses.replace(row, tree=(), transform=ABSENT_HEADS)
        if row.torch in (f"{_SELF}.key_proj.bias", f"{_SELF}.pos_key_proj.bias")
        else row
        for row in _ATTENTION_V2
    ),
    *_TALKING,
)

_EMBEDDINGS = (
    *_embedding("deberta.embeddings.word_embeddings", "V E"),
    *_embedding("deberta.embeddings.position_embeddings", "P E", lambda c: c.has_position_table),
    *_embedding("deberta.embeddings.token_type_embeddings", "T E", lambda c: c.type_vocab_size > 0),
    Row(
        "deberta.embeddings.embed_proj.weight",
        ("deberta/embeddings/embed_proj/kernel",),
        "D E",
        LINEAR,
        lambda c: c.embedding_width != c.hidden_size,
    ),
    *_norm("deberta.embeddings.LayerNorm", "D"),
)

_BLOCK = (
    *_dense(f"{_LAYER}.attention.output.dense", "D", "N*H", transform=HEADS_OUT),
    *_norm(f"{_LAYER}.attention.output.LayerNorm", "D"),
    *_dense(f"{_LAYER}.intermediate.dense", "F", "D"),
    *_dense(f"{_LAYER}.output.dense", "D", "F"),
    *_norm(f"{_LAYER}.output.LayerNorm", "D"),
)

_ENCODER_REST = (
    *_embedding("deberta.encoder.rel_embeddings", "R D", lambda c: c.relative_attention),
    *_norm("deberta.encoder.LayerNorm", "D", _normed_table),
    Row("deberta.encoder.conv.conv.weight", ("deberta/encoder/conv/conv/kernel",), "D G K", CONV, _conv),
    Row("deberta.encoder.conv.conv.bias", ("deberta/encoder/conv/conv/bias",), "D", SAME, _conv),
    *_norm("deberta.encoder.conv.LayerNorm", "D", _conv),
)


def _untied(c: DebertaConfig) -> bool:
    return not c.tie_word_embeddings


_PART_ROWS: dict[str, tuple[Row, ...]] = {
    "cls": (
        *_dense("cls.predictions.transform.dense", "E", "D"),
        *_norm("cls.predictions.transform.LayerNorm", "E"),
        Row("cls.predictions.bias", ("cls/predictions/bias",), "V", when=lambda c: c.tie_word_embeddings),
        # Without tying, transformers adds the decoder's bias and ignores ``cls.predictions.bias``.
        Row("cls.predictions.bias", (), "V", ABSENT_VOCABULARY, _untied),
        Row("cls.predictions.decoder.bias", ("cls/predictions/bias",), "V", when=_untied),
        Row("cls.predictions.decoder.weight", ("cls/predictions/decoder/kernel",), "V E", LINEAR, _untied),
    ),
    "lm_predictions": (
        *_dense("lm_predictions.lm_head.dense", "E", "D"),
        *_norm("lm_predictions.lm_head.LayerNorm", "E"),
        Row("lm_predictions.lm_head.bias", ("lm_predictions/lm_head/bias",), "V"),
    ),
    "mask_predictions": (
        *_dense("mask_predictions.dense", "D", "D"),
        *_norm("mask_predictions.LayerNorm", "D"),
        *_dense("mask_predictions.classifier", "1", "D"),
    ),
    "pooler": _dense("pooler.dense", "D", "D"),
    "proj": _dense("proj", "D", "D"),
    "classifier": _dense("classifier", "C", "D"),
    "qa_outputs": _dense("qa_outputs", "2", "D"),
}


# The end of a leaf's path -> the end of the name that torch gives it.
_TORCH_ENDS = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def part_rows(config: DebertaConfig, part: str) -> tuple[Row, ...]:
    """Returns the rows of a part of a head.

    If only a head from outside the package has the part, the rows are derived from that head's parameters.
    """
    return _PART_ROWS[part] if part in _PART_ROWS else _derived_rows(config, part)


@functools.lru_cache(maxsize=16)
def _derived_rows(config: DebertaConfig, part: str) -> tuple[Row, ...]:
    """Returns a row for every parameter: kernels of two axes are stored as in a torch ``Linear``, others unchanged."""
    head, spec = next((head, spec) for head, spec in HEADS.items() if part in spec.parts)
    params = abstract_params(spec.model(config))
    if part not in params:
        has = ", ".join(name for name in params if name != ENCODER)
        raise InputError(
            f"head {head!r}: its model has no parameters named {part!r}, which its HeadSpec lists; it has {has}"
        )
    leaves = jax.tree_util.tree_flatten_with_path(params[part])[0]
    rows = []
    for keys, leaf in leaves:
        *modules, end = (part, *(key.key for key in keys))
        linear = end == "kernel" and leaf.ndim == 2
        shape = " ".join(map(str, leaf.shape[::-1] if linear else leaf.shape))
        torch = ".".join([*modules, _TORCH_ENDS.get(end, end)])
        rows.append(Row(torch, ("/".join([*modules, end]),), shape, LINEAR if linear else SAME))
    return tuple(rows)


def is_head_name(name: str) -> bool:
    """Tells whether a canonical name belongs to a head of ``HEADS``."""
    part = part_of(name)
    return name in _HEAD_NAMES or (part not in _PART_ROWS and part in all_parts())


def is_built_in(name: str) -> bool:
    """Tells whether the part of a canonical name is the encoder's or of a head that this package defines."""
    return part_of(name) == ENCODER or part_of(name) in _PART_ROWS


_HEAD_NAMES = {row.torch for rows in _PART_ROWS.values() for row in rows} | {
    "cls.predictions.decoder.weight",
    "cls.predictions.decoder.bias",
}


def sizes(config: DebertaConfig, labels: int) -> dict[str, int]:
    """Returns the sizes that the letters of shapes stand for; ``labels`` is the number of rows of the classifier."""
    return {
        "V": config.vocab_size,
        "E": config.embedding_width,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "N": config.num_attention_heads,
        "H": config.head_size,
        "R": 2 * config.relative_span,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "K": config.conv_kernel_size,
        "G": config.hidden_size // config.conv_groups,
        "C": labels,
    }


def table(config: DebertaConfig, parts: Iterable[str], layout: str = "hf") -> tuple[Row, ...]:
    """Returns the rows of an encoder with these parts of heads.

    Every torch name starts with ``deberta.`` or the name of a part.

    Args:
      layout: ``hf``; or ``microsoft``, which names v1's projections and every masked-LM head (``lm_predictions``) as
        Microsoft's code does.

    Raises:
      InputError: a masked-LM head named ``lm_predictions`` has its own decoder matrix; no published code reads that.
    """
    if config.model_type != V1:
        attention = _ATTENTION_V2
    else:
        attention = _ATTENTION_V1 if layout == "hf" else _ATTENTION_V1_MICROSOFT
    rows = [*_EMBEDDINGS, *_ENCODER_REST, *attention, *_BLOCK]
    for part in parts:
        if _untied(config) and (part == "lm_predictions" or (part == "cls" and layout == "microsoft")):
            raise InputError("tie_word_embeddings=False: a head named lm_predictions is always tied; set legacy=True")
        if part == "cls" and layout == "microsoft":
            legacy = [row for row in _PART_ROWS["cls"] if row.when(config)]
            names = [row.torch for row in _PART_ROWS["lm_predictions"]]
            rows += [dataclasses.replace(row, torch=name) for row, name in zip(legacy, names, strict=True)]
        else:
            rows += part_rows(config, part)
    return tuple(row for row in rows if row.when(config))


_LAYER_NORM = re.compile(r"LayerNorm\.(gamma|beta)$")


def canonical(name: str) -> str:
    """Returns a tensor's name as the rows have it: with the prefix ``deberta.``, and without spellings of old files."""
    if name.startswith("bert."):
        name = "deberta." + name.removeprefix("bert.")
    elif name.startswith(("embeddings.", "encoder.")):
        name = f"deberta.{name}"
    return _LAYER_NORM.sub(lambda m: f"LayerNorm.{'weight' if m[1] == 'gamma' else 'bias'}", name)


def part_of(name: str) -> str:
    """Returns the first component of a canonical name: ``deberta`` or a part of a head."""
    return name.split(".", 1)[0]


def collapse(names: Iterable[str]) -> list[str]:
    """Returns names for messages, escaped and shortened. Those that differ only in the layer become one: ``{0-11}``."""
    groups: dict[str, list[int]] = {}
    for name in (brief(name, 200) for name in names):
        match = re.search(r"(?<=\.layer\.)\d+(?=\.)", name)
        key = name if match is None else f"{name[: match.start()]}{{}}{name[match.end() :]}"
        groups.setdefault(key, []).append(-1 if match is None else int(match[0]))
    out = []
    for key, layers in groups.items():
        if layers[0] < 0:
            out.append(key)
            continue
        layers = sorted(layers)
        consecutive = layers == list(range(layers[0], layers[-1] + 1)) and len(layers) > 1
        text = f"{layers[0]}-{layers[-1]}" if consecutive else ",".join(map(str, layers))
        out.append(key.replace("{}", f"{{{text}}}" if len(layers) > 1 else text))
    return out
