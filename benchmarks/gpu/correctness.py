"""Every attention implementation against the definition in float32: context and five gradients, on this device.

The error of an array is the norm of the difference over the norm of what the definition gives in float32, on the
host's CPU where JAX has it. Beside it stands the definition's own error on this device in the same dtype. A row passes
if no array's error exceeds twice the definition's own, or the dtype's rounding where that is more; and never a bound at
which an index or a sign may be wrong.
"""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import implementations
import jax
import jax.numpy as jnp
import numpy as np
from worker import Case, Request, digits

from deberta_jax.ops.attention import choose_implementation
from tests.kernel_cases import ARRAYS, BOTH, P2C, make_case

ROUNDING = {"float32": 2e-5, "bfloat16": 8e-3, "float16": 1e-3}
HIGHEST = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 1e-2}
# At tiny sizes compiling takes most of the time.
_QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
# Below this root mean square an array is zero in exact arithmetic, and its error is given in absolute terms.
_ZERO = 1e-5

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One comparison.

    Attributes:
      mask: ``none``, ``padding``, ``segments`` (several texts a row), ``pairwise`` [B,T,T], or ``all`` (the last two).
      generation: of the relative index, as ``tests.kernel_cases`` has them.
      without: tables that are left out.
    """

    length: int
    dtype: str
    mask: str
    dropout: float = 0.0
    generation: str = "released"
    batch: int = 2
    heads: int = 2
    size: int = 64
    without: tuple[str, ...] = BOTH

    def __str__(self) -> str:
        parts = [str(self.length), self.dtype, self.mask]
        parts += [f"dropout {self.dropout}"] if self.dropout else []
        parts += [self.generation] if self.generation != "released" else []
        parts += [f"{self.heads} heads of {self.size}"] if (self.heads, self.size) != (2, 64) else []
        return " ".join(parts + [f"without {name}" for name in self.without])


# Neighbours that differ in their dtype alone share what the definition gives in float32.
FULL = (
    *(Setting(512, dtype, "segments", 0.1, "v3") for dtype in ("bfloat16", "float32", "float16")),
    Setting(128, "bfloat16", "padding"),
    Setting(2048, "bfloat16", "segments", 0.1, batch=1),
    Setting(1, "float32", "none"),
    Setting(200, "bfloat16", "pairwise", 0.1, heads=3, size=32),
    Setting(1100, "float16", "padding", generation="v3"),
    Setting(65, "bfloat16", "all", 0.1, "v1"),
    Setting(2048, "float32", "none", batch=1),
    Setting(1, "bfloat16", "none"),
    Setting(384, "bfloat16", "none", without=P2C, size=128),
    Setting(2048, "float16", "segments", 0.1, batch=1),
    Setting(17, "float32", "pairwise", generation="v1"),
)
TINY = (
    Setting(40, "float32", "segments", 0.1, "v3", size=16),
    Setting(17, "bfloat16", "pairwise", generation="v1", size=16),
    Setting(1, "float16", "padding", size=16),
)


def cases(request: Request) -> list[Case]:
    """Returns a case for every setting and implementation, and what ``auto`` chooses on this device."""
    compared = [
        Case(f"{name}, {setting}", functools.partial(compare, name, setting, request), group=name)
        for setting in (TINY if request.tiny else FULL)
        for name in implementations.names(request)
    ]
    return compared + [Case(f"auto, {dtype}", functools.partial(_auto, dtype)) for dtype in ("bfloat16", "float32")]


def compare(name: str, setting: Setting, request: Request) -> dict[str, Any]:
    """Returns the errors of one implementation and whether they pass."""
    exact = _exact(dataclasses.replace(setting, dtype="float32"), request.tiny)
    own = _own_errors(setting, request.tiny, exact)
    if name == implementations.REFERENCE:
        found, interpreted = _definition(setting, request.tiny), False
    else:
        found, interpreted = implementations.or_interpreted(
            name, request, lambda attend: _context_and_gradients(attend, setting, request.tiny)
        )
    errors = _errors(found, exact)
    limits = {array: min(max(2 * own[array], ROUNDING[setting.dtype]), HIGHEST[setting.dtype]) for array in exact}
    passed = all(errors[array] <= limits[array] for array in exact)
    return {
        "status": "ok" if passed else "failed",
        "implementation": name,
        "setting": str(setting),
        "interpreted": interpreted,
        "errors": _json(errors),
        "definition's own": _json(own),
        "limits": _json(limits),
    }


def _own_errors(setting: Setting, tiny: bool, exact: Arrays) -> dict[str, float]:
    """Returns the definition's errors on this device; infinite where it cannot run, which its own row says."""
    try:
        return _errors(_definition(setting, tiny), exact)
    except Exception:  # of any kind: the implementation at hand is then judged by the bounds alone
        return dict.fromkeys(exact, np.inf)


def _json(errors: Mapping[str, float]) -> dict[str, float | None]:
    """Returns two digits of each."""
    return {name: digits(error, 2) for name, error in errors.items()}


def _errors(found: Arrays, exact: Arrays) -> dict[str, float]:
    """Returns the relative error of each array; infinite where a number is not finite or an array is missing."""
    errors = {}
    for name, a in exact.items():
        if name not in found or found[name].shape != a.shape or not np.isfinite(found[name]).all():
            errors[name] = np.inf
            continue
        size = np.linalg.norm(a)
        if size <= _ZERO * a.size**0.5:
            size = a.size**0.5
        errors[name] = float(np.linalg.norm(found[name] - a) / size)
    return errors


def inputs(setting: Setting) -> tuple[Arrays, dict[str, Any], np.ndarray]:
    """Returns the arrays with a cotangent, the masks and the relative index.

    All three dtypes represent the numbers exactly.
    """
    arrays, masks, relative_index = make_case(
        setting.length,
        setting.heads,
        setting.size,
        setting.generation,
        setting.mask,
        setting.without,
        batch=setting.batch,
        dtype=jnp.bfloat16,
    )
    arrays = {name: None if a is None else a.astype(setting.dtype) for name, a in arrays.items()}
    return arrays, masks, relative_index


def _context_and_gradients(attend: implementations.Attend, setting: Setting, tiny: bool) -> Arrays:
    """Returns the context and the gradient of every array, float32, from one program on the default device."""
    arrays, masks, relative_index = inputs(setting)
    cotangent = arrays.pop("cotangent")
    key = jax.random.key(7, impl="threefry2x32") if setting.dropout else None

    def both(arrays, masks, cotangent, key):
        def run(arrays):
            given = (arrays[name] for name in ARRAYS)
            options = {"scale": (3 * setting.size) ** -0.5, "dropout_rate": setting.dropout, "dropout_key": key}
            return attend(*given, relative_index, **options, **masks)

        context, pull = jax.vjp(run, arrays)
        return {"context": context, **pull(cotangent)[0]}

    given = arrays, masks, cotangent, key
    found = jax.jit(both).lower(*given).compile(compiler_options=_QUICK if tiny else None)(*given)
    return {name: np.asarray(a, np.float32) for name, a in found.items() if a is not None}


@functools.lru_cache(maxsize=1)
def _exact(setting: Setting, tiny: bool) -> Arrays:
    with jax.default_device(_host()):
        return _context_and_gradients(implementations.attend(implementations.REFERENCE, Request(tiny)), setting, tiny)


@functools.lru_cache(maxsize=1)
def _definition(setting: Setting, tiny: bool) -> Arrays:
    return _context_and_gradients(implementations.attend(implementations.REFERENCE, Request(tiny)), setting, tiny)


def _host() -> jax.Device:
    """Returns the host's CPU, where JAX has it. Elsewhere the definition's float32 products are exact as well."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _auto(dtype: str) -> dict[str, Any]:
    """Returns what ``attention="auto"`` takes on this device, and what it logs about it."""
    logger, handler = logging.getLogger("deberta_jax"), _Lines()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        chosen = choose_implementation("auto", jnp.dtype(dtype), whole_scores=False)
    finally:
        logger.removeHandler(handler)
    return {"dtype": dtype, "chosen": chosen, "log": handler.lines}
