"""What pre-training never holds: the logits of a batch. By the compiler's own account, nothing is run."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deberta_jax import PRESETS
from deberta_jax.ops.linear_cross_entropy import linear_cross_entropy
from deberta_jax.sharding import make_mesh
from deberta_jax.training.experiment import PretrainMLM, PretrainRTD
from deberta_jax.training.objective import masked_batch, prepare_step
from deberta_jax.training.pretrain_objectives import generator_config, mlm_objective, rtd_objective
from deberta_jax.training.step import compile_step


def test_the_loss_takes_a_quarter_of_the_memory_of_all_logits():
    """Also of the logits at the targets alone, where each row's 15 % are taken out before the product."""
    rows, length, width, words = 32, 512, 768, 128100
    targets = round(0.15 * length)
    table, bias = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((words, width), (words,)))

    def temporary(loss, positions):
        states = jax.ShapeDtypeStruct((rows, positions, width), jnp.float32)
        labels = jax.ShapeDtypeStruct((rows, positions), jnp.int32)
        lowered = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(states, table, bias, labels)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    def full(states, table, bias, labels):
        logits = jnp.einsum("bpe,ve->bpv", states, table) + bias[None, None]
        value = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (value * (labels >= 0)).sum() / (labels >= 0).sum()

    def ours(states, table, bias, labels):
        found = linear_cross_entropy(states, table, bias, labels)
        return found.value.sum() / found.weight.sum()

    whole, at_targets, pieces = temporary(full, length), temporary(full, targets), temporary(ours, targets)
    print(
        f"temporary MiB: all logits {whole / 2**20:.0f}, at targets {at_targets / 2**20:.0f}, "
        f"in pieces {pieces / 2**20:.0f}"
    )
    assert pieces * 4 <= whole
    assert pieces * 1.5 <= at_targets


@pytest.mark.long
@pytest.mark.parametrize("name", ["deberta-v3-base", "mdeberta-v3-base"])
@pytest.mark.parametrize("kind", ["mlm", "rtd"])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_no_array_of_a_step_has_batch_tokens_and_vocabulary(name, kind, sizes):
    check_no_array_has_the_logits(PRESETS[name], kind, sizes)


@pytest.mark.system  # to compile it takes a minute
def test_no_array_of_a_step_of_two_layers_has_batch_tokens_and_vocabulary():
    config = dataclasses.replace(PRESETS["deberta-v3-base"], num_hidden_layers=2)
    check_no_array_has_the_logits(config, "rtd", (2, 2, 2))


def check_no_array_has_the_logits(config, kind, sizes):
    batch_size, length = 16, 512
    runtime = {"from_scratch": True, "dtype": "bfloat16", "max_length": length, "batch_size": batch_size}
    if kind == "mlm":
        _, objective = mlm_objective(PretrainMLM(**runtime), generator_config(config, config.num_hidden_layers))
    else:
        _, objective = rtd_objective(PretrainRTD(**runtime), generator_config(config), config)
    data, fsdp, tensor = sizes
    mesh = make_mesh(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])
    prepared = prepare_step(objective, mesh, 1000)
    compiled = compile_step(
        prepared.step, prepared.state, prepared.shardings, masked_batch(batch_size, length, 77), mesh
    )
    words = {config.vocab_size, config.vocab_size // tensor}
    seen = 0
    for shape in set(re.findall(r"(?:f32|bf16|f16)\[([\d,]+)\]", compiled.as_text())):
        axes = [int(n) for n in shape.split(",")]
        if not words & set(axes):
            continue
        seen += 1
        rest = np.prod([n for n in axes if n not in words])
        local = batch_size // (data * fsdp)
        # Tables have the width beside the words; pieces of logits at most what the pieces are made to.
        assert rest in {1, config.hidden_size, config.hidden_size // fsdp} or rest * min(words) <= 2**26, shape
        assert rest < local * length, shape
    assert seen
