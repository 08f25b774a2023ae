"""Imports Orbax and undoes what its import does to logging.

Orbax logs while it is imported. The first message of a program without handlers makes ``absl`` install one on the root
logger, and every library of the program would then print through it.
"""

import logging

_before = logging.root.handlers[:]

import orbax.checkpoint as ocp  # noqa: E402

logging.root.handlers[:] = _before

__all__ = ["ocp"]
