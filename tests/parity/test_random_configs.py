"""Configurations drawn at random, with default settings on both sides: equal to transformers at every real token."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from deberta_jax.config_json import V2_ONLY
from deberta_jax.models import HEADS
from deberta_jax.ops.attention.relative_position import log_bucket
from tests.cases import Case, apply, to_tree
from tests.parity import hugging_face

pytestmark = [pytest.mark.parity, pytest.mark.slow]

COUNT, QUICK = 120, 24
TOLERANCE = 2e-5

# What is drawn, and from where; spans reach from far below the text's length to above it.
TESTED = tuple(head for head in HEADS if head != "replaced-token-detection")
FIELDS: dict[str, tuple[Any, ...]] = {
    "num_attention_heads": (1, 2, 3, 4),
    "head size": (4, 6, 8),
    "num_hidden_layers": (1, 2, 3),
    "intermediate_size": (8, 24, 40),
    "vocab_size": (20, 33, 64),
    "max_position_embeddings": (8, 16, 24, 40),
    "max_relative_positions": (-1, 0, 3, 5, 9, 12, 20, 33, 60),
    "position_buckets": (-1, -1, 2, 3, 4, 6, 8, 12, 16),
    "pos_att_type": ("c2p|p2c", "p2c|c2p", "c2p", "p2c", ["c2p", "p2c"], []),
    "relative_attention": (True, True, True, True, False),
    "position_biased_input": (False, False, True),
    "type_vocab_size": (0, 0, 2, 3),
    "embedding_size": (None, None, 5, 30),
    "attention_head_size": (None, None, None, 5),
    "share_att_key": (True, False),
    "norm_rel_ebd": ("none", "layer_norm"),
    "conv_kernel_size": (0, 0, 1, 3, 5),
    "conv_act": ("tanh", "gelu", "relu"),
    "conv_groups": (1, 2),
    "talking_head": (False, False, False, True),
    "hidden_act": ("gelu", "gelu", "relu", "silu", "gelu_new", "tanh"),
    "pooler_hidden_act": ("gelu", "tanh"),
    "layer_norm_eps": (1e-7, 1e-5, 1e-12),
    "pad_token_id": (0, 0, 3),
    "tie_word_embeddings": (True, True, False),
    "legacy": (True, False),
    "length / max_position_embeddings": (0.2, 0.5, 1, 1, 1.7),
    "padding": ("right", "right", "none", "left"),
}
_V1_ONLY = ("talking_head",)


def draw(seed: int) -> Case:
    """The case of a seed: the first of its draws that both implementations can run and define alike."""
    source = random.Random(seed)
    while True:
        values = {name: source.choice(choices) for name, choices in FIELDS.items()}
        case = _case(seed, values)
        if case is not None:
            return case


def _case(seed: int, v: dict[str, Any]) -> Case | None:
    head = TESTED[seed % len(TESTED)]
    v1 = head != "multiple-choice" and seed % 3 == 0
    size, ratio, padding = (v.pop(name) for name in ("head size", "length / max_position_embeddings", "padding"))
    v["hidden_size"] = size * v["num_attention_heads"]
    length = max(1, round(v["max_position_embeddings"] * ratio))
    for name in V2_ONLY if v1 else _V1_ONLY:
        del v[name]
    if v["embedding_size"] is None:
        del v["embedding_size"]
    if v.get("attention_head_size", 0) is None:
        del v["attention_head_size"]
    if v["hidden_size"] % v.get("conv_groups", 1):
        return None
    # transformers' heads of this name read the embedding's width as the hidden one, or have no decoder of their own.
    v["legacy"] |= "embedding_size" in v or not v["tie_word_embeddings"]
    if v["position_biased_input"]:
        length = min(length, v["max_position_embeddings"])
        padding = "right" if padding == "left" else padding  # transformers numbers the padding too
    if head in ("sequence-classification", "multiple-choice") and padding == "left":
        padding = "right"  # transformers pools position 0
    inputs = ("token_type_ids",) if v["type_vocab_size"] else ()
    most = v["max_relative_positions"] if v["max_relative_positions"] >= 1 else v["max_position_embeddings"]
    buckets = v.get("position_buckets", -1)
    if buckets > 0 and (most - 1 <= buckets // 2 or not _same_buckets(buckets, most, length)):
        return None
    case = Case(f"random-{seed}", "v1" if v1 else "v2", head, v, length, padding, inputs=inputs)
    # Beyond what it was trained on, Microsoft's code and transformers differ where there are buckets.
    return None if case.config.clamps_distances and length > most else case


def _same_buckets(buckets: int, most: int, length: int) -> bool:
    """transformers takes logarithms in float32, Microsoft's code and this package in float64: where a distance lies
    exactly between two buckets, these may round apart."""
    distance = np.arange(1 - length, length)
    theirs = make_log_bucket_position(torch.from_numpy(distance), buckets, most).numpy()
    return bool((log_bucket(distance, buckets, most) == theirs).all())


CASES = [draw(seed) for seed in range(COUNT)]
_MARKED = [pytest.param(case, marks=() if i < QUICK else pytest.mark.long) for i, case in enumerate(CASES)]


def test_the_draws_reach_what_they_are_to_reach():
    """Every value of every field occurs, and spans on both sides of the length with and without buckets."""
    seen = Counter((name, str(case.options[name])) for case in CASES for name in case.options)
    for name, choices in FIELDS.items():
        if name not in ("head size", "length / max_position_embeddings", "padding"):
            assert all(seen[name, str(choice)] for choice in choices if choice is not None), name
    assert {case.head for case in CASES} == set(TESTED)
    assert {case.config.model_type for case in CASES} == {"deberta", "deberta-v2"}
    assert {case.padding for case in CASES} == set(FIELDS["padding"])
    relative = [case for case in CASES if case.config.relative_terms]
    spans = Counter((case.config.position_buckets > 0, case.config.max_distance > case.length) for case in relative)
    assert len(spans) == 4
    assert min(spans.values()) >= 3, spans
    # Where the old default, which clamped distances in every model, gave other states than PyTorch.
    short = [case for case in relative[:QUICK] if not case.config.clamps_distances]
    assert sum(case.config.max_distance < case.length for case in short) >= 3
    assert all(case.long_positions == "auto" for case in CASES)


@pytest.mark.parametrize("case", _MARKED, ids=lambda case: case.name)
def test_random_configuration_equals_transformers(case: Case):
    model, state = hugging_face.build(case)
    batch = case.batch()
    theirs, _ = hugging_face.run(case, model, batch)
    inputs = {name: a for name, a in batch.items() if name in ("input_ids", "attention_mask", "token_type_ids")}
    ours = vars(apply(case.model(), to_tree(case.config, state), inputs))
    real = batch["attention_mask"].reshape(-1, case.length) != 0
    compared = 0
    for name in ("last_hidden_state", "logits", "start_logits", "end_logits"):
        if name not in theirs:
            continue
        found, expected = ours[name], theirs[name].reshape(ours[name].shape)
        if found.shape[:2] == real.shape and case.head not in ("sequence-classification", "multiple-choice"):
            found, expected = found[real], expected[real]
        else:
            texts = real.any(axis=1).reshape(found.shape[:1] if case.head != "multiple-choice" else found.shape)
            found, expected = found[texts], expected[texts]
        assert np.isfinite(found).all()
        assert found.size
        assert np.abs(found - expected).max() <= TOLERANCE, name
        compared += 1
    assert compared
