"""Runs benchmarks/gpu as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [str(ROOT / "benchmarks" / "gpu"), str(ROOT / "benchmarks")]
# One device, not those that tests simulate.
ENVIRONMENT = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


def run_kit(
    output: Path, *arguments: str, command: tuple[str, ...] = (sys.executable, "benchmarks/gpu/kit.py", "--tiny")
) -> tuple[subprocess.CompletedProcess, dict[str, Any]]:
    """Returns the finished command and the results that it wrote."""
    made = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=550
    )
    return made, json.loads(output.read_text())
