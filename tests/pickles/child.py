"""Reads the attacks of some groups in a process of its own: prints a JSON line for each, and the memory at the end."""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deberta_jax.text import load_tokenizer
from tests.pickles import attacks
from tests.weights.files import inspect_strictly, raw_config, torch_legacy, zip_bytes


def outcome(read: Callable[[Path], Any], path: Path) -> dict[str, Any]:
    start = time.process_time()
    try:
        read(path)
        kind, message = "read", ""
    except Exception as error:
        kind, message = type(error).__name__, str(error)
    return {"kind": kind, "message": message[:5000], "seconds": time.process_time() - start}


def attack(group: str, form: str, folder: Path) -> None:
    """Reads each file of a group; only a config inside a file has none beside it."""
    one = np.zeros(1, np.float32)
    if group != "CONFIGS":
        (folder / "config.json").write_text(json.dumps(raw_config("v3")))
    path = folder / ("bpe_encoder.bin" if group == "VOCABULARIES" else "pytorch_model.bin")
    read = load_tokenizer if group == "VOCABULARIES" else inspect_strictly
    for name, make in getattr(attacks, group).items():
        zipped = form == "zip"
        path.write_bytes(zip_bytes(make(), {"0": one.tobytes()}) if zipped else torch_legacy(make(), {"0": one}))
        print(json.dumps({"name": name, "form": form, **outcome(read, folder)}), flush=True)


def main(form: str, *groups: str) -> None:
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for group in groups:
        with tempfile.TemporaryDirectory() as folder:
            attack(group, form, Path(folder))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"megabytes": (peak - idle) / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
