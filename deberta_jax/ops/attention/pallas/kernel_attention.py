"""Runs the Pallas kernels behind one function: the platform's kernel is chosen when the program is lowered."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from deberta_jax.errors import InputError
from deberta_jax.ops.attention.dropout import MAX_LENGTH
from deberta_jax.ops.attention.inputs import AttentionInputs
from deberta_jax.ops.attention.pallas.platforms import KERNEL_DTYPES, KERNEL_PLATFORMS, gpu_capability, import_kernels
from deberta_jax.ops.attention.pallas.tiling import (
    AUTOMATIC_SIZES,
    KernelSizes,
    Tiling,
    make_gpu_tiling,
    make_tpu_tiling,
)
from deberta_jax.ops.dropout import dropout_seeds
from deberta_jax.ops.products import F32
from deberta_jax.sharding import RULES, MeshAxes

Platform = Literal["tpu", "gpu"]

# Logical axes of the arrays, for a mesh. None: whole on every device.
_AXES = {
    **dict.fromkeys(("query", "key", "value"), ("batch", None, "heads", None)),
    **dict.fromkeys(("pos_key", "pos_query"), (None, "heads", None)),
    "segment_ids": ("batch", None),
    "attention_mask": ("batch", None, None),
    "seeds": (None,),
}


def pallas_attention(
    inputs: AttentionInputs, *, sizes: KernelSizes = AUTOMATIC_SIZES, interpret: Platform | None = None
) -> Float[Array, "B T N H"]:
    """Returns the context in the dtype of ``value``.

    Args:
      inputs: arguments of the entry; talking heads are not supported.
      sizes: of blocks and programs.
      interpret: run this platform's kernel in Pallas' interpreter, on any backend and slowly; for tests.

    Raises:
      InputError: arrays of different dtypes or of one that no kernel computes in, or more than 65536 tokens; and when
        the program is lowered, a platform without a kernel.
    """
    names = ("query", "key", "value", "pos_key", "pos_query", "segment_ids", "attention_mask")
    arrays = {name: getattr(inputs, name) for name in names}
    dtypes = sorted({str(arrays[name].dtype) for name in names[:5] if arrays[name] is not None})
    if len(dtypes) > 1 or dtypes[0] not in KERNEL_DTYPES:
        raise InputError(
            f"attention='pallas' computes in {_listed(KERNEL_DTYPES)}, all arrays alike, not {', '.join(dtypes)}; "
            "use another dtype, or attention='xla'"
        )
    length = inputs.query.shape[1]
    if length > MAX_LENGTH:
        raise InputError(f"attention='pallas' takes at most {MAX_LENGTH} tokens, not {length}")
    rate = 0.0 if inputs.dropout_key is None else inputs.dropout_rate
    arrays["seeds"] = None if inputs.dropout_key is None or not rate else dropout_seeds(inputs.dropout_key)
    arrays = {name: a for name, a in arrays.items() if a is not None}
    inputs = dataclasses.replace(inputs, dropout_rate=rate)
    return _on_each_device(functools.partial(_attend_on_device, inputs, sizes, interpret), arrays)


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _on_each_device(attend: Callable, arrays: dict[str, jax.Array]) -> Float[Array, "B T N H"]:
    """Returns ``attend(arrays, first example, first head)``, on each device's examples and heads where a mesh is set.

    XLA cannot divide a kernel by itself. A mesh axis that does not divide the examples, or heads, is not used for them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attend(arrays, 0, 0)
    sizes = {"batch": arrays["query"].shape[0], "heads": arrays["query"].shape[2]}
    names = {axis: _dividing_axes(mesh.shape, getattr(RULES, axis), size) for axis, size in sizes.items()}
    spec = lambda axes: PartitionSpec(*(None if axis is None else names[axis] for axis in axes))

    def on_device(arrays):
        counts = arrays["query"].shape[0], arrays["query"].shape[2]
        numbers = (lax.axis_index(names[axis]) if names[axis] else 0 for axis in sizes)
        return attend(arrays, *(number * count for number, count in zip(numbers, counts, strict=True)))

    in_specs = ({name: spec(_AXES[name]) for name in arrays},)
    return jax.shard_map(on_device, mesh=mesh, in_specs=in_specs, out_specs=spec(_AXES["query"]), check_vma=False)(
        arrays
    )


def _dividing_axes(mesh: Mapping[str, int], axes: MeshAxes, size: int) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return axes if size % math.prod(mesh[axis] for axis in axes) == 0 else ()


@dataclasses.dataclass(frozen=True)
class _Call:
    """Holds what is fixed when a call is traced: for each platform the tiling of its kernels."""

    tilings: tuple[tuple[Platform, Tiling], ...]
    interpret: Platform | None


def _attend_on_device(
    inputs: AttentionInputs, sizes: KernelSizes, interpret: Platform | None, arrays, first_example, first_head
):
    """Returns the context of one device's examples and heads.

    Dropout numbers examples and heads over all devices, so that the mask is that of one device.

    Args:
      inputs: of the whole call; only its constants and the number of all heads are read.
      arrays: of this device, by name.
      first_example, first_head: numbers of this device's first ones.
    """
    query, relative_index = arrays["query"], inputs.relative_index
    _, length, heads, head_size = query.shape
    tiling = make_tpu_tiling(
        length,
        heads,
        head_size,
        relative_index,
        scale=inputs.scale,
        dropout_rate=inputs.dropout_rate,
        all_heads=inputs.query.shape[2],
        sizes=sizes,
    )
    of_gpu = make_gpu_tiling(tiling, relative_index, capability=gpu_capability(), sizes=sizes)
    tilings: dict[Platform, Tiling] = {"tpu": tiling, "gpu": of_gpu}
    platforms: tuple[Platform, ...] = ("tpu", "gpu") if interpret is None else (interpret,)
    call = _Call(tuple((platform, tilings[platform]) for platform in platforms), interpret)
    seeds = arrays.get("seeds", jnp.zeros((2,), jnp.uint32))
    first = jnp.stack([jnp.uint32(first_example), jnp.uint32(first_head)])
    flat = {name: a.reshape(*a.shape[:2], -1) for name, a in arrays.items() if _AXES[name] == _AXES["query"]}
    arrays = arrays | flat | {"seeds": jnp.append(seeds, first)}
    differentiable = {name: a for name, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    constant = {name: a for name, a in arrays.items() if name not in differentiable}
    context: Any = _attend(call, differentiable, constant, jnp.asarray(relative_index))
    return context.reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call, differentiable, constant, relative_index):
    return _attend_forward(call, differentiable, constant, relative_index)[0]


def _attend_forward(call, differentiable, constant, relative_index):
    query = differentiable["query"]
    batch, length, _ = query.shape
    logsumexp = jax.ShapeDtypeStruct((batch, call.tilings[0][1].heads, length), F32)
    like = {"context": query, "logsumexp": logsumexp}
    like |= {"context_rest": query} if query.dtype != F32 else {}
    results = _on_platform(call, "forward", differentiable | constant, relative_index, like=like)
    return results["context"], (differentiable, results, constant, relative_index)


def _attend_backward(call, saved, cotangent):
    differentiable, results, constant, relative_index = saved
    arrays = differentiable | results | constant | {"cotangent": cotangent}
    return _on_platform(call, "backward", arrays, relative_index, like=differentiable), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _on_platform(call: _Call, part: str, arrays: dict[str, jax.Array], relative_index: Any, *, like: Any) -> Any:
    """Returns what ``forward`` or ``backward`` gives, of the platform that the program is lowered for."""
    kernels = {platform: _kernel(call, part, platform, tiling, arrays, like) for platform, tiling in call.tilings}
    if call.interpret is not None:
        return kernels[call.interpret](arrays, relative_index)
    no_kernel = _refusing(
        "attention='pallas' has kernels for TPUs and for NVIDIA's GPUs, and this program is for neither; "
        "use attention='auto', or 'blocked' on a CPU, or 'xla'",
        like,
    )
    return lax.platform_dependent(arrays, relative_index, tpu=kernels["tpu"], cuda=kernels["gpu"], default=no_kernel)


def _kernel(call: _Call, part: str, platform: Platform, tiling: Tiling, arrays: Any, like: Any) -> Callable:
    """Returns the ``forward`` or ``backward`` of a platform, or a function that refuses to be lowered."""
    dtype, supported = str(arrays["query"].dtype), KERNEL_PLATFORMS[platform].dtypes
    if call.interpret is None and dtype not in supported:
        return _refusing(
            f"attention='pallas' computes on a {platform.upper()} in {_listed(supported)}, not {dtype}; "
            "use another dtype, or attention='xla'",
            like,
        )
    try:
        kernel = getattr(import_kernels(platform), part)
    except InputError as error:  # the program may be for another platform
        return _refusing(str(error), like)
    if call.interpret is not None:
        return functools.partial(kernel, tiling, interpret=True)

    def traced(arrays, relative_index):
        try:
            return kernel(tiling, arrays, relative_index, interpret=False)
        except Exception as error:  # whatever another JAX raises; the program may be for another platform
            return _refusing(
                f"attention='pallas' on a {platform.upper()}: JAX {jax.__version__} cannot trace its kernel "
                f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); use attention='xla'",
                like,
            )(arrays, relative_index)

    return traced


def _refusing(message: str, like: Any) -> Callable:
    def refuse(arrays, relative_index):
        from deberta_jax.ops.attention.pallas.unsupported import unsupported  # when used: its JAX names may move

        return unsupported(message, like)

    return refuse
