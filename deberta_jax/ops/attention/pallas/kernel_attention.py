"""The fused kernels behind one entry: which platform's kernel runs is decided where the program is lowered."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from deberta_jax.errors import InputError
from deberta_jax.ops.attention.pallas.platforms import BACKENDS, import_kernels
from deberta_jax.ops.attention.pallas.tiling import Plan, make_gpu_plan, make_plan
from deberta_jax.ops.dropout import LONGEST, dropout_seeds
from deberta_jax.ops.products import F32
from deberta_jax.sharding import RULES, MeshAxes

Machine = Literal["tpu", "gpu"]


def pallas_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B T N H"],
    value: Float[Array, "B T N H"],
    pos_key: Float[Array, "R N H"] | None,
    pos_query: Float[Array, "R N H"] | None,
    rows: Int[np.ndarray, " U"],
    *,
    scale: float,
    texts: Int[Array, "B T"] | None = None,
    pairs: Bool[Array, "B T T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    interpret: Machine | None = None,
) -> Float[Array, "B T N H"]:
    """Context; arguments as in ``ops.attention.disentangled_attention``.

    Args:
      interpret: run the kernel of this machine in Pallas' interpreter, on any backend and slowly: for tests.

    Raises:
      InputError: arrays of different dtypes or one that no kernel computes in, or a text longer than 65536 tokens; and
        where the program is lowered, a machine without a kernel.
    """
    given = [a for a in (query, key, value, pos_key, pos_query) if a is not None]
    dtypes = sorted({str(a.dtype) for a in given})
    served = BACKENDS["gpu"].dtypes
    if len(dtypes) > 1 or dtypes[0] not in served:
        raise InputError(
            f"attention='pallas' computes in {_listed(served)}, all arrays alike, not {', '.join(dtypes)}; "
            "use another dtype, or attention='shift'"
        )
    length = query.shape[1]
    if length > LONGEST:
        raise InputError(f"attention='pallas' takes at most {LONGEST} tokens, not {length}")
    rate = 0.0 if dropout_key is None else dropout_rate
    arrays = {"query": query, "key": key, "value": value, "pos_key": pos_key, "pos_query": pos_query}
    arrays |= {"texts": texts, "pairs": pairs}
    arrays |= {"seeds": None if dropout_key is None or not rate else dropout_seeds(dropout_key)}
    arrays = {name: a for name, a in arrays.items() if a is not None}
    return _on_each_device(functools.partial(_attend_here, rows, scale, rate, query.shape[2], interpret), arrays)


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


_AXES = {
    **dict.fromkeys(("query", "key", "value"), ("batch", None, "heads", None)),
    **dict.fromkeys(("pos_key", "pos_query"), (None, "heads", None)),
    "texts": ("batch", None),
    "pairs": ("batch", None, None),
    "seeds": (None,),
}


def _on_each_device(attend: Callable, arrays: dict[str, jax.Array]) -> Float[Array, "B T N H"]:
    """``attend(arrays, first example, first head)`` on each device's examples and heads, where a mesh is set.

    XLA cannot divide a kernel by itself. A mesh axis that does not divide the examples, or heads, is not used for them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return attend(arrays, 0, 0)
    sizes = {"batch": arrays["query"].shape[0], "heads": arrays["query"].shape[2]}
    names = {axis: _dividing(mesh.shape, getattr(RULES, axis), size) for axis, size in sizes.items()}
    spec = lambda axes: PartitionSpec(*(None if axis is None else names[axis] for axis in axes))

    def here(arrays):
        counts = arrays["query"].shape[0], arrays["query"].shape[2]
        numbers = (lax.axis_index(names[axis]) if names[axis] else 0 for axis in sizes)
        return attend(arrays, *(number * count for number, count in zip(numbers, counts, strict=True)))

    in_specs = ({name: spec(_AXES[name]) for name in arrays},)
    return jax.shard_map(here, mesh=mesh, in_specs=in_specs, out_specs=spec(_AXES["query"]), check_vma=False)(arrays)


def _dividing(mesh: Mapping[str, int], axes: MeshAxes, size: int) -> tuple[str, ...]:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return axes if size % math.prod(mesh[axis] for axis in axes) == 0 else ()


@dataclasses.dataclass(frozen=True)
class _Call:
    """What is fixed when a call is traced: for each machine that may run it a plan of its forward and its backward."""

    plans: tuple[tuple[Machine, tuple[Plan, Plan]], ...]
    interpret: Machine | None


def _attend_here(rows, scale, rate, all_heads, interpret, arrays, first_example, first_head):
    """One device's part. Dropout numbers examples and heads over all devices: the mask is that of one device."""
    query = arrays["query"]
    _, length, heads, head_size = query.shape
    plan = make_plan(length, heads, head_size, rows, scale=scale, rate=rate, all_heads=all_heads)
    on_gpu = functools.partial(make_gpu_plan, plan, rows, query.dtype.itemsize)
    plans: dict[Machine, tuple[Plan, Plan]] = {
        "tpu": (plan, plan),
        "gpu": (on_gpu(backward=False), on_gpu(backward=True)),
    }
    machines: tuple[Machine, ...] = ("tpu", "gpu") if interpret is None else (interpret,)
    call = _Call(tuple((machine, plans[machine]) for machine in machines), interpret)
    seeds = arrays.get("seeds", jnp.zeros((2,), jnp.uint32))
    first = jnp.stack([jnp.uint32(first_example), jnp.uint32(first_head)])
    flat = {name: a.reshape(*a.shape[:2], -1) for name, a in arrays.items() if _AXES[name] == _AXES["query"]}
    arrays = arrays | flat | {"seeds": jnp.append(seeds, first)}
    learned = {name: a for name, a in arrays.items() if jnp.issubdtype(a.dtype, jnp.floating)}
    given = {name: a for name, a in arrays.items() if name not in learned}
    context: Any = _attend(call, learned, given, jnp.asarray(rows))
    return context.reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call, learned, given, rows):
    return _attend_forward(call, learned, given, rows)[0]


def _attend_forward(call, learned, given, rows):
    batch, length, _ = learned["query"].shape
    logsum = jax.ShapeDtypeStruct((batch, call.plans[0][1][0].heads, length), F32)
    context, logsum = _on_machine(call, "forward", learned | given, rows, like=(learned["query"], logsum))
    return context, (learned | {"context": context, "logsum": logsum}, given, rows)


def _attend_backward(call, saved, cotangent):
    arrays, given, rows = saved
    learned = {name: a for name, a in arrays.items() if name not in ("context", "logsum")}
    arrays = arrays | given | {"cotangent": cotangent}
    return _on_machine(call, "backward", arrays, rows, like=learned), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _on_machine(call: _Call, part: str, arrays: dict[str, jax.Array], rows: Any, *, like: Any) -> Any:
    """``forward`` or ``backward`` of the kernel of the machine that the program is lowered for."""
    bodies = {machine: _kernel(call, part, machine, plans, arrays, like) for machine, plans in call.plans}
    if call.interpret is not None:
        return bodies[call.interpret](arrays, rows)
    nowhere = _refusing(
        "attention='pallas' has kernels for TPUs and for NVIDIA's GPUs, and this program is for neither; "
        "use attention='auto', or 'blocked' on a CPU, or 'shift'",
        like,
    )
    return lax.platform_dependent(arrays, rows, tpu=bodies["tpu"], cuda=bodies["gpu"], default=nowhere)


def _kernel(call: _Call, part: str, machine: Machine, plans: tuple[Plan, Plan], arrays: Any, like: Any) -> Callable:
    """The kernel ``part`` of a platform; one that refuses to be lowered where there is none."""
    dtype, served = str(arrays["query"].dtype), BACKENDS[machine].dtypes
    if call.interpret is None and dtype not in served:
        return _refusing(
            f"attention='pallas' computes on a {machine.upper()} in {_listed(served)}, not {dtype}; "
            "use another dtype, or attention='shift'",
            like,
        )
    try:
        kernel = getattr(import_kernels(machine), part)
    except InputError as error:  # the program may well be for another platform
        return _refusing(str(error), like)
    plan = plans[0] if part == "forward" else plans[1]
    return functools.partial(kernel, plan, interpret=call.interpret is not None)


def _refusing(message: str, like: Any) -> Callable:
    def refuse(arrays, rows):
        from deberta_jax.ops.attention.pallas.unsupported import refused  # imported when used: its JAX names may move

        return refused(message, like)

    return refuse
