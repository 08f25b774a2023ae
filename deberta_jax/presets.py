"""Lists the released architectures: ``PRESETS["deberta-v3-base"]`` is a ``DebertaConfig``.

A preset is an architecture without weights. The sizes are those of the released ``config.json`` files and of
Microsoft's pre-training configurations. Tests compare the exact numbers of parameters.
"""

import dataclasses

from deberta_jax.config import V1, V2, DebertaConfig
from deberta_jax.errors import InputError, did_you_mean, listed, shown

# The order of the MNLI labels in DeBERTa's checkpoints; most other models have another order.
_MNLI = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")


def _v1(width: int, layers: int, heads: int) -> DebertaConfig:
    """Returns the config of a v1 model with the given hidden size, layers and heads."""
    return DebertaConfig(
        model_type=V1,
        vocab_size=50265,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        relative_attention=True,
        pos_att_type=("c2p", "p2c"),
        position_biased_input=False,
        legacy=False,
    )


def _v2(width: int, layers: int, heads: int, vocab: int = 128100, conv: int = 0) -> DebertaConfig:
    """Returns the config of a v2 or v3 model with the given hidden size, layers, heads, vocabulary and kernel size."""
    return DebertaConfig(
        model_type=V2,
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        relative_attention=True,
        pos_att_type=("p2c", "c2p"),
        position_biased_input=False,
        position_buckets=256,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=conv,
        conv_act="gelu" if conv else "tanh",
        legacy=False,
    )


class Presets(dict[str, DebertaConfig]):
    """Holds configs by name. An unknown name is an InputError, which says which one is like it."""

    def __missing__(self, name: str) -> DebertaConfig:
        raise InputError(f"no preset {shown(name)}{did_you_mean(name, self) or f'; there is {listed(self, 20)}'}")


PRESETS = Presets(
    {
        "deberta-base": _v1(768, 12, 12),
        "deberta-large": _v1(1024, 24, 16),
        "deberta-xlarge": _v1(1024, 48, 16),
        "deberta-v2-xlarge": _v2(1536, 24, 24, conv=3),
        "deberta-v2-xxlarge": _v2(1536, 48, 24, conv=3),
        "deberta-v3-xsmall": _v2(384, 12, 6),
        "deberta-v3-small": _v2(768, 6, 12),
        "deberta-v3-base": _v2(768, 12, 12),
        "deberta-v3-large": _v2(1024, 24, 16),
        "mdeberta-v3-base": _v2(768, 12, 12, vocab=251000),
    }
)
"""Holds the released architectures by name. An unknown name raises InputError."""
PRESETS |= {
    f"{name}-mnli": dataclasses.replace(PRESETS[name], id2label=_MNLI)
    for name in ("deberta-base", "deberta-large", "deberta-xlarge", "deberta-v2-xlarge", "deberta-v2-xxlarge")
}
