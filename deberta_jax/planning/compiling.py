"""Compiles requests in a child process, because bad input can crash a compiler; and keeps the results."""

import contextlib
import dataclasses
import gzip
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import deberta_jax
from deberta_jax import plugins, storage
from deberta_jax.errors import InputError
from deberta_jax.planning.request import Request

_log = logging.getLogger(__name__)

FACTS, PROGRAM = "facts.json", "program.hlo.gz"
MEMORY = ("argument", "output", "alias", "temp", "generated_code")
"""The parts of the compiler's account of memory."""

_LONGEST_PROGRAM = 1 << 30

_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TF_CPP_MIN_LOG_LEVEL": "1",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Holds what a compiler made of a request.

    Attributes:
      facts: ``held`` (bytes of one chip by cause), ``seconds``, ``versions``; and ``memory`` (the compiler's account),
        or ``too_large`` (its refusal), or ``products`` (FLOPs of one chip) where there is no compiler.
      hlo: the program's text; empty where there is none.
      cached: whether the result was kept from before.
    """

    facts: dict[str, Any]
    hlo: str
    cached: bool


def compile_here(request: Request, *, tick: Callable[[], object] = lambda: None) -> Compiled:
    """Returns the compiled request, from the cache if it was compiled before.

    Args:
      tick: called every second meanwhile.

    Raises:
      InputError: the compiler or the model does not take the request.
    """
    check_compiler(request)
    # The identity has this package's sources, but not those of a user's modules: with them nothing is kept.
    cache = None if plugins.IMPORTED else storage.cache_directory()
    entry = None if cache is None else storage.CacheEntry(cache / "plans" / identity(request))
    found = None if entry is None else entry.read(lambda path, names: _read(path, names, cached=True))
    if found is not None:
        return found
    with _stage(entry) as stage:
        _compile(request, stage, tick)
        return _read(stage, {path.name for path in storage.files_in(stage)}, cached=False)


def _read(path: Path, names: Collection[str], *, cached: bool) -> Compiled:
    """Reads the results of a child process. Raises InputError, OSError, EOFError or zlib.error if they are damaged."""
    facts = storage.read_record(path / FACTS, {"held": dict, "seconds": float, "versions": dict})
    check_facts(facts)
    text = ""
    if PROGRAM in names:
        with storage.opened(path / PROGRAM) as packed, gzip.open(packed) as file:
            text = file.read(_LONGEST_PROGRAM + 1).decode()
    if len(text) > _LONGEST_PROGRAM or ("memory" in facts) != bool(text):
        raise InputError(f"{PROGRAM}: does not fit {FACTS}")
    return Compiled(facts, text, cached)


def check_facts(facts: dict[str, Any]) -> None:
    """Checks the results of a child process, which may have been kept where others can write.

    Raises:
      InputError: a part is missing or of another type.
    """
    bytes_of = lambda value: isinstance(value, dict) and all(type(n) is int and n >= 0 for n in value.values())
    kinds = [name for name in ("memory", "too_large", "products") if name in facts]
    refusal = facts.get("too_large", {"message": ""})
    right = bytes_of(facts["held"]) and len(kinds) == 1 and bytes_of(facts.get("memory", {}))
    right = right and set(facts.get("memory", MEMORY)) == set(MEMORY) and isinstance(refusal, dict)
    right = right and isinstance(refusal.get("message"), str)
    numbers = (facts["seconds"], facts.get("products", 0), refusal.get("used", 0), refusal.get("temporaries", 0))
    right = right and all(isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers)
    if not right:
        raise InputError(f"{FACTS}: is not what was written")


@contextmanager
def _stage(entry: storage.CacheEntry | None) -> Iterator[Path]:
    """Yields a directory to compile in; it is kept as the entry if that can be written."""
    with ExitStack() as stack:
        try:
            stage = None if entry is None else stack.enter_context(entry.making())
        except OSError as error:
            stage = None
            _log.warning("the compiled program is not kept for the next time: %s", storage.explain(error))
        yield stage or stack.enter_context(storage.scratch())


def check_compiler(request: Request) -> None:
    """Checks that the target's compiler is installed. Raises InputError, with what to install, if not."""
    if request.target.platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"{request.target.typed}: needs the TPU's compiler; `pip install 'jax[tpu]'` (no TPU is needed)"
        )
    plugins_of_jax = importlib.util.find_spec("jax_plugins")
    known = plugins_of_jax is not None and any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)
    )
    if request.target.card is not None and not known:
        raise InputError(
            f"{request.target.typed}: needs the compiler for GPUs; `pip install 'jax[cuda12]'` (no GPU is needed), or "
            f"give cuda:{request.target.chips} for what is known without it"
        )


def versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide what is compiled; "" for one that is not installed."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def identity(request: Request) -> str:
    """Returns a hash of the request, the versions, and this package's sources except those that only read results."""
    digest = hashlib.sha256(repr(request).encode())
    digest.update(json.dumps(versions(), sort_keys=True).encode())
    root = Path(deberta_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        part = path.relative_to(root)
        if part.parts[0] not in ("cli", "planning", "benchmarking") or part.name in ("programs.py", "child.py"):
            digest.update(str(part).encode() + b"\0" + storage.read_bytes(path))
    return digest.hexdigest()


def _compile(request: Request, stage: Path, tick: Callable[[], object]) -> None:
    """Compiles in a process of its own, which writes its results into ``stage``.

    The request goes through a pipe: a pickle in a file might be replaced by somebody who can write the directory.
    """
    with storage.writing(stage / "errors") as error_file:
        child = subprocess.Popen(
            [sys.executable, "-m", "deberta_jax.planning.child", str(stage), *plugins.IMPORTED],
            env=_environment(request),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=error_file,
        )
        try:
            with contextlib.suppress(BrokenPipeError), cast(BinaryIO, child.stdin) as pipe:
                pickle.dump(request, pipe)
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
        errors = storage.read_bytes(stage / "errors", storage.LOG).decode("utf-8", "replace")
        raise InputError(_crash_message(request, child.returncode, errors))
    storage.remove(stage / "errors")


def _environment(request: Request) -> dict[str, str]:
    """Returns the child's environment: CPU only, with as many simulated devices as the target unless it is a TPU."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | {k: v for k, v in _QUIET.items() if k not in os.environ}
    if request.target.platform != "tpu":
        flags = [f for f in env.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        env["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={request.target.chips}"])
    root = str(Path(deberta_jax.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [env.get("PYTHONPATH")])])
    return env


def _crash_message(request: Request, code: int, errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    likely = [line for line in lines if "rror" in line or "Check failed" in line] or lines
    how = f"signal {-code}" if code < 0 else f"code {code}"
    last = likely[-1][:300] if likely else "it said nothing"
    advice = wrong_libtpu() if request.target.platform == "tpu" else ""
    return f"{request.target.typed}: the compiler ended with {how}: {last}; {advice or 'try another slice or mesh'}"


def wrong_libtpu() -> str:
    """Returns what to install where libtpu is not the release that this JAX asks for; "" where it is, or is not known.

    A newer libtpu compiles, but jaxlib cannot read all of its programs: jaxlib 0.10.2 not those of 0.0.52 for v5p, v6e.
    """
    asked = next((x for x in importlib.metadata.requires("jax") or () if x.startswith("libtpu==")), "")
    asked = asked.split(";")[0].strip()
    found = versions()
    if not found["libtpu"] or f"{found['libtpu']}.".startswith(asked.removeprefix("libtpu==").removesuffix("*")):
        return ""
    return f"libtpu is {found['libtpu']}, and JAX {found['jax']} asks for {asked}: `pip install '{asked}'`"
