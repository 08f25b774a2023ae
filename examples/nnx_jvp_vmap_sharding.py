"""Use a model as any function of JAX: from NNX, with forward-mode derivatives, under vmap, and split over devices.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/nnx_jvp_vmap_sharding.py
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import bridge

from deberta_jax import PRESETS, DebertaForSequenceClassification, init_params, sharding
from deberta_jax.models import logical_axes

Tree = dict[str, Any]
close: Callable[[Any, Any], bool] = lambda a, b: np.allclose(a, b, atol=1e-5)
compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: jax.jit(function)


def main() -> None:
    tiny = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = PRESETS["deberta-v3-base"].replace(intermediate_size=64, **tiny)
    model = DebertaForSequenceClassification(config, attention="reference")  # has forward-mode derivatives
    params = init_params(model, jax.random.key(0))
    ids = jnp.arange(8 * 16).reshape(8, 16) % 99 + 1

    def logits(params: Tree, ids: jax.Array) -> jax.Array:
        return model(params, ids).logits

    expected = compiled(logits)(params, ids)

    wrapped: Any = bridge.lazy_init(bridge.ToNNX(model, rngs=nnx.Rngs(0)), ids)
    nnx.update(wrapped, params)
    print(f"NNX: equal {close(wrapped(ids).logits, expected)}")

    total: Callable[[Tree], Any] = lambda params: logits(params, ids).sum()
    derivative: Callable[[Tree], Any] = lambda params: jax.jvp(total, (params,), (params,))[1]
    gradient: Callable[[Tree], Any] = lambda params: jax.grad(total)(params)
    pairs = zip(jax.tree.leaves(compiled(gradient)(params)), jax.tree.leaves(params), strict=True)
    reverse = sum(float((g * p).sum()) for g, p in pairs)
    print(f"jvp: equal to the gradient's product {np.allclose(compiled(derivative)(params), reverse, rtol=1e-3)}")

    member: Callable[[jax.Array], jax.Array] = lambda key: logits(init_params(model, key), ids)
    several = compiled(jax.vmap(member))(jax.random.split(jax.random.key(1), 3))
    print(f"vmap: {several.shape} logits of three models")

    mesh = sharding.make_mesh(data=-1, fsdp=2, tensor=2)
    with sharding.use(mesh):
        split: Tree = jax.device_put(params, sharding.tree_shardings(logical_axes(model), mesh))
        same = close(compiled(logits)(split, sharding.global_batch({"ids": np.asarray(ids)}, mesh)["ids"]), expected)
    kernel: Any = split["deberta"]["encoder"]["layers"]["intermediate"]["dense"]["kernel"]
    each = kernel.addressable_shards[0].data.shape
    print(f"sharding: {kernel.shape} on {mesh.size} devices, {each} on each, equal {same}")


if __name__ == "__main__":
    main()
