"""Compiles requests: in a process of its own, for a compiler may die of bad input, and once, for results are kept."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import deberta_jax
from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.planning.request import Request

_log = logging.getLogger(__name__)

_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TF_CPP_MIN_LOG_LEVEL": "1",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler made of a request.

    Attributes:
      facts: ``held`` (bytes of one chip by cause), ``seconds``, ``versions``; ``memory`` (the compiler's account), or
        ``too_large``, its refusal, or ``products`` (FLOPs of one chip), where there is no compiler.
      hlo: the program's text; empty where there is none.
      cached: it was compiled before.
    """

    facts: dict[str, Any]
    hlo: str
    cached: bool


def compile_here(request: Request, *, tick: Callable[[], object] = lambda: None) -> Compiled:
    """The request compiled, or found in the cache; ``tick`` is called every second meanwhile.

    Raises:
      InputError: what the compiler, or the model, does not take.
    """
    check_compiler(request)
    cache = storage.cache_directory()
    place = None if cache is None else cache / "plans" / identity(request)
    if place is not None and (place / "facts.json").is_file():
        return _read(place, cached=True)
    with _stage(place) as stage:
        _compile(request, stage, tick)
        return _read(stage, cached=False)


def _read(place: Path, *, cached: bool) -> Compiled:
    program = place / "program.hlo.gz"
    text = gzip.decompress(storage.read_bytes(program)).decode() if program.is_file() else ""
    return Compiled(storage.read_json(place / "facts.json"), text, cached)


@contextmanager
def _stage(place: Path | None) -> Iterator[Path]:
    """A directory to compile in, which is kept at ``place`` where that can be written."""
    with ExitStack() as stack:
        try:
            stage = None if place is None else stack.enter_context(storage.made_once(place))
        except OSError as error:
            stage = None
            _log.warning("the compiled program is not kept for the next time: %s", storage.explain(error))
        yield stage or stack.enter_context(storage.scratch())


def check_compiler(request: Request) -> None:
    if request.target.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"{request.target.typed}: needs the TPU's compiler; `pip install 'jax[tpu]'` (no TPU is needed)"
        )


def versions() -> dict[str, str]:
    """Of all that decides what comes out."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def identity(request: Request) -> str:
    """A hash of the request, the versions, and this package's sources but those that read the result."""
    digest = hashlib.sha256(repr(request).encode())
    digest.update(json.dumps(versions(), sort_keys=True).encode())
    root = Path(deberta_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        part = path.relative_to(root)
        if part.parts[0] not in ("cli", "planning", "benchmarking") or part.name in ("programs.py", "child.py"):
            digest.update(str(part).encode() + b"\0" + storage.read_bytes(path))
    return digest.hexdigest()


def _compile(request: Request, stage: Path, tick: Callable[[], object]) -> None:
    """Compiles in a process of its own, which writes its results into ``stage``."""
    storage.write_bytes(stage / "request", pickle.dumps(request))
    with storage.writing(stage / "errors") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "deberta_jax.planning.child", str(stage)],
            env=_environment(request),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            while True:
                try:
                    child.wait(1)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            if child.poll() is None:
                child.kill()
    refusal = stage / "refusal"
    if refusal.is_file():
        raise InputError(storage.read_text(refusal))
    if child.returncode != 0:
        told = storage.read_bytes(stage / "errors").decode("utf-8", "replace")
        raise InputError(_died(request, child.returncode, told))
    storage.remove(stage / "request")


def _environment(request: Request) -> dict[str, str]:
    """Of the child: no device but the CPU, simulated as often as the target has devices unless a compiler stands in."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | {k: v for k, v in _QUIET.items() if k not in os.environ}
    if request.target.platform != "tpu":
        flags = [f for f in env.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        env["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={request.target.chips}"])
    root = str(Path(deberta_jax.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    return env


def _died(request: Request, code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if "rror" in line or "Check failed" in line] or lines
    how = f"signal {-code}" if code < 0 else f"code {code}"
    last = told[-1][:300] if told else "it said nothing"
    advice = wrong_libtpu() if request.target.platform == "tpu" else ""
    return f"{request.target.typed}: the compiler ended with {how}: {last}; {advice or 'try another slice or mesh'}"


def wrong_libtpu() -> str:
    """What to do about a libtpu that is not of the release this JAX was made for; "" where it is, or is not known.

    A newer one compiles, but jaxlib then cannot read all of its programs: 0.0.52's for v5p and v6e, by jaxlib 0.10.2.
    """
    asked = next((x for x in importlib.metadata.requires("jax") or () if x.startswith("libtpu==")), "")
    asked = asked.split(";")[0].strip()
    found = versions()
    if not found["libtpu"] or f"{found['libtpu']}.".startswith(asked.removeprefix("libtpu==").removesuffix("*")):
        return ""
    return f"libtpu is {found['libtpu']}, and JAX {found['jax']} asks for {asked}: `pip install '{asked}'`"
