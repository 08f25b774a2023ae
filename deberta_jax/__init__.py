"""Provides DeBERTa v1, v2 and v3 in JAX/Flax: exact models, torch-free weights, sharded training.

model, params = deberta_jax.from_pretrained("microsoft/deberta-v3-base", head="encoder")
tok = deberta_jax.load_tokenizer("microsoft/deberta-v3-base")
enc = tok(["a text", "another"], padding=True)
out = model(params, **enc)
"""

import importlib
from typing import TYPE_CHECKING, Any

from deberta_jax.lazy import load_name

if TYPE_CHECKING:
    from deberta_jax import data, export, inference, losses, models, sharding, tasks, text, training, weights
    from deberta_jax.config import DebertaConfig
    from deberta_jax.errors import InputError
    from deberta_jax.export import export_onnx, export_stablehlo
    from deberta_jax.inference.cross_encoder import CrossEncoder
    from deberta_jax.inference.embedding import Embedder, encode
    from deberta_jax.inference.pipelines import pipeline
    from deberta_jax.models import (
        DebertaEncoder,
        DebertaForMaskedLM,
        DebertaForMultipleChoice,
        DebertaForQuestionAnswering,
        DebertaForReplacedTokenDetection,
        DebertaForSequenceClassification,
        DebertaForTokenClassification,
        capture,
        init_params,
        patch,
        prepare_for_inference,
        summary,
    )
    from deberta_jax.ops.attention import AttentionInputs, register_attention
    from deberta_jax.presets import PRESETS
    from deberta_jax.text import Tokenizer, train_tokenizer
    from deberta_jax.weights import (
        Quantization,
        from_pretrained,
        quantize_model,
        resize_vocabulary,
        save_pretrained,
    )

__version__ = "0.1.0"

_SUBMODULES = ("data", "export", "inference", "losses", "models", "sharding", "tasks", "text", "training", "weights")

# Where the names are that are imported when they are first used.
_SOURCES = {
    "config": ("DebertaConfig",),
    "errors": ("InputError",),
    "export": ("export_onnx", "export_stablehlo"),
    "inference.cross_encoder": ("CrossEncoder",),
    "inference.embedding": ("Embedder", "encode"),
    "inference.pipelines": ("pipeline",),
    "models": (
        "DebertaEncoder",
        "DebertaForMaskedLM",
        "DebertaForMultipleChoice",
        "DebertaForQuestionAnswering",
        "DebertaForReplacedTokenDetection",
        "DebertaForSequenceClassification",
        "DebertaForTokenClassification",
        "capture",
        "init_params",
        "patch",
        "prepare_for_inference",
        "summary",
    ),
    "ops.attention": ("AttentionInputs", "register_attention"),
    "presets": ("PRESETS",),
    "text": ("Tokenizer", "train_tokenizer"),
    "weights": ("Quantization", "from_pretrained", "quantize_model", "resize_vocabulary", "save_pretrained"),
}

__all__ = [
    "PRESETS",
    "AttentionInputs",
    "CrossEncoder",
    "DebertaConfig",
    "DebertaEncoder",
    "DebertaForMaskedLM",
    "DebertaForMultipleChoice",
    "DebertaForQuestionAnswering",
    "DebertaForReplacedTokenDetection",
    "DebertaForSequenceClassification",
    "DebertaForTokenClassification",
    "Embedder",
    "InputError",
    "Quantization",
    "Tokenizer",
    "capture",
    "data",
    "encode",
    "export",
    "export_onnx",
    "export_stablehlo",
    "from_pretrained",
    "inference",
    "init_params",
    "load_tokenizer",
    "losses",
    "models",
    "patch",
    "pipeline",
    "prepare_for_inference",
    "quantize_model",
    "register_attention",
    "resize_vocabulary",
    "save_pretrained",
    "sharding",
    "summary",
    "tasks",
    "text",
    "train_tokenizer",
    "training",
    "weights",
]


if not TYPE_CHECKING:  # a type checker would give every misspelt name the type Any

    def __getattr__(name: str) -> Any:
        if name in _SUBMODULES:
            return importlib.import_module(f"deberta_jax.{name}")
        value = globals()[name] = load_name(__name__, name, _SOURCES)
        return value


def __dir__() -> list[str]:
    return __all__


def load_tokenizer(name_or_dir: str, *, rule: str | None = None, revision: str | None = None) -> "Tokenizer":
    """Loads the tokenizer of a directory or a hub id.

    Args:
      name_or_dir: the directory or hub id.
      rule: which files to use, as in ``deberta_jax.text.load_tokenizer``.
      revision: branch, tag or commit of a hub id.

    Raises:
      InputError: there is no such directory or hub id, or it has no tokenizer files.
    """
    from deberta_jax import hub
    from deberta_jax.text import load_tokenizer as load

    return load(hub.resolve(name_or_dir, revision=revision, files=hub.TEXT_FILES), rule=rule)
