"""Small models for comparison: a configuration, weights from a frozen generator, inputs, and a mapping of its own.

A case is complete without PyTorch: weights are drawn by name from ``RandomState``, whose streams numpy has promised
never to change, so a recorded output needs no recorded weights. ``to_tree`` places PyTorch's names in this package's
tree; it is written from the description of both and shares no code with ``deberta_jax.weights``, which it tests.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.config import DebertaConfig
from deberta_jax.models import HEADS, Model, abstract_params
from deberta_jax.ops import losses

Arrays = dict[str, np.ndarray]

_TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "position_biased_input": False,
}
BASE: dict[str, dict[str, Any]] = {
    "v1": {"model_type": "deberta", **_TINY},
    "v2": {"model_type": "deberta-v2", **_TINY},
    "v3": {
        "model_type": "deberta-v2",
        **_TINY,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 8,
    },
    "xl": {
        "model_type": "deberta-v2",
        **_TINY,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_buckets": 8,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison. ``padding``: none, right or left; ``inputs``: which optional inputs are given."""

    name: str
    base: str
    head: str = "encoder"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    length: int = 11
    padding: str = "right"
    labels: str = "default"
    inputs: tuple[str, ...] = ()
    long_positions: str = "auto"

    @property
    def raw(self) -> dict[str, Any]:
        """The contents of ``config.json``."""
        classes = {"sequence-classification": 3, "token-classification": 5}.get(self.head, 2)
        if self.labels == "regression":
            classes = 1
        names = {"id2label": {i: f"LABEL_{i}" for i in range(classes)}}
        return {**BASE[self.base], **names, **self.options}

    @property
    def config(self) -> DebertaConfig:
        return dataclasses.replace(DebertaConfig.from_hf(self.raw), long_positions=self.long_positions)

    def model(self, **runtime: Any) -> Model:
        return HEADS[self.head].model(self.config, **runtime)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row: a full one, a shorter one, and where there is padding a row of one and one of none."""
        t = self.length
        return [t, t] if self.padding == "none" else [t, max(1, (6 * t) // 10), 1, 0]

    def batch(self) -> Arrays:
        """input_ids, attention_mask, the optional inputs asked for, and labels."""
        return make_batch(self)


def make_batch(case: Case) -> Arrays:
    random = np.random.RandomState(zlib.crc32(case.name.encode()) % 2**31)
    config, length, lengths = case.config, case.length, case.lengths
    if case.labels in ("regression", "multi_label", "soft"):
        lengths = [max(1, n) for n in lengths]  # such labels have no value that says "ignore" in transformers
    choices = 3 if case.head == "multiple-choice" else 1
    lengths = [max(1, n) if choices > 1 else n for n in lengths for _ in range(choices)]
    rows = len(lengths)
    position, count = np.arange(length)[None], np.array(lengths)[:, None]
    real = position >= length - count if case.padding == "left" else position < count
    ids = np.where(real, random.randint(1, config.vocab_size, (rows, length)), config.pad_token_id)
    out: Arrays = {"input_ids": ids.astype(np.int32), "attention_mask": real.astype(np.int32)}
    if "token_type_ids" in case.inputs:
        out["token_type_ids"] = random.randint(0, 2, (rows, length)).astype(np.int32)
    if "position_ids" in case.inputs:
        out["position_ids"] = random.randint(0, config.max_position_embeddings, (rows, length)).astype(np.int32)
    if "inputs_embeds" in case.inputs:
        del out["input_ids"]
        out["inputs_embeds"] = random.standard_normal((rows, length, config.embedding_width)).astype(np.float32)
    labels = make_labels(case, random, real)
    if choices > 1:
        out = {name: a.reshape(-1, choices, length) for name, a in out.items()}
    return out | labels


def make_labels(case: Case, random: np.random.RandomState, real: np.ndarray) -> Arrays:
    config, rows = case.config, len(real)
    if case.head in ("masked-lm", "token-classification"):
        classes = config.vocab_size if case.head == "masked-lm" else config.num_labels
        chosen = real & (random.random_sample(real.shape) < 0.6)
        chosen[0, np.argmax(real[0])] = True
        return {"labels": np.where(chosen, random.randint(0, classes, real.shape), -100).astype(np.int32)}
    if case.head == "question-answering":
        first = np.argmax(real, axis=1)
        span = np.sort(random.randint(0, np.maximum(real.sum(1), 1)[:, None], (rows, 2)), axis=1) + first[:, None]
        span[~real.any(axis=1)] = real.shape[1]
        return {"starts": span[:, 0].astype(np.int32), "ends": span[:, 1].astype(np.int32)}
    if case.head == "replaced-token-detection":
        return {"labels": np.where(real, random.randint(0, 2, real.shape), -100).astype(np.int32)}
    if case.head == "multiple-choice":
        return {"labels": random.randint(0, 3, rows // 3).astype(np.int32)}
    if case.head == "encoder":
        return {"cotangent": random.standard_normal((*real.shape, config.hidden_size)).astype(np.float32)}
    if case.labels in ("multi_label", "soft"):
        values = random.random_sample((rows, config.num_labels))
        values = (values > 0.5) if case.labels == "multi_label" else values / values.sum(1, keepdims=True)
        return {"labels": values.astype(np.float32)}
    if case.labels == "regression":
        return {"labels": random.standard_normal(rows).astype(np.float32)}
    return {"labels": np.where(real.any(axis=1), random.randint(0, config.num_labels, rows), -100).astype(np.int32)}


def draw_weights(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Weights by name, of a size that keeps every state of order 1; nothing is zero or symmetric."""
    out = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(name.encode()) % 2**31)
        value = random.standard_normal(shape)
        if "LayerNorm.weight" in name:
            value = 1 + 0.2 * value
        elif name.endswith("bias"):
            value = 0.2 * value
        elif "rel_embeddings" not in name:
            value = value / np.sqrt(np.prod(shape[1:]))  # of its inputs; for a table, of its width
        out[name] = value.astype(np.float32)
    return out


def draw_params(model: Model) -> dict[str, Any]:
    """The same for a model by itself: values by the paths of its tree."""

    def draw(path, leaf):
        name = ".".join(entry.key for entry in path)
        value = np.random.RandomState(zlib.crc32(name.encode()) % 2**31).standard_normal(leaf.shape)
        if name.endswith("scale"):
            value = 1 + 0.2 * value
        elif name.endswith("bias"):
            value = 0.2 * value
        elif "rel_embeddings" not in name:
            value = value / np.sqrt(model.config.hidden_size)
        return jnp.asarray(value, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


def to_tree(config: DebertaConfig, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """PyTorch's names and layouts -> this package's tree."""
    tree: dict[str, Any] = {}
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, value in _split_v1(config, state).items():
        head, found, rest = name.partition("encoder.layer.")
        if found:
            index, _, rest = rest.partition(".")
            path, value = _leaf(config, rest, value)
            layers.setdefault(f"{head}encoder.layers.{path}", {})[int(index)] = value
        else:
            path, value = _leaf(config, name, value)
            _put(tree, path, value)
    for path, values in layers.items():
        _put(tree, path, np.stack([values[i] for i in range(config.num_hidden_layers)]))
    return tree


def _split_v1(config: DebertaConfig, state: Mapping[str, np.ndarray]) -> Arrays:
    renamed = {
        "q_bias": "query_proj.bias",
        "v_bias": "value_proj.bias",
        "pos_proj.weight": "pos_key_proj.weight",
        "pos_q_proj.weight": "pos_query_proj.weight",
        "pos_q_proj.bias": "pos_query_proj.bias",
    }
    out = {}
    for name, value in state.items():
        prefix, _, last = name.partition("attention.self.")
        if last == "in_proj.weight":
            # [N * 3 * H, D]: each head's query rows, then its key rows, then its value rows.
            by_head = value.reshape(config.num_attention_heads, 3, config.head_size, -1)
            for i, kind in enumerate(("query", "key", "value")):
                joined = by_head[:, i].reshape(-1, value.shape[-1])
                out[f"{prefix}attention.self.{kind}_proj.weight"] = joined
        else:
            out[f"{prefix}attention.self.{renamed.get(last, last)}" if last else name] = value
    return out


def _leaf(config: DebertaConfig, name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """A name without the layer's number, and its array -> path and array of the tree."""
    module, _, kind = name.rpartition(".")
    last = module.rpartition(".")[2]
    heads = (config.num_attention_heads, config.head_size)
    if last == "LayerNorm":
        return f"{module}.{'scale' if kind == 'weight' else 'bias'}", value
    if last.endswith("embeddings"):
        return f"{module}.embedding", value
    if last == "conv" and kind == "weight":
        return f"{module}.kernel", value.transpose(2, 1, 0)
    if "attention.self" in module and last not in ("head_logits_proj", "head_weights_proj"):
        if kind == "bias":
            return name, value.reshape(heads)
        return f"{module}.kernel", value.T.reshape(-1, *heads)
    if kind == "bias":
        return name, value
    if module == "attention.output.dense":
        return f"{module}.kernel", value.T.reshape(*heads, -1)
    return f"{module}.kernel", value.T


def _put(tree: dict[str, Any], path: str, value: np.ndarray) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        tree = tree.setdefault(folder, {})
    tree[last] = np.ascontiguousarray(value)


def objective(case: Case, out: Any, batch: Mapping[str, Any]) -> jax.Array:
    """The scalar whose gradients are compared: the head's own loss; for the bare encoder a random linear form."""
    if case.head == "encoder":
        real = (batch["attention_mask"] != 0)[..., None]
        return jnp.sum(out.last_hidden_state * batch["cotangent"] * real) / real.sum()
    if case.head == "question-answering":
        mask = None if case.padding == "none" else batch["attention_mask"] != 0
        items = losses.span_loss(out.start_logits, out.end_logits, batch["starts"], batch["ends"], mask)
    else:
        name = {"default": case.head, "single_label": case.head}.get(case.labels, case.labels)
        items = LOSSES[name](out.logits, batch["labels"])
    return losses.weighted_mean(*items)


LOSSES = {
    "masked-lm": losses.cross_entropy,
    "token-classification": losses.cross_entropy,
    "sequence-classification": losses.cross_entropy,
    "multiple-choice": losses.cross_entropy,
    "replaced-token-detection": losses.replaced_token_loss,
    "regression": losses.mean_squared_error,
    "multi_label": losses.binary_cross_entropy,
    "soft": losses.soft_cross_entropy,
}
_NOT_INPUTS = ("labels", "starts", "ends", "cotangent")


def run(case: Case, params: Any, batch: Mapping[str, Any], **runtime: Any) -> Arrays:
    """Outputs by name: logits, loss, hidden_states [L+1,...], attentions [L,...]."""
    return execute(_forward(case, attentions=True, **runtime), params, dict(batch))


def run_with_gradients(case: Case, params: Any, batch: Mapping[str, Any], **runtime: Any) -> tuple[Arrays, Any]:
    """The same but for attentions, so that their implementation is that of training; and gradients of ``objective``."""
    forward = _forward(case, attentions=False, **runtime)

    def loss(params, batch):
        values = forward(params, batch)
        return values["loss"], values

    gradients, values = execute(jax.grad(loss, has_aux=True), params, dict(batch))
    return values, gradients


def apply(model: Model, params: Any, inputs: Mapping[str, Any], **options: Any) -> SimpleNamespace:
    """A model's output with numpy arrays in its fields."""
    call = lambda params, inputs: vars(model.apply({"params": params}, **inputs, **options))
    return SimpleNamespace(**execute(call, params, dict(inputs)))


def _forward(case: Case, *, attentions: bool, **runtime: Any) -> Callable[..., dict[str, jax.Array]]:
    model = case.model(**runtime)

    def forward(params, batch):
        inputs = {name: a for name, a in batch.items() if name not in _NOT_INPUTS}
        out = model.apply({"params": params}, output_hidden_states=True, output_attentions=attentions, **inputs)
        values = {"loss": objective(case, out, batch), "hidden_states": jnp.stack(out.hidden_states)}
        if attentions:
            values["attentions"] = jnp.stack(out.attentions)
        names = ("last_hidden_state", "logits", "start_logits", "end_logits")
        return values | {name: getattr(out, name) for name in names if hasattr(out, name)}

    return forward


def execute(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function`` as one program, its results as numpy arrays."""
    return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


def real_part(case: Case, name: str, value: np.ndarray, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """What of an output is defined in both implementations: the real tokens' part, and texts that exist."""
    mask = batch["attention_mask"].reshape(-1, case.length) != 0
    if name in ("hidden_states", "attentions"):
        value = np.moveaxis(value, 1, 0) if name == "hidden_states" else value.transpose(1, 3, 0, 2, 4)
        return value.swapaxes(1, 2)[mask] if name == "hidden_states" else value[mask]
    if name in ("last_hidden_state", "start_logits", "end_logits") or value.shape[:2] == mask.shape:
        return value[mask]
    return value[mask.any(axis=1)] if len(value) == len(mask) else value
