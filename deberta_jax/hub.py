"""A name -> a local directory. A directory is taken as it is; anything else is an id on the Hugging Face hub.

Downloads go through ``huggingface_hub`` and therefore obey its cache (``HF_HOME``), ``HF_ENDPOINT``, ``HF_TOKEN`` and
``HF_HUB_OFFLINE``, show its progress bar, and go on where they were interrupted.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from deberta_jax.errors import InputError

TEXT_FILES = ("*.json", "*.txt", "spm.model", "bpe_encoder.bin")

# The first format of which a repository has a file is the one that is fetched.
_WEIGHT_FILES = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("adapter_model.safetensors",),
    ("adapter_model.bin",),
)

_REPO_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")


def split(name: str) -> tuple[str, str | None]:
    """A name into the directory or hub id and, if it names one, the file: ``org/model/weights.bin`` -> both parts."""
    path = Path(name).expanduser()
    if not name or path.is_dir():
        return name, None
    if path.is_file():
        return str(path.parent), path.name
    parts = name.split("/")
    if len(parts) == 3 and not name.startswith((".", "/", "~")) and "." in parts[2]:
        return "/".join(parts[:2]), parts[2]
    return name, None


def resolve(name: str | Path, *, revision: str | None = None, files: Sequence[str] | None = None) -> Path:
    """The local directory of a model.

    Args:
      name: a directory, a file (its directory is meant), a hub id ``org/model``, or ``org/model/file``.
      revision: branch, tag or commit on the hub; a commit pins the files for good.
      files: glob patterns of the files needed; None means configuration, tokenizer and one format of weights.

    Raises:
      InputError: neither a directory nor a hub id that can be reached and read.
    """
    where, file = split(str(name))
    if where and Path(where).expanduser().is_dir():
        return Path(where).expanduser()
    if not _REPO_ID.fullmatch(where):
        raise InputError(f"{name}: no such directory; give a model directory or a hub id such as org/model")
    import huggingface_hub  # here, because importing it takes longer than everything else

    try:
        wanted = list(files) if files is not None else _patterns(where, revision, file)
        return Path(huggingface_hub.snapshot_download(where, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the client's own, its transport's, the file system's: all mean that there is no model
        raise InputError(f"{name}: {_why(where, revision, error)}") from None


def _patterns(repo: str, revision: str | None, file: str | None) -> list[str]:
    from huggingface_hub import HfApi, errors

    if file is not None:
        return [*TEXT_FILES, file]
    try:
        present = [sibling.rfilename for sibling in HfApi().model_info(repo, revision=revision).siblings or ()]
    except errors.HfHubHTTPError:
        raise
    except Exception:  # offline, by wish or not: the download below answers from the cache, or says that it cannot
        return [*TEXT_FILES, *(pattern for patterns in _WEIGHT_FILES for pattern in patterns)]
    for patterns in _WEIGHT_FILES:
        if any(fnmatch(found, pattern) for found in present for pattern in patterns):
            return [*TEXT_FILES, *patterns]
    raise InputError(f"{repo}: the repository has no weights (model.safetensors or pytorch_model.bin)")


def _why(repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, InputError):
        return str(error).split(": ", 1)[1]
    if isinstance(error, errors.GatedRepoError):
        return "access to this hub repository must be granted first; accept its terms and set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub repository has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such directory, and no such hub repository (a private one needs HF_TOKEN)"
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "no such directory, and the hub is out of reach and its cache lacks it; give a directory or go online"
    return f"no such directory, and the hub download failed ({' '.join(str(error).split())[:200]})"
