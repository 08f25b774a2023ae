"""Finds and opens files of weights. The format is recognised by the content, never by the file's name."""

from fnmatch import fnmatchcase
from pathlib import Path

from deberta_jax import storage
from deberta_jax.errors import InputError, brief, listed
from deberta_jax.hub import WEIGHT_SUFFIXES
from deberta_jax.weights.safetensors_file import read_safetensors
from deberta_jax.weights.source import Checkpoint, Tensor, check_count
from deberta_jax.weights.torch_file import read_legacy, read_zip

STANDARD = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
GENERATOR = ("pytorch_model.generator.bin", "model.generator.safetensors")
_LONGEST_FILE_NAME = 255

# Files with these suffixes that trainers and other programs write beside a model.
_NO_WEIGHTS = (
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "random_states*",
    "sampler*",
    "openvino_model*",
    "adapter_model.*",
    "*_states.pt",
    "bpe_encoder.bin",
)


def has_standard(directory: storage.AnyPath) -> bool:
    """Returns whether a directory has weights under a standard name."""
    return any((directory / name).is_file() for name in STANDARD)


def weight_files(directory: Path) -> list[Path]:
    """Returns the files of a directory whose suffix is one of files of weights, except known other files."""
    files = (file for file in directory.iterdir() if file.suffix in WEIGHT_SUFFIXES and file.is_file())
    return sorted(file for file in files if not any(fnmatchcase(file.name, pattern) for pattern in _NO_WEIGHTS))


def find_weights(directory: Path) -> Path:
    """Returns the file of weights of a model directory: one with a standard name, or the only candidate.

    Raises:
      InputError: there is no such file, or there are several and none has a standard name.
    """
    for name in STANDARD:
        if (directory / name).is_file():
            return directory / name
    candidates = weight_files(directory)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = listed(f.name for f in candidates)
        raise InputError(f"{directory}: several files of weights ({names}); name one of them")
    raise InputError(f"{directory}: no weights; expected one of {', '.join(STANDARD)}")


def read_weights(path: Path) -> Checkpoint:
    """Opens one file of weights, or all shards of an index. Reads only headers.

    Raises:
      InputError: the format is unknown, the file is damaged, or its pickle is refused.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    try:
        start = storage.read_range(path, 0, 16)  # refuses what is no regular file
    except OSError as error:
        raise InputError(storage.explain(error)) from None
    # This check comes first: the length of a safetensors header may begin with the bytes of any other format.
    if start[8:9] == b"{":
        return read_safetensors(path)
    if start.startswith(b"PK\x03\x04"):
        return read_zip(path)
    if start.startswith(b"\x80"):
        return read_legacy(path)
    if start.startswith(b"\x89HDF\r\n"):
        raise InputError(
            f"{path}: TensorFlow's HDF5 weights cannot be read; use model.safetensors or pytorch_model.bin"
        )
    if start.startswith(b"version https:"):
        raise InputError(f"{path}: a git-lfs pointer, not the weights; run `git lfs pull`")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    raise InputError(f"{path}: neither safetensors nor a PyTorch file, or damaged")


def _read_shards(path: Path) -> Checkpoint:
    """Opens all shards that an index names. Raises InputError if they do not agree with it."""
    weight_map = storage.read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{path}: damaged: an index is a JSON object with a weight_map of names to files")
    check_count(path, len(weight_map))
    expected_in: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        expected_in.setdefault(file, set()).add(tensor)
    tensors: dict[str, Tensor] = {}
    files = []
    for name, expected in sorted(expected_in.items()):
        file = path.parent / name
        plain = name == Path(name).name and name.isprintable() and len(name) <= _LONGEST_FILE_NAME
        if not plain or name in ("", ".", "..") or "\\" in name:
            raise InputError(f"{path}: shard {brief(name)!r} must be a plain file name beside the index")
        if name.endswith(".index.json") or not file.is_file():
            raise InputError(f"{path}: shard {brief(name)} is missing; download it, or remove the index")
        shard = read_weights(file)
        if expected != set(shard.tensors):
            odd = listed(sorted(expected ^ set(shard.tensors)), 5)
            raise InputError(f"{path}: the index and shard {brief(name)} disagree about {odd}")
        tensors |= shard.tensors
        files.append(file)
    return Checkpoint(path, tuple(files), tensors)
