"""Fixtures of the converter's tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy


@pytest.fixture
def write(tmp_path):
    """``write(name, state, raw)`` makes a model directory with model.safetensors, by the library of that name."""

    def make(name: str, state: Mapping[str, np.ndarray], raw: Mapping[str, Any], file: str = "model.safetensors"):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        safetensors.numpy.save_file(dict(state), directory / file, metadata={"format": "pt"})
        (directory / "config.json").write_text(json.dumps(dict(raw)))
        return directory

    return make


@pytest.fixture
def golden() -> Path:
    """Small files that PyTorch wrote."""
    return Path(__file__).resolve().parents[1] / "golden" / "weights"
