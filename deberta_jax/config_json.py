"""Parses config.json into the fields of an architecture and other keys.

The files come from transformers, from Microsoft's code, and from other tools that add their own keys
(sentence-transformers, tasksource). A key that no DeBERTa model uses has no effect; it is kept and logged. A misspelled
field is refused: the field would silently keep its default, which changes the model.
"""

import contextlib
import copy
import functools
import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from deberta_jax import storage
from deberta_jax.errors import InputError, brief, listed, shown

_log = logging.getLogger(__name__)

V1, V2 = "deberta", "deberta-v2"

# The model type of a model that other libraries would compute otherwise, and the key of what it would be without that.
OURS, BASE = "deberta_jax", "base_model_type"

# Fields that only v2/v3 models read. Hugging Face's v1 model ignores them, so they are dropped for v1.
V2_ONLY = (
    "position_buckets",
    "share_att_key",
    "norm_rel_ebd",
    "conv_kernel_size",
    "conv_act",
    "conv_groups",
    "attention_head_size",
)

# Keys that transformers writes and that do not affect what the model computes: kept, not logged.
NO_EFFECT = frozenset(
    [
        "add_cross_attention",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "eos_token_id",
        "finetuning_task",
        "gradient_checkpointing",
        "is_decoder",
        "is_encoder_decoder",
        "model_name",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "prefix",
        "pruned_heads",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torchscript",
        "use_bfloat16",
        "use_cache",
        "vocab_type",
        "z_steps",
    ]
)

# Keys about the other files of the directory. They are not kept, because saving a model writes other files.
_OF_THE_FILES = frozenset({"architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"})
_QUANTIZATION = "quantization_config"

_LABELS = ("id2label", "label2id", "num_labels")
_MICROSOFT = ("padding_idx", "pooling", "pooler_hidden_size")
_POOLING = {"hidden_size": "pooler_hidden_size", "dropout": "pooler_dropout", "hidden_act": "pooler_hidden_act"}

# At most this many unknown keys are compared with the names of fields. No real file has more.
_MOST_COMPARED = 1000

ACTIVATIONS = (
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_python_tanh",
    "gelu_pytorch_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "sqrtsoftplus",
    "swish",
    "tanh",
)

MOST_LABELS = 1_000_000
"""Largest number of labels of a model."""

# Values that are their own copies.
_SCALARS = frozenset({str, int, float, bool, type(None)})


class Extra(Mapping[str, Any]):
    """Holds an immutable JSON object; values are returned as copies.

    Raises:
      InputError: a value cannot be represented in JSON.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Any]):
        self._items: dict[str, Any] = dict(items)
        odd = next((key for key in self._items if not isinstance(key, str)), None)
        if odd is not None:
            raise InputError(f"extra: is no JSON object (it has the key {shown(odd)})")
        try:
            for key in [key for key, value in self._items.items() if type(value) not in _SCALARS]:
                self._items[key] = json.loads(json.dumps(self._items[key]))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"extra: is no JSON object ({brief(error)})") from None

    def __getitem__(self, key: str) -> Any:
        value = self._items[key]
        return value if type(value) in _SCALARS else copy.deepcopy(value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __deepcopy__(self, memo: Any) -> "Extra":
        return self

    def __repr__(self) -> str:
        return f"Extra({self._items!r})"


class Contents(NamedTuple):
    """Holds the contents of a config.json: the fields of an architecture, and the other keys that are kept."""

    fields: dict[str, Any]
    extra: dict[str, Any]


def read_json_object(source: str | storage.AnyPath | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Reads a JSON object from a file; a mapping is returned as it is.

    Returns:
      The object, and its name for messages.

    Raises:
      InputError: the file does not exist, or holds no JSON object.
    """
    if isinstance(source, Mapping):
        return dict(source), "config"
    with storage.reaching(source) as path:
        there = path.exists()
    if not there:
        raise InputError(f"{path}: no such file; a model directory needs a config.json")
    return storage.read_json_object(path), str(path)


def parse_config(raw: Mapping[str, Any], where: str, known: Collection[str], hidden_size: int) -> Contents:
    """Splits the contents of a config.json into fields and other keys, and logs unknown keys once per file.

    Args:
      raw: the contents.
      where: the name of the file, for messages.
      known: the names of the fields.
      hidden_size: the hidden size if the file has none.

    Raises:
      InputError: the model is not DeBERTa, a field is misspelled, or the labels are impossible.
    """
    odd = next((key for key in raw if not isinstance(key, str)), None)
    if odd is not None:
        raise InputError(f"{where}: has the key {shown(odd)}; keys are text")
    v1 = _generation(raw, where) == V1
    fields: dict[str, Any] = {"model_type": V1 if v1 else V2}
    extra: dict[str, Any] = {}
    unknown: list[str] = []
    names = frozenset(known)
    for key, value in _rename_microsoft(raw, where).items():
        if key in ("model_type", *_LABELS) or key in _OF_THE_FILES or key.startswith("_") or (v1 and key in V2_ONLY):
            continue
        if key == BASE and raw.get("model_type") == OURS:
            continue
        if key == "pooler_hidden_size":
            if value != raw.get("hidden_size", hidden_size):
                why = f"pooler_hidden_size {shown(value)} differs from hidden_size; no such model works"
                raise InputError(f"{where}: {why}")
        elif key == "pos_att_type":
            fields[key] = _terms(value, where)
        elif key == "layer_pos_att_type" and value is not None:
            if not isinstance(value, list | tuple):
                why = "expected the terms of each layer, such as [['c2p', 'p2c'], ['c2p'], []]"
                raise InputError(f"{where}: {key} is {shown(value)}; {why}")
            fields[key] = tuple(_terms(terms, where) for terms in value)
        elif key in names:
            if value is not None:
                fields[key] = value
        else:
            if key not in NO_EFFECT:
                unknown.append(key)
            if key != _QUANTIZATION:
                extra[key] = value
    _refuse_misspelled(unknown, known, where)
    # Alone it needs no message: the tensors show how they are quantized.
    if unknown and unknown != [_QUANTIZATION]:
        note = f"; {_QUANTIZATION} is not: it follows from what is written" if _QUANTIZATION in unknown else ""
        _log_once(f"{where}: keys that are not known change nothing and are kept{note}: {listed(unknown)}")
    labels = _labels(raw, where)
    if labels is not None:
        fields["id2label"] = labels
    return Contents(fields, extra)


@functools.lru_cache(maxsize=256)
def _log_once(message: str) -> None:
    """Logs a message once: a command may read the same config.json several times."""
    _log.info("%s", message)


def _refuse_misspelled(unknown: Collection[str], known: Collection[str], where: str) -> None:
    """Raises InputError if an unknown key is probably a misspelled field."""
    names = [*known, *_LABELS, *_MICROSOFT]
    slips = []
    for key in list(unknown)[:_MOST_COMPARED]:
        near = _field_meant(key, names)
        if near is not None:
            slips.append(f"{brief(key)} (did you mean {near}?)")
    if slips:
        shown = ", ".join(slips[:5]) + (f" and {len(slips) - 5} more" if len(slips) > 5 else "")
        raise InputError(f"{where}: unknown key {shown}; rename or remove it, it would not be obeyed")


def _field_meant(key: str, names: Collection[str]) -> str | None:
    """Returns the field that a key equals except for capitals, hyphens and one edit (two if over ten letters)."""
    if len(key) > 60:
        return None
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).lower().replace("-", "_")
    for name in names:
        allowed = 1 if min(len(plain), len(name)) <= 10 else 2
        # These two cheap tests exclude nearly all names: an edit changes at most two of the different letters.
        if abs(len(plain) - len(name)) > allowed or len(set(plain) ^ set(name)) > 2 * allowed:
            continue
        if _edits(plain, name) <= allowed:
            return name
    return None


def _edits(a: str, b: str) -> int:
    """Returns the number of letters inserted, left out, changed or swapped with the next (optimal string alignment)."""
    before, row = [0] * (len(b) + 1), list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, before, row = before, row, [i, *[0] * len(b)]
        for j, y in enumerate(b, 1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                row[j] = min(row[j], last[j - 2] + 1)
    return row[-1]


def _generation(raw: Mapping[str, Any], where: str) -> str:
    """Returns the model type of a config.json, V1 or V2. Raises InputError if it is another or unknown."""
    if "discriminator" in raw and "generator" in raw:
        raise InputError(f"{where}: holds two models; give its 'generator' or 'discriminator' entry by itself")
    kind = raw.get("model_type")
    if kind == OURS and raw.get(BASE) in (V1, V2):
        return raw[BASE]
    if kind in (V1, V2):
        return kind
    if kind is not None:
        raise InputError(f"{where}: model_type {shown(kind)} is not DeBERTa; expected {V1!r} or {V2!r}")
    # Microsoft's own configs carry no model_type; only v2/v3 ones name these fields.
    if any(key in raw for key in V2_ONLY):
        return V2
    raise InputError(f"{where}: model_type is missing; set it to {V1!r} (v1) or {V2!r} (v2 and v3)")


def _rename_microsoft(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Renames the keys of Microsoft's configs to those of Hugging Face."""
    out = dict(raw)
    if "padding_idx" in out:
        out.setdefault("pad_token_id", out["padding_idx"])
        del out["padding_idx"]
    pooling = out.pop("pooling", None)
    pooling = {} if pooling is None else pooling
    if not isinstance(pooling, Mapping):
        raise InputError(f"{where}: pooling is {shown(pooling)}; expected an object of {', '.join(_POOLING)}")
    for key, value in pooling.items():
        if key not in _POOLING:
            raise InputError(f"{where}: unknown key pooling.{brief(key)}; remove it, it would not be obeyed")
        out.setdefault(_POOLING[key], value)
    return out


def split_terms(text: str) -> tuple[str, ...]:
    """Returns the parts of a text such as ``"p2c|c2p"``, in lower case."""
    return tuple(part.strip() for part in text.lower().split("|") if part.strip())


def _terms(value: Any, where: str) -> tuple[str, ...]:
    """Returns the terms of ``pos_att_type``. Raises InputError if it is neither text nor a list."""
    if value is None:
        return ()
    parts = split_terms(value) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"{where}: pos_att_type is {shown(value)}; expected text such as 'p2c|c2p', or a list")
    return tuple(part for part in parts if part != "none")


def _labels(raw: Mapping[str, Any], where: str) -> tuple[str, ...] | None:
    """Returns the labels of a config.json, or None if it has none. Raises InputError if they are impossible."""
    id2label, label2id, count = raw.get("id2label"), raw.get("label2id"), raw.get("num_labels")
    if count is not None and (type(count) is not int or not 1 <= count <= MOST_LABELS):
        raise InputError(f"{where}: num_labels is {shown(count)}; expected a number of labels up to {MOST_LABELS}")
    if id2label is None and isinstance(label2id, Mapping):
        # A list of pairs, because a dict would lose one of two labels with the same id.
        pairs = [(i, label) for label, i in label2id.items()]
    elif isinstance(id2label, Mapping):
        pairs = list(id2label.items())
    elif isinstance(id2label, list | tuple):
        pairs = list(enumerate(id2label))
    elif id2label is None and label2id is None:
        return None if count is None else tuple(f"LABEL_{i}" for i in range(count))
    else:
        name, value = ("label2id", label2id) if id2label is None else ("id2label", id2label)
        raise InputError(f"{where}: {name} is {shown(value)}; expected an object")
    numbered = sorted((_label_id(i, where), _label(label, where)) for i, label in pairs)
    ids = [i for i, _ in numbered]
    if ids != list(range(len(ids))):
        raise InputError(f"{where}: id2label must number its labels 0 to {len(ids) - 1}, found {listed(ids)}")
    if count is not None and count != len(ids):
        raise InputError(f"{where}: num_labels is {count} but id2label has {len(ids)} entries")
    return _apart([label for _, label in numbered], where)


def _label_id(value: Any, where: str) -> int:
    """Returns the id of a label, which JSON writes as text where it is a key. Raises InputError if it is none."""
    if isinstance(value, str) and len(value) <= 20:
        with contextlib.suppress(ValueError):
            return int(value)
    if type(value) is not int:
        raise InputError(f"{where}: id2label has a key that is no integer: {shown(value)}")
    return value


def _label(value: Any, where: str) -> str:
    """Returns the name of a label, which some programs write as a number. Raises InputError if it is none."""
    if value is None or type(value) not in _SCALARS:
        raise InputError(f"{where}: id2label has a label that is no text: {shown(value)}")
    return str(value)


def _apart(labels: list[str], where: str) -> tuple[str, ...]:
    """Makes the labels distinct by adding a number to repeated ones, so that answers by name keep all probabilities."""
    out: list[str] = []
    taken, renamed = set(labels), []
    seen: set[str] = set()
    for i, label in enumerate(labels):
        name = label
        if label in seen:
            name = f"{label}_{i}"
            while name in taken:
                name += "_"
            renamed.append(f"{brief(label)} (id {i}) is {brief(name)}")
        seen.add(name)
        taken.add(name)
        out.append(name)
    if renamed:
        _log_once(f"{where}: id2label has one name twice: {listed(renamed)}")
    return tuple(out)
