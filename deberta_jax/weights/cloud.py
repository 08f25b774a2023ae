"""Places that are not on a local disk: ``gs://bucket/directory``, for Orbax checkpoints."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from etils import epath

from deberta_jax.errors import InputError

Place = Path | epath.Path
"""A directory on a local disk, or in a bucket: of another class, with the same methods."""


def is_cloud(place: str | Place) -> bool:
    """Whether a place is a URL.

    Raises:
      InputError: a URL that cannot be served, or one that ``pathlib`` has cut short.
    """
    text = str(place)
    if re.match(r"[a-z][a-z0-9]+:/[^/]", text):
        raise InputError(f"{text}: pathlib has cut this URL short; give it as text, {text.replace(':/', '://', 1)}")
    if "://" in text and not re.match(r"gs://[^/]+", text):
        raise InputError(f"{text}: of URLs only gs://bucket/directory can be read and written")
    return "://" in text


@contextmanager
def reaching(place: str | Path) -> Iterator[epath.Path]:
    """The place as a path; whatever goes wrong on the way there is an InputError of one line."""
    try:
        yield epath.Path(str(place))
    except (InputError, TypeError, AttributeError, LookupError, AssertionError):
        raise  # ours, or a mistake of a program
    except ImportError as error:
        raise InputError(f"{place}: {error}, or use a local directory") from None
    except Exception as error:  # of the client, its transport, its credentials: all mean that the place is out of reach
        raise InputError(f"{place}: cannot be reached ({' '.join(str(error).split())[:200]})") from None
