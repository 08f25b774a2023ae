"""Adds LoRA (Hu et al. 2021) to a model by parameter path: kernels W are frozen, low-rank products A B are trained.

The head is trained whole. The trained tree is ``{"base": the model's tree, "lora": {path: {"a", "b"}}}``. In every step
the model runs on the merged tree, W + alpha / rank * A B, so no model has code for LoRA. If W is quantized (QLoRA,
Dettmers et al. 2023), the tree has a ``LowRankSum``, and a layer is summed when its kernel is read.
"""

import dataclasses
import fnmatch
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deberta_jax.errors import InputError
from deberta_jax.ops.quantization import LowRankSum, is_compressed
from deberta_jax.training.optimizers import path_of
from deberta_jax.training.state import Parameters
from deberta_jax.weights.names import ENCODER


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Describes a kernel with an update.

    Attributes:
      layers: size of the leading layer axis; None without one.
      inputs: sizes of the contracted axes.
      outputs: sizes of the other axes.
    """

    layers: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def fan_in(self) -> int:
        """Returns the number of inputs."""
        return int(np.prod(self.inputs))

    @property
    def fan_out(self) -> int:
        """Returns the number of outputs."""
        return int(np.prod(self.outputs))

    def stacked(self, *shape: int) -> tuple[int, ...]:
        """Returns a shape with the layer axis, if the kernel has one, before it."""
        return shape if self.layers is None else (self.layers, *shape)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Holds the rank, alpha, and the kernels with an update by their paths."""

    rank: int
    alpha: float
    kernels: dict[str, Kernel]

    @property
    def scale(self) -> float:
        """Returns the factor of the product A B."""
        return self.alpha / self.rank


def find_kernels(base: Parameters, targets: tuple[str, ...], rank: int, alpha: float) -> Lora:
    """Returns the kernels that the patterns match.

    Raises:
      InputError: a pattern that matches no kernel, or a rank above the size of every kernel.
    """
    leaves = {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(base.shapes)[0]}
    kernels = {}
    for pattern in targets:
        paths = [path for path in fnmatch.filter(leaves, pattern) if path.endswith("/kernel") and _in_encoder(path)]
        if not paths:
            raise InputError(f"--lora-targets {pattern}: matches no kernel of the encoder; try */kernel")
        for path in paths:
            axes = _at(base.axes, path)
            stacked = axes[0] == "layers"
            shape, names = leaves[path].shape[stacked:], axes[stacked:]
            # Attention heads have an axis of their own: [D, N, H] for inputs, [N, H, D] for outputs.
            contracted = 2 if names[0] == "heads" else 1
            layers = leaves[path].shape[0] if stacked else None
            kernels[path] = Kernel(layers, shape[:contracted], shape[contracted:])
    largest = max(max(kernel.fan_in, kernel.fan_out) for kernel in kernels.values())
    if rank > largest:
        raise InputError(
            f"--lora {rank}: the largest of these kernels has {largest} rows or columns; give a lower rank"
        )
    return Lora(rank, alpha, kernels)


def lora_parameters(base: Parameters, lora: Lora) -> Parameters:
    """Returns shapes and axes of the trained tree; the whole encoder is frozen."""
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
    # They are small, so every device has them whole.
    axes = jax.tree.map(lambda leaf: (None,) * len(leaf.shape), shapes)
    return Parameters({"base": base.shapes, "lora": shapes}, {"base": base.axes, "lora": axes}, frozenset(frozen))


def init_lora(lora: Lora, key: jax.Array) -> dict[str, Any]:
    """Returns A uniform within 1 / sqrt(inputs), as peft does, and B zero, so the model is unchanged at first."""
    out = {}
    for i, (path, k) in enumerate(lora.kernels.items()):
        limit = k.fan_in**-0.5
        a = jax.random.uniform(jax.random.fold_in(key, i), k.stacked(k.fan_in, lora.rank), minval=-limit, maxval=limit)
        out[_name(path)] = {"a": a, "b": jnp.zeros(k.stacked(lora.rank, k.fan_out))}
    return out


def merge(params: Any, lora: Lora) -> Any:
    """Returns the model's tree with the updates added to their kernels."""
    merged = params["base"]
    for path, k in lora.kernels.items():
        update = params["lora"][_name(path)]

        def add(kernel: Any, k: Kernel = k, update: Any = update) -> Any:
            if is_compressed(kernel):
                return LowRankSum(kernel, update["a"], update["b"], lora.scale)
            delta = lora.scale * (update["a"] @ update["b"])
            return kernel + delta.reshape(k.stacked(*k.inputs, *k.outputs))

        merged = _replaced(merged, path.split("/"), add)
    return merged


def _replaced(tree: Any, keys: list[str], change: Callable[[Any], Any]) -> Any:
    """Returns a tree with one leaf changed."""
    first, *rest = keys
    return {**tree, first: _replaced(tree[first], rest, change) if rest else change(tree[first])}


def _in_encoder(path: str) -> bool:
    """Returns True for a parameter of the encoder. A head is trained whole, because most tasks initialize it."""
    return path.startswith(f"{ENCODER}/")


def _name(path: str) -> str:
    return path.replace("/", ".")


def _paths(tree: Any) -> list[str]:
    return [path_of(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]


def _at(tree: Any, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
