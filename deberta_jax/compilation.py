"""Keeps compiled programs on disk with JAX's persistent compilation cache, so that a later process compiles nothing."""

import hashlib
import logging
import os
import platform
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from deberta_jax import storage
from deberta_jax.errors import InputError

_log = logging.getLogger(__name__)

_SETTING = "JAX_COMPILATION_CACHE_DIR"
_MOST_BYTES = 4 << 30


def use_compilation_cache(given: str = "") -> Path | None:
    """Turns on JAX's persistent compilation cache, in ``~/.cache/deberta_jax/programs`` if no directory is given.

    The command line, ``pipeline``, ``finetune``, ``pretrain`` and ``sweep`` call it. Without ``given`` JAX's own
    setting ``JAX_COMPILATION_CACHE_DIR`` names another directory, and turns the cache off if it is empty; a directory
    set by ``jax.config`` is left too. The package's own directory holds at most 4 GB, of which the programs unused for
    longest are removed.

    Args:
      given: a directory, or a URL such as gs://bucket/programs that all hosts of a run share. It goes before all
        settings. Nothing is removed from it. Programs in it are run as they are found, so nobody else may write there.

    Returns:
      The package's own directory; None if it is not used.

    Raises:
      InputError: ``given`` cannot be written.
      RunAgainError: it cannot be reached now.
    """
    config: Any = jax.config  # its attributes are not declared in every version of JAX
    if given:
        _use_given(config, given)
        return None
    if _SETTING in os.environ or config.jax_compilation_cache_dir is not None:
        _check_given(config)
        return None
    cache = storage.cache_directory()
    if cache is None:
        return None
    # Programs are run as they are found, so nobody else may write them: users who share a cache have one each.
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    directory = cache / "programs" / f"{_processor()}{user}"
    try:
        storage.make_private_directory(directory)
    except OSError as error:
        _log.info("compiled programs are not kept (%s)", storage.explain(error))
        return None
    config.update("jax_compilation_cache_dir", str(directory))
    config.update("jax_compilation_cache_max_size", _MOST_BYTES)
    # By default JAX keeps only what took a second to compile; a run has hundreds of smaller programs.
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # Without this JAX goes on as it was set when the process compiled its first program.
    compilation_cache.reset_cache()
    return directory


def _use_given(config: Any, given: str) -> None:
    """Turns the cache on in a directory or a bucket that an option names. Raises as ``use_compilation_cache``."""
    storage.check_output_directory("--compile-cache", given)
    directory = storage.output_directory("--compile-cache", given)
    if not storage.is_remote(given):
        storage.make_directory(directory)
    config.update("jax_compilation_cache_dir", str(directory))
    # JAX would lock the directory to count its bytes, which a bucket does not do.
    config.update("jax_compilation_cache_max_size", -1)
    compilation_cache.reset_cache()


def _check_given(config: Any) -> None:
    """Turns the cache off, with one warning, if a local directory of the user's cannot be written.

    JAX would warn for every program.
    """
    given = config.jax_compilation_cache_dir
    if not given or "://" in given:
        return
    try:
        storage.make_directory(Path(given))
        writable = os.access(given, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        _log.warning("JAX's compilation cache %s cannot be written; compiled programs are not kept", given)
        config.update("jax_compilation_cache_dir", None)


def _processor() -> str:
    """Returns a name for this kind of processor: programs for a CPU may use instructions that others lack."""
    described = platform.machine()
    try:
        lines = storage.read_text(Path("/proc/cpuinfo")).splitlines()
        described += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except InputError:  # other systems than Linux
        described += platform.processor()
    return hashlib.sha256(described.encode()).hexdigest()[:12]
