"""Attentions on a TPU that the kernel is compared with, all without the relative terms."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.masks import normalize_masks
from deberta_jax.ops.attention.pallas.kernel_attention import pallas_attention

BLOCK = 512  # tokens of a block of JAX's kernels, or all tokens where there are fewer


def plain_attention(query: Any, key: Any, value: Any, segment_ids: Any, scale: float) -> jax.Array:
    """Returns the context of attention without the relative terms, as three einsums."""
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=jnp.float32) * scale
    weights = jax.nn.softmax(jnp.where((segment_ids != 0)[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("BNTS,BSNH->BTNH", weights.astype(value.dtype), value)


def flash_attention(inputs: AttentionInputs) -> jax.Array:
    """Returns the context by JAX's flash attention for TPUs, without dropout."""
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    block = min(BLOCK, inputs.query.shape[1])
    sizes = flash.BlockSizes(
        block_q=block,
        block_k_major=block,
        block_k=block,
        block_b=1,
        block_q_major_dkv=block,
        block_k_major_dkv=block,
        block_k_dkv=block,
        block_q_dkv=block,
        block_k_major_dq=block,
        block_k_dq=block,
        block_q_dq=block,
    )
    by_head = (x.swapaxes(1, 2) for x in (inputs.query, inputs.key, inputs.value))
    ids = flash.SegmentIds(q=inputs.segment_ids, kv=inputs.segment_ids)
    context = flash.flash_attention(*by_head, segment_ids=ids, sm_scale=inputs.scale, block_sizes=sizes)
    return context.swapaxes(1, 2)


def splash_attention(inputs: AttentionInputs) -> jax.Array:
    """Returns the context by JAX's splash attention for TPUs, without dropout."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, length, heads, _ = inputs.query.shape
    block = min(BLOCK, length)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.FullMask((length, length)) for _ in range(heads)])
    kernel = splash.make_splash_mha_single_device(mask=mask, block_sizes=sizes)

    def attend(query, key, value, ids):
        scaled = query * jnp.asarray(inputs.scale, query.dtype)
        return kernel(scaled, key, value, segment_ids=splash.SegmentIds(q=ids, kv=ids))

    by_head = (x.swapaxes(1, 2) for x in (inputs.query, inputs.key, inputs.value))
    return jax.vmap(attend)(*by_head, inputs.segment_ids).swapaxes(1, 2)


PEERS: dict[str, Callable[[AttentionInputs], jax.Array]] = {
    "plain": lambda inputs: plain_attention(inputs.query, inputs.key, inputs.value, inputs.segment_ids, inputs.scale),
    "flash": flash_attention,
    "splash": splash_attention,
    "without tables": lambda inputs: pallas_attention(dataclasses.replace(inputs, pos_key=None, pos_query=None)),
}


def in_a_model(name: str) -> Callable:
    """Returns a peer with the arguments and results of ``disentangled_attention``."""

    def attend(query, key, value, pos_key, pos_query, relative_index, *, attention_mask, segment_ids, **options):
        segment_ids, _ = normalize_masks(attention_mask, segment_ids)
        segment_ids = jnp.ones(query.shape[:2], jnp.int32) if segment_ids is None else segment_ids
        options = {name: options[name] for name in ("scale", "dropout_rate", "dropout_key")}
        inputs = AttentionInputs(
            query=query,
            key=key,
            value=value,
            pos_key=pos_key,
            pos_query=pos_query,
            relative_index=relative_index,
            segment_ids=segment_ids,
            **options,
        )
        # A model initializes its parameters on a short text, for which JAX's kernels have no block.
        return PEERS[name if query.shape[1] >= 128 else "plain"](inputs), None

    return attend
