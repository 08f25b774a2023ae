"""LoRA (Hu et al. 2021) by path: kernels W stay, products A B of low rank are added to them, the head trains whole.

The trained tree is ``{"base": the model's tree, "lora": {path: {"a", "b"}}}``. The model runs on the merged tree
W + alpha / rank * A B, built anew in every step, so no model knows of any of this.
"""

import dataclasses
import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.training.optimizers import path_of
from deberta_jax.training.state import Parameters
from deberta_jax.weights.names import ENCODER


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel with an update: ``layers`` on a leading axis or None, ``inputs`` its contracted axes, ``outputs``."""

    layers: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[Any, ...]

    @property
    def fan_in(self) -> int:
        return int(np.prod(self.inputs))

    @property
    def fan_out(self) -> int:
        return int(np.prod(self.outputs))

    def stacked(self, *shape: int) -> tuple[int, ...]:
        return shape if self.layers is None else (self.layers, *shape)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Rank, scale, and the kernels by their paths."""

    rank: int
    alpha: float
    kernels: dict[str, Kernel]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def find_kernels(base: Parameters, targets: tuple[str, ...], rank: int, alpha: float) -> Lora:
    """The kernels that the patterns match.

    Raises:
      InputError: a pattern that matches no kernel.
    """
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(base.shapes)[0]}
    kernels = {}
    for pattern in targets:
        found = [path for path in fnmatch.filter(leaves, pattern) if path.endswith("/kernel") and _in_encoder(path)]
        if not found:
            raise InputError(f"--lora-targets {pattern}: matches no kernel of the encoder; try */kernel")
        for path in found:
            axes = _at(base.axes, path)
            stacked = axes[0] == "layers"
            shape, names = leaves[path].shape[stacked:], axes[stacked:]
            # Heads stand apart: [D, N, H] out of a layer's input, [N, H, D] back into it.
            contracted = 2 if names[0] == "heads" else 1
            kernels[path] = Kernel(
                leaves[path].shape[0] if stacked else None, shape[:contracted], shape[contracted:], names
            )
    return Lora(rank, alpha, kernels)


def lora_parameters(base: Parameters, lora: Lora) -> Parameters:
    """Shapes and axes of the trained tree; all of the encoder is frozen."""
    frozen = {f"base/{path}" for path in _paths(base.shapes) if _in_encoder(path)} | {
        f"base/{path}" for path in base.frozen
    }
    shapes = {
        _name(path): {
            "a": jax.ShapeDtypeStruct(k.stacked(k.fan_in, lora.rank), jnp.float32),
            "b": jax.ShapeDtypeStruct(k.stacked(lora.rank, k.fan_out), jnp.float32),
        }
        for path, k in lora.kernels.items()
    }
    # Small beside what they are added to: whole on every device.
    axes = jax.tree.map(lambda leaf: (None,) * len(leaf.shape), shapes)
    return Parameters({"base": base.shapes, "lora": shapes}, {"base": base.axes, "lora": axes}, frozenset(frozen))


def init_lora(lora: Lora, key: jax.Array) -> dict[str, Any]:
    """A uniform within 1 / sqrt(inputs), as peft draws it, and B zero: the model begins as it was."""
    out = {}
    for i, (path, k) in enumerate(lora.kernels.items()):
        limit = k.fan_in**-0.5
        a = jax.random.uniform(jax.random.fold_in(key, i), k.stacked(k.fan_in, lora.rank), minval=-limit, maxval=limit)
        out[_name(path)] = {"a": a, "b": jnp.zeros(k.stacked(lora.rank, k.fan_out))}
    return out


def merge(params: Any, lora: Lora) -> Any:
    """The model's tree with the updates added to their kernels."""
    merged = params["base"]
    for path, k in lora.kernels.items():
        update = params["lora"][_name(path)]
        delta = lora.scale * (update["a"] @ update["b"])
        merged = _added(merged, path.split("/"), delta.reshape(k.stacked(*k.inputs, *k.outputs)))
    return merged


def _added(tree: Any, keys: list[str], delta: jax.Array) -> Any:
    first, *rest = keys
    return {**tree, first: _added(tree[first], rest, delta) if rest else tree[first] + delta}


def _in_encoder(path: str) -> bool:
    """True for a parameter of the encoder. A head is trained whole, as most tasks initialize it."""
    return path.startswith(f"{ENCODER}/")


def _name(path: str) -> str:
    return path.replace("/", ".")


def _paths(tree: Any) -> list[str]:
    return [path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
