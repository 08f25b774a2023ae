"""Every preset with every head, described without being built: parameter counts to the unit."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from deberta_jax.models import HEADS, abstract_params, logical_axes
from deberta_jax.presets import PRESETS

# Bare encoder; transformers' models on PyTorch's meta device.
ENCODER = {
    "deberta-base": 138_601_728,
    "deberta-large": 405_163_008,
    "deberta-xlarge": 757_804_032,
    "deberta-v2-xlarge": 884_593_152,
    "deberta-v2-xxlarge": 1_564_549_632,
    "deberta-v3-xsmall": 70_682_112,
    "deberta-v3-small": 141_304_320,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "mdeberta-v3-base": 278_218_752,
}
WITH_TWO_LABELS = {
    "deberta-base": 139_193_858,
    "deberta-large": 406_214_658,
    "deberta-xlarge": 758_855_682,
    "deberta-v2-xlarge": 886_957_058,
    "deberta-v2-xxlarge": 1_566_913_538,
    "deberta-v3-xsmall": 70_830_722,
    "deberta-v3-small": 141_896_450,
    "deberta-v3-base": 184_423_682,
    "deberta-v3-large": 435_063_810,
    "mdeberta-v3-base": 278_810_882,
}


def count(model) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(model)))


def head_sizes(config) -> dict[str, int]:
    """Parameters of each head over the bare encoder, written out."""
    d, v, labels = config.hidden_size, config.vocab_size, config.num_labels
    return {
        "encoder": 0,
        "masked-lm": d * d + 3 * d + v,
        "sequence-classification": d * d + d + labels * d + labels,
        "token-classification": labels * d + labels,
        "question-answering": 2 * d + 2,
        "multiple-choice": d * d + d + d + 1,
        "replaced-token-detection": d * d + 4 * d + 1,
    }


def test_there_are_ten_released_architectures_and_their_mnli_models():
    assert {name for name in PRESETS if not name.endswith("-mnli")} == set(ENCODER)
    assert sum(name.endswith("-mnli") for name in PRESETS) == 5
    for name in (name for name in PRESETS if name.endswith("-mnli")):
        config = PRESETS[name]
        assert [label.lower() for label in config.id2label] == ["contradiction", "neutral", "entailment"]
        base = PRESETS[name.removesuffix("-mnli")]
        assert dataclasses.replace(config, id2label=base.id2label) == base


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts_of_every_head(name):
    config, base = PRESETS[name], name.removesuffix("-mnli")
    for head, size in head_sizes(config).items():
        assert count(HEADS[head].model(config)) == ENCODER[base] + size, head
    if name == base:
        assert count(HEADS["sequence-classification"].model(config)) == WITH_TWO_LABELS[name]
    decoder = dataclasses.replace(config, mask_decoder=True)
    table = config.max_position_embeddings * config.hidden_size
    assert count(HEADS["masked-lm"].model(decoder)) == ENCODER[base] + head_sizes(config)["masked-lm"] + table


@pytest.mark.parametrize("head", HEADS)
def test_every_array_has_a_name_for_each_axis(head):
    model = HEADS[head].model(PRESETS["deberta-v2-xlarge"], param_dtype=jnp.bfloat16)
    names = {"embed", "heads", "kv", "mlp", "vocab", "relpos", "layers", None}

    def check(leaf, axes):
        assert leaf.dtype == jnp.bfloat16
        assert len(axes) == leaf.ndim
        assert set(axes) <= names

    jax.tree.map(check, abstract_params(model), logical_axes(model))
    layers = logical_axes(model)
    layers = (layers if head == "encoder" else layers["deberta"])["encoder"]["layers"]
    assert all(axes[0] == "layers" for axes in jax.tree.leaves(layers, is_leaf=lambda a: isinstance(a, tuple)))
