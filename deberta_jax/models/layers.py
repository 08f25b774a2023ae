"""Defines the smallest modules. Each declares its parameters with their logical axes and calls ``ops``."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deberta_jax.errors import InputError, check_choice, shown
from deberta_jax.ops.dropout import dropout
from deberta_jax.ops.normalization import layer_norm
from deberta_jax.ops.products import align, product
from deberta_jax.ops.quantization import Compressed, QuantizedArray, is_compressed

REMAT = ("none", "dots", "full")


@dataclasses.dataclass(frozen=True)
class Runtime:
    """Holds how a model is computed. It is never part of a checkpoint. ``classes.Model`` describes the fields."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    scan: bool = True
    prepared: bool = False
    score_modifier: Callable[..., jax.Array] | None = None
    gradient_dtype: Any = jnp.float32

    @property
    def forward_mode(self) -> bool:
        """Returns whether derivatives exist in forward mode too, by rules of JAX: with the definition of attention."""
        return self.attention == "reference"

    def __post_init__(self):
        check_choice("remat", self.remat, REMAT)
        for name in ("dtype", "param_dtype", "gradient_dtype"):
            _check_dtype(name, getattr(self, name))
        check_gradient_dtype(self.gradient_dtype, self.dtype, self.attention)
        for name in ("scan", "prepared"):
            if not isinstance(getattr(self, name), bool | np.bool):
                raise InputError(f"{name}={shown(getattr(self, name))}: expected True or False")


def _check_dtype(name: str, value: Any) -> None:
    known = ("float32", "bfloat16", "float16", *(["float64"] if jax.config.read("jax_enable_x64") else []))
    try:
        found = "" if value is None else jnp.dtype(value).name
    except TypeError:
        found = ""
    if found not in known:
        raise InputError(f"{name}={found or shown(value)}: expected one of {', '.join(known)}")


def check_gradient_dtype(gradient_dtype: Any, dtype: Any, attention: str) -> None:
    """Checks that devices can add up gradients in ``gradient_dtype``: float32, or the dtype of the computation.

    Raises:
      InputError: another dtype, or one that the derivatives of ``reference`` attention do not have.
    """
    asked = jnp.dtype(gradient_dtype)
    if asked == jnp.float32:
        return
    if asked != jnp.dtype(dtype):
        raise InputError(
            f"gradient_dtype={asked.name}: the computation has dtype {jnp.dtype(dtype).name}; give float32, or a "
            f"computation in {asked.name}"
        )
    if attention == "reference":
        raise InputError(
            f"gradient_dtype={asked.name}: with attention='reference' JAX derives the gradients; give another "
            "implementation, or float32"
        )


def declare(initializer: Callable[..., Any], axes: tuple[str | None, ...]) -> Callable[..., Any]:
    """Returns an initializer whose parameter carries the logical names of its axes."""
    return nn.with_logical_partitioning(initializer, axes)


def read_param(module: nn.Module, name: str, initializer: Callable[..., Any], *arguments: Any) -> Any:
    """Declares a parameter in ``module`` as ``module.param`` does, and returns it. It may be or hold quantized arrays.

    Raises:
      InputError: a quantized array has another shape than the parameter.
    """
    held = module.get_variable("params", name) if module.has_variable("params", name) else None
    if not any(map(is_compressed, jax.tree.leaves(held, is_leaf=is_compressed))):
        return module.param(name, initializer, *arguments)
    shape_of = lambda leaf: tuple(leaf.shape)
    declared = nn.unbox(jax.eval_shape(lambda: initializer(jax.random.key(0), *arguments)))
    expected, found = jax.tree.map(shape_of, declared), jax.tree.map(shape_of, held, is_leaf=is_compressed)
    if expected != found:
        raise InputError(f"the quantized parameter {'/'.join((*module.path, name))} is not one of this model: {found}")
    return held


class Linear(nn.Module):
    """Computes ``x @ kernel + bias`` with float32 accumulation. Heads are a separate axis of the kernel.

    The first ``contract`` axes of the kernel are contracted with the last axes of x; its other axes are the last axes
    of the result: [..., D] times [D,N,H] is [...,N,H]. The bias has these other axes. A quantized kernel is dequantized
    right before the product, and again for the backward pass, so that its values are not kept.

    Attributes:
      shape, axes: sizes and logical names of the kernel's axes.
      stddev: standard deviation of the initial kernel.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    stddev: float
    runtime: Runtime
    contract: int = 1
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "..."], out_dtype=None) -> Float[Array, "..."]:
        initializer = declare(nn.initializers.normal(self.stddev), self.axes)
        kernel = read_param(self, "kernel", initializer, self.shape, self.runtime.param_dtype)
        letters = "ABCDEF"[: len(self.shape)]
        lead = "UVWXYZ"[: x.ndim - self.contract]
        new = letters[self.contract :]
        dtype = self.runtime.dtype
        spec = f"{lead}{letters[: self.contract]},{letters}->{lead}{new}"
        modes = {"forward_mode": self.runtime.forward_mode, "gradient_dtype": self.runtime.gradient_dtype}
        multiply = functools.partial(product, spec, **modes)
        if isinstance(kernel, Compressed):
            y = jax.checkpoint(lambda x, kernel: multiply(x, kernel.dequantize(dtype)))(x.astype(dtype), kernel)
        else:
            y = multiply(x.astype(dtype), kernel)
        if self.use_bias:
            bias = self.param(
                "bias",
                declare(nn.initializers.zeros_init(), self.axes[self.contract :]),
                self.shape[self.contract :],
                self.runtime.param_dtype,
            )
            y = y + align(bias.astype(jnp.float32), y)
        return y.astype(out_dtype or dtype)


class LayerNorm(nn.Module):
    """Applies LayerNorm in float32; the result has the dtype of the computation."""

    size: int
    epsilon: float
    runtime: Runtime

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        run = self.runtime
        parameters = norm_params(self, self.size, run)
        return layer_norm(x, *parameters, self.epsilon, forward_mode=run.forward_mode).astype(run.dtype)


def norm_params(module: nn.Module, size: int, runtime: Runtime) -> tuple[jax.Array, jax.Array]:
    """Declares ``scale`` and ``bias`` [size] of a LayerNorm in ``module`` and returns them."""
    scale = module.param("scale", declare(nn.initializers.ones_init(), (None,)), (size,), runtime.param_dtype)
    bias = module.param("bias", declare(nn.initializers.zeros_init(), (None,)), (size,), runtime.param_dtype)
    return scale, bias


class EmbeddingTable(nn.Module):
    """Holds an embedding table. A call returns the table [V,E], which may be quantized by rows.

    ``ops.embedding_lookup`` reads its rows.

    Attributes:
      rows, width: V and E.
      axes: logical names of the two axes.
      stddev: standard deviation of the initial values.
      zero_row: the row that is initialized with zeros, or None.
    """

    rows: int
    width: int
    axes: tuple[str | None, ...]
    stddev: float
    runtime: Runtime
    zero_row: int | None = None

    @nn.compact
    def __call__(self) -> Float[Array, "V E"] | QuantizedArray:
        def initialize(key, shape, dtype):
            table = nn.initializers.normal(self.stddev)(key, shape, dtype)
            return table if self.zero_row is None else table.at[self.zero_row].set(0)

        shape = (self.rows, self.width)
        return read_param(self, "embedding", declare(initialize, self.axes), shape, self.runtime.param_dtype)


class Dropout(nn.Module):
    """Applies inverted dropout. Reads the rng ``dropout`` only if it is not deterministic and ``rate`` is above 0."""

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "..."], deterministic: bool) -> Float[Array, "..."]:
        if deterministic or self.rate == 0.0:
            return x
        return dropout(x, self.rate, self.make_rng("dropout"))
