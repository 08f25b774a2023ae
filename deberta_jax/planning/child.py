"""Compiles a request in a process of its own: reads a pickled request, writes ``facts.json`` and ``program.hlo.gz``."""

import gzip
import pickle
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from deberta_jax import storage
from deberta_jax.errors import InputError
from deberta_jax.planning.cards import target_config
from deberta_jax.planning.compiling import FACTS, MEMORY, PROGRAM, versions
from deberta_jax.planning.programs import lower_for_cuda, make_program
from deberta_jax.planning.request import Request
from deberta_jax.plugins import import_plugin


def main(stage: Path, pickled: bytes, plugins: Sequence[str] = ()) -> None:
    """Compiles a request, and leaves its results, or ``refusal``, in a directory.

    Args:
      stage: the directory.
      pickled: the request; it comes through a pipe that only the parent process can write to.
      plugins: modules to import first, which may define the request's task and head.
    """
    for name in plugins:
        import_plugin(name)
    request: Request = pickle.loads(pickled)
    began = time.perf_counter()
    facts: dict[str, Any] = {"versions": versions()}
    try:
        if request.target.platform == "cuda" and request.target.card is None:
            facts["held"], facts["products"] = lower_for_cuda(request, devices(request))
        else:
            made = make_program(request, devices(request))
            facts["held"] = made.held
            facts["memory"] = account(made.compiled, stage)
    except InputError as error:
        storage.write_text(stage / "refusal", str(error))
        return
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            if not request.compiler_options:
                raise
            why = str(error).splitlines()[0][:200]
            storage.write_text(stage / "refusal", f"--xla-flags {request.xla_flags}: the compiler refuses them ({why})")
            return
        facts["too_large"] = too_large(str(error))
    facts["seconds"] = round(time.perf_counter() - began, 1)
    storage.write_json(stage / FACTS, facts)


def account(compiled: Any, stage: Path) -> dict[str, int]:
    """Returns the compiler's account of memory, in bytes; writes the program's text to ``stage``."""
    memory = compiled.memory_analysis()
    storage.write_bytes(stage / PROGRAM, gzip.compress(compiled.as_text().encode(), 6))
    return {name: int(getattr(memory, f"{name}_size_in_bytes")) for name in MEMORY}


def devices(request: Request) -> Any:
    """Returns the target's devices, simulated ones or descriptions of TPUs or GPUs.

    Raises:
      InputError: a slice that the compiler does not know.
    """
    card, target = request.target.card, request.target
    if card is not None:
        shape = f"1x{target.slices}x{target.chips // target.slices}"
        options = {"target_config": target_config(card), "topology": shape}
        return topologies.get_topology_desc(platform="cuda", topology_name="", **options).devices
    if target.platform != "tpu":
        return jax.devices()
    try:
        several = {"num_slices": target.slices} if target.slices > 1 else {}
        return topologies.get_topology_desc(platform="tpu", topology_name=target.topology, **several).devices
    except Exception as error:  # whatever the plugin raises
        raise InputError(f"{request.target.typed}: {str(error).splitlines()[0][:200]}") from None


def too_large(message: str) -> dict[str, Any]:
    """Returns the bytes that the compiler says it would need, and its message.

    ``used`` is the total, which includes what the program is given; ``temporaries`` is without that.
    """
    units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

    def most(form: str) -> float | None:
        found = re.findall(form + r" \(?([\d.]+)([KMGT]?)", message)
        return max((float(number) * units[unit] for number, unit in found), default=None)

    # "Used" may leave out what the program is given; the total does not, where the message has one. Where temporaries
    # alone are more than a chip has, the message has nothing else.
    sizes = {"used": most("(?:Used|Total hbm usage >=)"), "temporaries": most("HLO temporaries")}
    return {"message": " ".join(message.split())[:500], **{name: n for name, n in sizes.items() if n is not None}}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.stdin.buffer.read(), sys.argv[2:])
