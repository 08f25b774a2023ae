"""What architecture a checkpoint has: one frozen, hashable dataclass for DeBERTa v1, v2 and v3.

The fields are those of Hugging Face's ``config.json`` under the same names, together with those that Hugging Face's
models read without declaring them. Nothing here says how a model is computed (dtype, attention body, remat): those
choices are arguments of the model classes and never travel with weights.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deberta_jax.errors import InputError

V1, V2 = "deberta", "deberta-v2"

ACTIVATIONS = (
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh",
)  # fmt: skip

# Fields that only v2/v3 models read. Hugging Face's v1 model ignores them, so from_hf drops them for v1.
_V2_ONLY = (
    "position_buckets", "share_att_key", "norm_rel_ebd", "conv_kernel_size", "conv_act", "conv_groups",
    "attention_head_size",
)  # fmt: skip

# Keys of config.json that say nothing about the function the weights compute.
_NO_EFFECT = frozenset({
    "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward", "cross_attention_hidden_size",
    "decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing", "is_decoder",
    "is_encoder_decoder", "add_cross_attention", "model_name", "output_attentions", "output_hidden_states",
    "output_past", "prefix", "pruned_heads", "return_dict", "sep_token_id", "task_specific_params",
    "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "use_bfloat16", "use_cache",
    "vocab_type", "z_steps",
})  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebertaConfig:
    """Architecture of a DeBERTa model; defaults are those of Hugging Face's configuration classes.

    Raises:
      InputError: a value that no DeBERTa model can have; the message names the field.
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
    """Width of the embedding tables; None means ``hidden_size``. Otherwise a bias-free projection follows."""
    attention_head_size: int | None = None
    """Width of a head (v2/v3 only); None means ``hidden_size / num_attention_heads``."""

    # Relative position
    relative_attention: bool = False
    """The master switch of the relative terms. The score scale counts ``pos_att_type`` even when this is off."""
    pos_att_type: tuple[str, ...] = ()
    """Which relative terms the scores have: any of ``c2p`` (content to position) and ``p2c``."""
    max_relative_positions: int = -1
    """Largest distance told apart; below 1 means ``max_position_embeddings``."""
    position_biased_input: bool = True
    """Absolute positions are added to the input embeddings. False in every released model."""
    position_buckets: int = -1
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    long_positions: str = "clamp"
    """Distances beyond the trained range, in bucketed models: ``clamp`` first, as the original training code does, or
    ``hf``, as transformers does, which reads a table row that no text of up to 512 tokens ever trained."""

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
    """Names of the masked-LM head: ``cls.predictions`` (True) or the original ``lm_predictions`` (False)."""
    mask_decoder: bool = False
    """The masked-LM head reads the enhanced mask decoder (absolute positions enter before the last layer)."""
    classifier_proj: bool = False
    """Token classification has Microsoft's extra dense layer ``proj`` before the classifier."""
    tie_word_embeddings: bool = True

    def __post_init__(self):
        if isinstance(self.pos_att_type, list):
            object.__setattr__(self, "pos_att_type", tuple(self.pos_att_type))
        if isinstance(self.id2label, list):
            object.__setattr__(self, "id2label", tuple(self.id2label))
        _validate(self)

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.id2label)}

    @property
    def head_size(self) -> int:
        return self.attention_head_size or self.hidden_size // self.num_attention_heads

    @property
    def embedding_width(self) -> int:
        return self.embedding_size or self.hidden_size

    @property
    def relative_terms(self) -> tuple[str, ...]:
        """The relative terms that are computed: () when ``relative_attention`` is off."""
        return self.pos_att_type if self.relative_attention else ()

    @property
    def score_scale(self) -> float:
        """1 / sqrt(H * f) with f = 1 + number of named terms, on or off (both generations' code counts so)."""
        return 1.0 / math.sqrt(self.head_size * (1 + len(self.pos_att_type)))

    @property
    def max_distance(self) -> int:
        return self.max_relative_positions if self.max_relative_positions >= 1 else self.max_position_embeddings

    @property
    def relative_span(self) -> int:
        """Half the number of rows of the relative table."""
        return self.position_buckets if self.position_buckets > 0 else self.max_distance

    @property
    def normalizes_relative_table(self) -> bool:
        return "layer_norm" in _split(self.norm_rel_ebd)

    @property
    def has_position_table(self) -> bool:
        """The absolute position table exists: as an input bias or for the mask decoder."""
        return self.position_biased_input or self.mask_decoder

    @classmethod
    def from_hf(cls, source: "str | Path | Mapping[str, Any]") -> "DebertaConfig":
        """Reads a ``config.json`` (path, or its contents as a mapping), from Hugging Face or Microsoft.

        Raises:
          InputError: a file that is no JSON object, a key that is not known, or a value that cannot be.
        """
        raw, where = _read(source)
        known = {f.name for f in dataclasses.fields(cls)}
        v1 = _generation(raw, where) == V1
        kept: dict[str, Any] = {"model_type": V1 if v1 else V2}
        unknown = []
        for key, value in _rename_microsoft(raw, where).items():
            if key == "model_type" or key in _NO_EFFECT or key.startswith("_") or (v1 and key in _V2_ONLY):
                continue
            if key in ("id2label", "label2id", "num_labels"):
                continue
            if key == "pooler_hidden_size":
                if value != raw.get("hidden_size", cls.hidden_size):
                    raise InputError(
                        f"{where}: pooler_hidden_size {value} differs from hidden_size; no such model works"
                    )
            elif key not in known:
                near = difflib.get_close_matches(key, known, 1)
                unknown.append(f"{key} (did you mean {near[0]}?)" if near else key)
            elif key == "pos_att_type":
                kept[key] = _terms(value)
            elif value is not None:
                kept[key] = value
        if unknown:
            raise InputError(f"{where}: unknown key {', '.join(unknown)}; remove it, it would not be obeyed")
        labels = _labels(raw, where)
        if labels is not None:
            kept["id2label"] = labels
        return cls(**kept)

    def to_hf(self) -> dict[str, Any]:
        """The contents of a ``config.json`` that both transformers and ``from_hf`` read back to an equal config."""
        out: dict[str, Any] = dataclasses.asdict(self)
        out["pos_att_type"] = list(self.pos_att_type)
        out["id2label"] = {str(i): label for i, label in enumerate(self.id2label)}
        out["label2id"] = self.label2id
        out["pooler_hidden_size"] = self.hidden_size
        # transformers has no such fields: written only where they say something.
        for key, default in (("long_positions", "clamp"), ("mask_decoder", False), ("classifier_proj", False)):
            if out[key] == default:
                del out[key]
        for key in ("embedding_size", "attention_head_size", "cls_dropout"):
            if out[key] is None:
                del out[key]
        if self.model_type == V1:
            for key in _V2_ONLY:
                out.pop(key, None)
        else:
            del out["talking_head"]
        return out


def _read(source) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return dict(source), "config"
    path = Path(source)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; a model directory needs a config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return raw, str(path)


def _generation(raw: Mapping[str, Any], where: str) -> str:
    if "discriminator" in raw and "generator" in raw:
        raise InputError(f"{where}: holds two models; give its 'generator' or 'discriminator' entry by itself")
    kind = raw.get("model_type")
    if kind in (V1, V2):
        return kind
    if kind is not None:
        raise InputError(f"{where}: model_type {kind!r} is not DeBERTa; expected {V1!r} or {V2!r}")
    # Microsoft's own configs carry no model_type; only v2/v3 ones name these fields.
    if any(key in raw for key in _V2_ONLY):
        return V2
    raise InputError(f"{where}: model_type is missing; set it to {V1!r} (v1) or {V2!r} (v2 and v3)")


def _rename_microsoft(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    out = dict(raw)
    if "padding_idx" in out:
        out.setdefault("pad_token_id", out["padding_idx"])
        del out["padding_idx"]
    pooling = out.pop("pooling", None) or {}
    names = {"hidden_size": "pooler_hidden_size", "dropout": "pooler_dropout", "hidden_act": "pooler_hidden_act"}
    for key, value in pooling.items():
        if key not in names:
            raise InputError(f"{where}: unknown key pooling.{key}; remove it, it would not be obeyed")
        out.setdefault(names[key], value)
    return out


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.lower().split("|") if part.strip())


def _terms(value) -> tuple[str, ...]:
    if value is None:
        return ()
    parts = _split(value) if isinstance(value, str) else tuple(value)
    return tuple(part for part in parts if part != "none")


def _labels(raw: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    id2label, label2id, count = raw.get("id2label"), raw.get("label2id"), raw.get("num_labels")
    if id2label is None and label2id is not None:
        id2label = {i: label for label, i in label2id.items()}
    if id2label is None:
        return None if count is None else tuple(f"LABEL_{i}" for i in range(count))
    if isinstance(id2label, Mapping):
        try:
            by_id = {int(i): str(label) for i, label in id2label.items()}
        except ValueError:
            raise InputError(f"{where}: id2label has a key that is no integer") from None
    else:
        by_id = dict(enumerate(id2label))
    if sorted(by_id) != list(range(len(by_id))):
        raise InputError(f"{where}: id2label must number its labels 0 to {len(by_id) - 1}, found {sorted(by_id)}")
    if count is not None and count != len(by_id):
        raise InputError(f"{where}: num_labels is {count} but id2label has {len(by_id)} entries")
    return tuple(by_id[i] for i in range(len(by_id)))


_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "text"),
}


def _validate(c: DebertaConfig) -> None:
    def refuse(field: str, why: str):
        raise InputError(f"{field}={getattr(c, field)!r}: {why}")

    for field in dataclasses.fields(c):
        kinds, name = _KINDS.get(field.type, ((), ""))
        if kinds and type(getattr(c, field.name)) not in kinds:
            refuse(field.name, f"must be {name}")
    if c.model_type not in (V1, V2):
        refuse("model_type", f"must be {V1!r} or {V2!r}")
    for field in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                  "max_position_embeddings", "conv_groups"):  # fmt: skip
        if getattr(c, field) < 1:
            refuse(field, "must be at least 1")
    if c.hidden_size % c.num_attention_heads:
        refuse("num_attention_heads", f"must divide hidden_size={c.hidden_size}")
    for field in ("hidden_act", "conv_act", "pooler_hidden_act"):
        if getattr(c, field) not in ACTIVATIONS:
            near = difflib.get_close_matches(str(getattr(c, field)), ACTIVATIONS, 1)
            refuse(
                field, f"unknown activation; did you mean {near[0]!r}?" if near else f"expected one of {ACTIVATIONS}"
            )
    for field in ("hidden_dropout_prob", "attention_probs_dropout_prob", "pooler_dropout", "cls_dropout"):
        rate = getattr(c, field)
        if rate is not None and not 0 <= rate < 1:
            refuse(field, "a dropout rate lies in [0, 1)")
    if not 0 <= c.pad_token_id < c.vocab_size:
        refuse("pad_token_id", f"must be an id below vocab_size={c.vocab_size}")
    for term in c.pos_att_type:
        if term == "p2p":
            refuse("pos_att_type", "p2p runs in no published code and no released model has it; use c2p and p2c")
        if term not in ("c2p", "p2c"):
            refuse("pos_att_type", "its entries must be 'c2p' or 'p2c'")
    if len(set(c.pos_att_type)) != len(c.pos_att_type):
        refuse("pos_att_type", "names a term twice")
    if not set(_split(c.norm_rel_ebd)) <= {"none", "layer_norm"}:
        refuse("norm_rel_ebd", "must be 'none' or 'layer_norm'")
    if c.long_positions not in ("clamp", "hf"):
        refuse("long_positions", "must be 'clamp' or 'hf'")
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
    if c.mask_decoder and (c.position_biased_input or c.legacy):
        refuse("mask_decoder", "needs position_biased_input=False and legacy=False")
    if c.mask_decoder and c.embedding_width != c.hidden_size:
        refuse("mask_decoder", "adds positions to hidden states, so embedding_size must equal hidden_size")
    if not c.tie_word_embeddings and not c.legacy:
        refuse("tie_word_embeddings", "the original masked-LM head (legacy=False) always reads the word table")
    if c.model_type == V1:
        defaults = {f.name: f.default for f in dataclasses.fields(c)}
        for field in _V2_ONLY:
            if getattr(c, field) != defaults[field]:
                refuse(field, "is a field of v2/v3; a v1 model (model_type='deberta') has none")
    elif c.talking_head:
        refuse("talking_head", "is a field of v1; a v2/v3 model has none")
