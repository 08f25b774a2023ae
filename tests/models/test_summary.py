"""What a model, an encoding and a pipeline print about themselves, and the table of a model's parameters."""

import re

import jax.numpy as jnp
import numpy as np

from deberta_jax import PRESETS, DebertaEncoder, DebertaForMaskedLM, summary
from deberta_jax.text.encoding import Encoding


def test_the_counts_are_those_of_the_architecture():
    config = PRESETS["deberta-v3-base"]
    lines = summary(DebertaEncoder(config)).splitlines()
    width, wide = config.hidden_size, config.intermediate_size
    layer = 4 * (width * width + width) + 2 * width * wide + wide + width + 4 * width
    total = 12 * layer + 512 * width + 2 * width + config.vocab_size * width + 2 * width
    assert lines[1] == f"{total:,} parameters, {total * 4 / 2**20:,.1f} MiB"
    (layers,) = [line for line in lines if line.strip().startswith("layers ")]
    assert re.sub(" +", " ", layers.strip()) == f"layers {12 * layer:,} 12 layers of {layer:,}"
    assert any(line.split()[0] == "kernel" and line.endswith("[12, 3072, 768]") for line in lines)


def test_representations_are_short():
    model = DebertaForMaskedLM(PRESETS["deberta-v3-base"], dtype=jnp.bfloat16, remat="full")
    assert repr(model) == (
        "DebertaForMaskedLM(deberta-v2, 12 layers of width 768, vocabulary 128100, dtype=bfloat16, remat='full')"
    )
    ids = np.zeros((2, 7), np.int32)
    assert repr(Encoding(ids, ids, [ids[0], ids[1]])) == (
        "Encoding(input_ids [2, 7], attention_mask [2, 7], token_type_ids of 2 rows)"
    )
