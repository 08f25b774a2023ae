"""Finds the local directory of a model, and downloads models from the Hugging Face hub and from buckets.

Downloads use ``huggingface_hub``: its cache (``HF_HOME``), ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` apply,
it shows a progress bar, and an interrupted download is resumed.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path

from deberta_jax import storage
from deberta_jax.errors import InputError

TEXT_FILES = ("*.json", "*.txt", "spm.model", "bpe_encoder.bin")

# Only the first of these formats that a repository has is downloaded.
_WEIGHT_FILES = (
    ("model.safetensors", "model-*.safetensors"),
    ("pytorch_model.bin", "pytorch_model-*.bin"),
    ("adapter_model.safetensors",),
    ("adapter_model.bin",),
)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")

_REPO_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")


def split_file(name: str) -> tuple[str, str | None]:
    """Splits a name into a directory or hub id and a file, which is None unless the name includes one.

    ``org/model/weights.bin`` gives ``org/model`` and ``weights.bin``, and ``gs://bucket/model/weights.bin`` likewise.
    """
    if storage.is_remote(name):
        with storage.reaching(name) as remote:
            return (str(remote.parent), remote.name) if remote.is_file() else (name, None)
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
    """Returns the local directory of a model, after downloading it if it is on the hub or in a bucket.

    Args:
      name: a directory, a file in one, a hub id ``org/model``, or ``org/model/file``; or the URL of a directory or a
        file in a bucket, which is copied into the cache of this user.
      revision: branch, tag or commit of a hub id; only a commit always gives the same files.
      files: glob patterns of the files to download; None: config, tokenizer and one format of weights.

    Raises:
      InputError: the name is no directory, and no hub id that can be downloaded.
      RunAgainError: a bucket cannot be reached now.
    """
    where, file = split_file(str(name))
    if storage.is_remote(where):
        return storage.local_copy(where, lambda names: _chosen(names, files, file))
    if where and Path(where).expanduser().is_dir():
        return Path(where).expanduser()
    if not _REPO_ID.fullmatch(where):
        raise InputError(f"{name}: no such directory; give a model directory or a hub id such as org/model")
    import huggingface_hub  # imported here because it is slow to import

    try:
        wanted = list(files) if files is not None else _patterns(where, revision, file)
        return Path(huggingface_hub.snapshot_download(where, revision=revision, allow_patterns=wanted))
    except Exception as error:  # of the client, its transport or the file system
        raise InputError(f"{name}: {_why(where, revision, error)}") from None


def _chosen(names: Sequence[str], files: Sequence[str] | None, file: str | None) -> list[str]:
    """Returns the files of a directory in a bucket to copy: as those of a hub id, or all weights of other names.

    Checkpoints and states below the directory are left: they are read from the bucket itself.
    """
    own = [name for name in names if not name.startswith(("params/", "state/"))]
    if files is not None:
        return _matching(own, [*TEXT_FILES, *files])  # one copy for all that reads text alone
    if file is not None:
        return _matching(own, [*TEXT_FILES, file])
    for patterns in _WEIGHT_FILES:
        if _matching([name for name in own if "/" not in name], patterns):
            return _matching(own, [*TEXT_FILES, *patterns])
    return _matching(own, [*TEXT_FILES, *(f"*{suffix}" for suffix in WEIGHT_SUFFIXES)])


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Returns the names that match any pattern, in which ``*`` matches ``/`` too."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _patterns(repo: str, revision: str | None, file: str | None) -> list[str]:
    """Returns the patterns of the files to download: config, tokenizer, and one file or format of weights."""
    from huggingface_hub import HfApi, errors

    if file is not None:
        return [*TEXT_FILES, file]
    try:
        present = [sibling.rfilename for sibling in HfApi().model_info(repo, revision=revision).siblings or ()]
    except errors.HfHubHTTPError:
        raise
    except Exception:  # offline: the download then uses the cache, or fails with a clear error
        return [*TEXT_FILES, *(pattern for patterns in _WEIGHT_FILES for pattern in patterns)]
    for patterns in _WEIGHT_FILES:
        if any(fnmatch(found, pattern) for found in present for pattern in patterns):
            return [*TEXT_FILES, *patterns]
    raise InputError(f"{repo}: the repository has no weights (model.safetensors or pytorch_model.bin)")


def _why(repo: str, revision: str | None, error: Exception) -> str:
    """Returns the reason of a failed download, and what to do."""
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
