"""Products of a program as JAX traced it: for targets that have no compiler here."""

import math
from collections.abc import Iterator
from typing import Any


def product_flops(jaxpr: Any) -> float:
    """Multiplications and additions of all matrix products and convolutions, on all devices together.

    Scans count by their length, of a conditional the largest branch.

    Raises:
      ValueError: a kernel is among them, whose loops cannot be counted from here.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        p, name = equation.params, equation.primitive.name
        if name == "pallas_call":
            raise ValueError("the products of a kernel cannot be counted")
        if name == "dot_general":
            (contracted, _), _ = p["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[p["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
        elif name == "cond":
            total += max(product_flops(branch.jaxpr) for branch in p["branches"])
        else:
            total += _times(name, p) * sum(product_flops(inner) for inner in _inner(p))
    return total


def _times(name: str, params: dict[str, Any]) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return params["mesh"].size
    return 1


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(part, "eqns"):
                yield part
            elif hasattr(part, "jaxpr") and hasattr(part.jaxpr, "eqns"):
                yield part.jaxpr
