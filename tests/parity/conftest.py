"""The live comparisons need PyTorch; `make parity` installs it, `make test` does without these files."""

import importlib.util

HAVE_TORCH = importlib.util.find_spec("torch") is not None
collect_ignore_glob = [] if HAVE_TORCH else ["test_*.py"]


def pytest_report_header() -> str | None:
    return None if HAVE_TORCH else "tests/parity: not collected, torch is not installed (make parity installs it)"
