"""Defines the architecture of a model: one frozen, hashable dataclass for DeBERTa v1, v2 and v3.

The fields have the names of Hugging Face's ``config.json``, including those that Hugging Face's models read without
declaring them. How a model is computed (dtype, attention implementation, rematerialization) is not part of it: these
choices are arguments of the model classes and are never saved with weights.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deberta_jax.config_json import (
    ACTIVATIONS,
    BASE,
    MOST_LABELS,
    NO_EFFECT,
    OURS,
    V1,
    V2,
    V2_ONLY,
    Extra,
    parse_config,
    read_json_object,
    split_terms,
)
from deberta_jax.errors import InputError, did_you_mean, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    """Holds the architecture of a DeBERTa model. The defaults are those of Hugging Face's configuration classes.

    Raises:
      InputError: a field has a value that no DeBERTa model can have.
    """

    model_type: str = V2
    vocab_size: int = 128100
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    pad_token_id: int = 0
    embedding_size: int | None = None
    """Size of embedding vectors, which a projection without bias then brings to ``hidden_size``. None: ``hidden_size``,
    without a projection."""
    attention_head_size: int | None = None
    """Size of a head (v2/v3 only). None: ``hidden_size / num_attention_heads``."""

    # Relative position
    relative_attention: bool = False
    """Whether attention scores have relative terms. The score scale counts ``pos_att_type`` even if this is False."""
    pos_att_type: tuple[str, ...] = ()
    """The relative terms of attention scores: ``c2p`` (content to position) and ``p2c`` (position to content)."""
    layer_pos_att_type: tuple[tuple[str, ...], ...] | None = None
    """The relative terms of each layer, some or none of ``pos_att_type``; None: all of them in every layer. The score
    scale of a layer counts its own terms. Other libraries lack this, so config.json then has a ``model_type`` that they
    refuse."""
    max_relative_positions: int = -1
    """Distances from this on are not distinguished. Below 1: ``max_position_embeddings``."""
    position_biased_input: bool = True
    """Whether absolute positions are added to the input embeddings. False in every released model."""
    position_buckets: int = -1
    """Number of buckets for distances in each direction: short distances have their own, longer ones share logarithmic
    ones. Below 1: every distance has its own."""
    share_att_key: bool = False
    """Whether relative positions use the query and key projections of the content."""
    norm_rel_ebd: str = "none"
    """``layer_norm``: the relative table is normalized before use."""
    long_positions: str = "auto"
    """How distances beyond ``max_distance`` are handled. ``clamp``: distances are clamped first, as in Microsoft's code
    for models with buckets. ``hf``: only the index into the relative table is clamped, as in transformers. ``auto``:
    see ``clamps_distances``."""

    # Parts of single generations
    conv_kernel_size: int = 0
    conv_act: str = "tanh"
    conv_groups: int = 1
    talking_head: bool = False

    # Heads
    pooler_dropout: float = 0.0
    pooler_hidden_act: str = "gelu"
    cls_dropout: float | None = None
    id2label: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None
    legacy: bool = True
    """Which masked-LM head the model has: ``cls.predictions`` of transformers (True), or the original
    ``lm_predictions`` (False)."""
    mask_decoder: bool = False
    """Whether the masked-LM head has the enhanced mask decoder, which adds absolute positions before the last layer."""
    classifier_proj: bool = False
    """Whether token classification has Microsoft's additional dense layer ``proj`` before the classifier."""
    tie_word_embeddings: bool = True

    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """Other keys of config.json, such as the settings of another tool. They have no effect, are saved with the model,
    and do not count in comparisons or hashes."""

    def __post_init__(self):
        if not isinstance(self.extra, Extra):
            object.__setattr__(self, "extra", Extra(self.extra))
        if isinstance(self.pos_att_type, list):
            object.__setattr__(self, "pos_att_type", tuple(self.pos_att_type))
        if isinstance(self.layer_pos_att_type, list | tuple):
            terms = tuple(tuple(t) if isinstance(t, list) else t for t in self.layer_pos_att_type)
            object.__setattr__(self, "layer_pos_att_type", terms)
        if isinstance(self.id2label, list):
            object.__setattr__(self, "id2label", tuple(self.id2label))
        _validate(self)

    @property
    def num_labels(self) -> int:
        """Returns the number of labels."""
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        """Returns the id of each label."""
        return {label: i for i, label in enumerate(self.id2label)}

    @property
    def head_size(self) -> int:
        """Returns H, the size of a head."""
        return self.attention_head_size or self.hidden_size // self.num_attention_heads

    @property
    def embedding_width(self) -> int:
        """Returns E, the size of embedding vectors."""
        return self.embedding_size or self.hidden_size

    @property
    def relative_terms(self) -> tuple[str, ...]:
        """Returns the relative terms that are computed: () if ``relative_attention`` is False."""
        return self.pos_att_type if self.relative_attention else ()

    @property
    def score_scale(self) -> float:
        """Returns 1 / sqrt(H * f) with f = 1 + number of relative terms in ``pos_att_type``.

        As in the code of all generations, these count even if ``relative_attention`` is False.
        """
        return 1.0 / math.sqrt(self.head_size * (1 + len(self.pos_att_type)))

    @property
    def max_distance(self) -> int:
        """Distances from this on are not distinguished."""
        return self.max_relative_positions if self.max_relative_positions >= 1 else self.max_position_embeddings

    @property
    def clamps_distances(self) -> bool:
        """Returns whether distances are clamped to ±(max_distance - 1) before the relative index is computed.

        With ``long_positions="auto"`` this is so if there are log buckets up to the length that the model was trained
        for. Row 0 of the relative table, which a longer text would use otherwise, was then never trained. In all other
        cases row 0 was trained, and only the index is clamped, as in PyTorch.
        """
        if self.long_positions != "auto":
            return self.long_positions == "clamp"
        return self.position_buckets > 0 and self.max_distance >= self.max_position_embeddings

    @property
    def relative_span(self) -> int:
        """Returns half the number of rows R of the relative table."""
        return self.position_buckets if self.position_buckets > 0 else self.max_distance

    @property
    def normalizes_relative_table(self) -> bool:
        """Returns whether the relative table is normalized before use."""
        return "layer_norm" in split_terms(self.norm_rel_ebd)

    @property
    def has_position_table(self) -> bool:
        """Returns whether there is a table of absolute positions, for the input or for the mask decoder."""
        return self.position_biased_input or self.mask_decoder

    @property
    def unknown_keys(self) -> tuple[str, ...]:
        """Returns the keys of ``extra`` that neither this package nor transformers knows."""
        return tuple(key for key in self.extra if key not in NO_EFFECT)

    def replace(self, **changes: Any) -> "DebertaConfig":
        """Returns this config with some fields changed. ``num_labels`` gives labels without names.

        Raises:
          InputError: there is no such field, or a value is impossible.
        """
        if "num_labels" in changes:
            count = changes.pop("num_labels")
            if "id2label" in changes:
                raise InputError("give num_labels or id2label, not both")
            if type(count) is not int or not 1 <= count <= MOST_LABELS:
                raise InputError(f"num_labels={shown(count)}: must be a number of labels up to {MOST_LABELS}")
            if count != self.num_labels:
                changes["id2label"] = tuple(f"LABEL_{i}" for i in range(count))
        for name in changes:
            if name not in (*_FIELDS, "extra"):
                raise InputError(f"{name}: is no field of the config{did_you_mean(name, _FIELDS)}")
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_hf(cls, source: "str | Path | Mapping[str, Any]") -> "DebertaConfig":
        """Reads a ``config.json`` of Hugging Face or Microsoft.

        Unknown keys have no effect; they are logged and kept in ``extra``.

        Args:
          source: the path of the file, or its contents.

        Raises:
          InputError: the file is no JSON object, a field is misspelled, or a value is impossible.
        """
        raw, where = read_json_object(source)
        fields, extra = parse_config(raw, where, _FIELDS, cls.hidden_size)
        try:
            _check_kinds(fields)
            fields |= {name: float(fields[name]) for name in _NUMBERS if fields.get(name) is not None}
            return cls(**fields, extra=extra)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """Returns the contents of a ``config.json``. transformers reads it, and ``from_hf`` returns an equal config."""
        out: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        out["pos_att_type"] = list(self.pos_att_type)
        out["id2label"] = {str(i): label for i, label in enumerate(self.id2label)}
        out["label2id"] = self.label2id
        out["pooler_hidden_size"] = self.hidden_size
        # transformers does not have these fields, so they are written only if they differ from the default.
        for key, default in (("long_positions", "auto"), ("mask_decoder", False), ("classifier_proj", False)):
            if out[key] == default:
                del out[key]
        for key in ("embedding_size", "attention_head_size", "cls_dropout", "layer_pos_att_type"):
            if out[key] is None:
                del out[key]
        if self.layer_pos_att_type is not None:
            out["layer_pos_att_type"] = [list(terms) for terms in self.layer_pos_att_type]
            out |= {"model_type": OURS, BASE: self.model_type}
        if self.model_type == V1:
            for key in V2_ONLY:
                out.pop(key, None)
        else:
            del out["talking_head"]
        return {**self.extra, **out}


_FIELDS = tuple(field.name for field in dataclasses.fields(DebertaConfig) if field.name != "extra")

# Fields in which JSON may have an integer, such as a dropout rate of 0.
_NUMBERS = tuple(field.name for field in dataclasses.fields(DebertaConfig) if field.type in (float, float | None))

_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
    int | None: ((int, type(None)), "an integer"),
    float | None: ((int, float, type(None)), "a number"),
    str | None: ((str, type(None)), "text"),
}

# Largest values of sizes: far above those of any model, and small enough that products of them can be computed and that
# all layers can be enumerated.
_MOST = {
    "vocab_size": 10**8,
    "hidden_size": 10**6,
    "num_hidden_layers": 1000,
    "num_attention_heads": 10**6,
    "intermediate_size": 10**7,
    "max_position_embeddings": 10**8,
    "max_relative_positions": 10**8,
    "position_buckets": 10**8,
    "type_vocab_size": 10**6,
    "embedding_size": 10**6,
    "attention_head_size": 10**6,
    "conv_kernel_size": 10**4,
    "conv_groups": 10**6,
}

# The range of numbers that float32 holds without loss of digits.
_SMALLEST, _LARGEST = 2.0**-126, 2.0**127


def _check_kinds(values: Mapping[str, Any]) -> None:
    """Checks that values have the types of their fields. Raises InputError otherwise."""
    for field in dataclasses.fields(DebertaConfig):
        kinds, name = _KINDS.get(field.type, ((), ""))
        if not kinds or field.name not in values:
            continue
        value = values[field.name]
        if type(value) not in kinds or (float in kinds and value is not None and not abs(value) <= _LARGEST):
            raise InputError(f"{field.name}={shown(value)}: must be {name}")
    for name in ("pos_att_type", "id2label"):
        texts = values.get(name, ())
        if not isinstance(texts, tuple) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{name}={shown(texts)}: must be a sequence of texts")


def _validate(c: DebertaConfig) -> None:
    """Checks the values of all fields. Raises InputError for the first that is impossible."""

    def refuse(field: str, why: str):
        raise InputError(f"{field}={shown(getattr(c, field))}: {why}")

    _check_kinds(vars(c))
    taken = next((field for field in _FIELDS if field in c.extra), None)
    if taken is not None:
        raise InputError(f"extra: {taken} is a field of the config; set the field")
    if c.model_type not in (V1, V2):
        refuse("model_type", f"must be {V1!r} or {V2!r}")
    _check_sizes(c, refuse)
    if c.hidden_size % c.num_attention_heads:
        refuse("num_attention_heads", f"must divide hidden_size={c.hidden_size}")
    for field in ("hidden_act", "conv_act", "pooler_hidden_act"):
        if getattr(c, field) not in ACTIVATIONS:
            near = did_you_mean(getattr(c, field), ACTIVATIONS)
            refuse(field, f"unknown activation{near}" if near else f"expected one of {ACTIVATIONS}")
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout"):
        rate = getattr(c, field)
        if rate is not None and not 0 <= rate < 1:
            refuse(field, "a dropout rate lies in [0, 1)")
    if not 0 <= c.pad_token_id < c.vocab_size:
        refuse("pad_token_id", f"must be an id below vocab_size={c.vocab_size}")
    _check_layer_terms(c, refuse)
    for term in c.pos_att_type:
        if term == "p2p":
            refuse("pos_att_type", "p2p runs in no published code and no released model has it; use c2p and p2c")
        if term not in ("c2p", "p2c"):
            refuse("pos_att_type", "its entries must be 'c2p' or 'p2c'")
    if len(set(c.pos_att_type)) != len(c.pos_att_type):
        refuse("pos_att_type", "names a term twice")
    if not set(split_terms(c.norm_rel_ebd)) <= {"none", "layer_norm"}:
        refuse("norm_rel_ebd", "must be 'none' or 'layer_norm'")
    if c.long_positions not in ("auto", "clamp", "hf"):
        refuse("long_positions", "must be 'auto', 'clamp' or 'hf'")
    if c.position_buckets > 0 and (c.position_buckets < 2 or c.max_distance - 1 <= c.position_buckets // 2):
        refuse("position_buckets", f"needs at least 2 buckets and a half below max distance {c.max_distance} - 1")
    if c.conv_kernel_size > 0 and c.conv_kernel_size % 2 == 0:
        refuse("conv_kernel_size", "must be odd: an even kernel changes the length of the text")
    if c.hidden_size % c.conv_groups:
        refuse("conv_groups", f"must divide hidden_size={c.hidden_size}")
    if c.problem_type not in (None, "regression", "single_label_classification", "multi_label_classification"):
        refuse("problem_type", "must be regression, single_label_classification or multi_label_classification")
    if not c.id2label:
        refuse("id2label", "needs at least one label")
    if len(c.id2label) > MOST_LABELS:
        refuse("id2label", f"has {len(c.id2label)} labels; at most {MOST_LABELS} are possible")
    if len(set(c.id2label)) != len(c.id2label):
        refuse("id2label", "has one name twice")
    if c.mask_decoder and (c.position_biased_input or c.legacy):
        refuse("mask_decoder", "needs position_biased_input=False and legacy=False")
    if c.mask_decoder and c.embedding_width != c.hidden_size:
        refuse("mask_decoder", "adds positions to hidden states, so embedding_size must equal hidden_size")
    if not c.tie_word_embeddings and not c.legacy:
        refuse("tie_word_embeddings", "the original masked-LM head (legacy=False) always reads the word table")
    _check_generation(c, refuse)


def _check_layer_terms(c: DebertaConfig, refuse: Callable[[str, str], None]) -> None:
    """Checks the relative terms of each layer."""
    layers = c.layer_pos_att_type
    if layers is None:
        return
    field = "layer_pos_att_type"
    if not isinstance(layers, tuple) or not all(isinstance(terms, tuple) for terms in layers):
        refuse(field, "must be a list of terms for each layer, such as [['c2p', 'p2c'], ['c2p'], []]")
    if len(layers) != c.num_hidden_layers:
        refuse(field, f"has {len(layers)} entries; num_hidden_layers is {c.num_hidden_layers}")
    if not c.relative_attention:
        refuse(field, "needs relative_attention")
    if any(len({*map(repr, terms)}) != len(terms) or any(t not in c.pos_att_type for t in terms) for terms in layers):
        refuse(field, f"its entries hold some of pos_att_type={list(c.pos_att_type)}, each at most once")


def _check_sizes(c: DebertaConfig, refuse: Callable[[str, str], None]) -> None:
    """Checks sizes and numbers, before anything is allocated or enumerated by them."""
    for field, most in _MOST.items():
        value = getattr(c, field)
        if value is not None and value > most:
            refuse(field, f"is too large for a model; must be at most {most}")
    for field in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "conv_groups",
        "embedding_size",
        "attention_head_size",
    ):
        if getattr(c, field) is not None and getattr(c, field) < 1:
            refuse(field, "must be at least 1")
    if c.type_vocab_size < 0:
        refuse("type_vocab_size", "must be at least 0")
    if c.layer_norm_eps < _SMALLEST:
        refuse("layer_norm_eps", "must be a positive number that float32 can hold")
    if c.initializer_range < 0:
        refuse("initializer_range", "is a standard deviation, which must be at least 0")


def _check_generation(c: DebertaConfig, refuse: Callable[[str, str], None]) -> None:
    """Checks that a model has no fields of another generation."""
    if c.model_type == V1:
        defaults = {f.name: f.default for f in dataclasses.fields(c)}
        for field in V2_ONLY:
            if getattr(c, field) != defaults[field]:
                refuse(field, "is a field of v2/v3; a v1 model (model_type='deberta') has none")
    elif c.talking_head:
        refuse("talking_head", "is a field of v1; a v2/v3 model has none")
