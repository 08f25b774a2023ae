"""Recognises directories of other programs that cannot be loaded as they are, and says what to do with them."""

from collections.abc import Callable
from pathlib import Path

from deberta_jax.errors import listed
from deberta_jax.weights import adapters
from deberta_jax.weights.readers import has_standard, weight_files

_OTHER_FORMATS = {
    "tf_model.h5": "TensorFlow's",
    "flax_model.msgpack": "Flax's",
    "model.weights.h5": "Keras's",
    "rust_model.ot": "Rust's",
    "*.onnx": "ONNX's",
    "onnx/*.onnx": "ONNX's",
    "*.gguf": "GGUF's",
}


def explain_directory(directory: Path) -> str | None:
    """Returns one line on why a directory cannot be loaded and what to do; None if it may hold a model."""
    if not directory.is_dir():
        return None
    if _is_gliner(directory):
        return (
            "a GLiNER model, whose head for spans no DeBERTa model has: use the gliner package; or for its encoder "
            "write the encoder_config of gliner_config.json to config.json beside it, and load head 'encoder'"
        )
    if has_standard(directory) or weight_files(directory):
        return None
    return next((said for kind in _KINDS if (said := kind(directory)) is not None), None)


def _is_gliner(directory: Path) -> bool:
    return (directory / "gliner_config.json").is_file() and not (directory / "config.json").is_file()


def _adapter(directory: Path) -> str | None:
    if (directory / adapters.CONFIG).is_file() and not any((directory / name).is_file() for name in adapters.FILES):
        return f"the settings of a peft adapter without its weights; {' or '.join(adapters.FILES)} is missing"
    return None


def _deepspeed(directory: Path) -> str | None:
    if (directory / "zero_to_fp32.py").is_file():
        return (
            "a DeepSpeed checkpoint, whose weights are in pieces: run `python zero_to_fp32.py . OUT` in it, copy "
            "config.json and the tokenizer's files to OUT, and give OUT"
        )
    if any(directory.glob("*_model_states.pt")) or any(directory.glob("global_step*/*_model_states.pt")):
        return (
            "a DeepSpeed checkpoint, whose weights are in pieces: join them with DeepSpeed's zero_to_fp32.py, and give "
            "the result with its config.json"
        )
    return None


def _fsdp(directory: Path) -> str | None:
    for path in (directory, *sorted(path for path in directory.glob("*fsdp*") if path.is_dir())):
        if any(path.glob("*.distcp")):
            return (
                f"a sharded FSDP checkpoint: run `accelerate merge-weights {path} OUT`, copy config.json and the "
                "tokenizer's files to OUT, and give OUT"
            )
    return None


def _trainer_output(directory: Path) -> str | None:
    found = [path for path in directory.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdigit()]
    if not found:
        return None
    names = [path.name for path in sorted(found, key=lambda path: int(path.name[11:]))]
    return f"the output of a trainer, which holds {listed(names)}; give one of them, such as {directory / names[-1]}"


def _parent(directory: Path) -> str | None:
    inner = sorted(p for p in directory.iterdir() if p.is_dir() and (has_standard(p) or weight_files(p)))
    if not inner:
        return None
    return f"no model itself, but there is one in {listed(path.name for path in inner)}; give {inner[0]}"


def _other_format(directory: Path) -> str | None:
    for pattern, whose in _OTHER_FORMATS.items():
        file = next(iter(sorted(directory.glob(pattern))), None)
        if file is not None:
            return (
                f"no weights in a format that is read here: {file.name} is {whose}; save model.safetensors or "
                "pytorch_model.bin"
            )
    return None


_KINDS: tuple[Callable[[Path], str | None], ...] = (
    _adapter,
    _deepspeed,
    _fsdp,
    _trainer_output,
    _parent,
    _other_format,
)
