"""What a run is, as frozen dataclasses: saved with the run, overridable one by one on the command line."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp

from deberta_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW with linear warm-up and decay. Biases and LayerNorm weights are not decayed."""

    learning_rate: float = 2e-5
    """Peak, reached at the end of the warm-up; falls linearly to 0 at the last step."""
    warmup: float | int = 0.1
    """Share of all steps if below 1, else a number of steps."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runtime:
    """How the run is computed: may change when a run is continued, for it does not say what is computed."""

    mesh_data: int = -1
    """Devices along the mesh axis ``data``; -1: all that the other axes leave."""
    mesh_fsdp: int = 1
    """Devices that share the parameters; each also has its part of the batch."""
    mesh_tensor: int = 1
    """Devices that share heads, feed-forward and vocabulary."""
    attention: str = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    scan: bool = True
    log_every: int = 20
    """Steps from one line of log.jsonl to the next."""
    checkpoint_every: int = 500
    """Steps from one saved state to the next; a state is saved after every evaluation too."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune:
    """Fine-tune a sequence classifier (or a regression) on a csv, tsv or jsonl file."""

    model: str = ""
    """Model directory, hub id, or the name of a released architecture."""
    train: str = ""
    """File to train on."""
    eval: str = ""
    """File to evaluate on; the best checkpoint is chosen by it."""
    text: tuple[str, ...] = ("text",)
    """Column of the text, or two columns of a pair."""
    label: str = "label"
    """Column of the label: classes, or numbers for a regression."""
    output: str = ""
    """Directory of the run: becomes the model directory of the best checkpoint."""
    tokenizer: str = ""
    """Directory or hub id of the tokenizer; that of the model if not given."""
    from_scratch: bool = False
    """Initialise all parameters; no weights are read."""
    epochs: int = 3
    batch_size: int = 32
    """Examples in an optimizer step, over all devices."""
    max_length: int = 256
    """Longest input in tokens; longer ones lose their ends, and the run says how many."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters and optimizer state are float32."""
    dropout: float | None = None
    """Dropout before the classifier; the model's own if not given."""
    metric: str = ""
    """What chooses the best checkpoint: accuracy, f1, matthews_correlation, pearson, spearman or loss. If not given:
    accuracy, or pearson for a regression."""
    optimization: Optimization = dataclasses.field(default_factory=Optimization)
    runtime: Runtime = dataclasses.field(default_factory=Runtime)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _check_common(self)
        if not 1 <= len(self.text) <= 2:
            raise InputError(f"--text: give one column, or two for a pair, not {len(self.text)}")
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}: must be at least 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout}: a rate lies in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainMLM:
    """Pre-train an encoder with a masked-LM head on plain text."""

    model: str = ""
    """Directory with config.json and spm.model (and, unless ``from_scratch``, weights), or a hub id."""
    train: tuple[str, ...] = ()
    """Text files, one document or paragraph a line."""
    eval: str = ""
    """Text file held out."""
    output: str = ""
    """Directory of the run: becomes the model directory of the best checkpoint."""
    from_scratch: bool = False
    steps: int = 1000
    batch_size: int = 32
    """Rows of ``max_length`` tokens in an optimizer step, over all devices."""
    max_length: int = 128
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    mask_share: float = 0.15
    """Share of a row's tokens that are predicted."""
    eval_every: int = 500
    """Steps from one evaluation to the next."""
    optimization: Optimization = dataclasses.field(default_factory=lambda: Optimization(learning_rate=1e-3))
    runtime: Runtime = dataclasses.field(default_factory=Runtime)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _check_common(self)
        if not 0 < self.mask_share < 1:
            raise InputError(f"--mask-share {self.mask_share}: a share lies between 0 and 1")
        for name in ("steps", "eval_every"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")


Experiment = Finetune | PretrainMLM


def _check_common(e: Any) -> None:
    if e.batch_size < 1:
        raise InputError(f"--batch-size {e.batch_size}: must be at least 1")
    if e.max_length < 8:
        raise InputError(f"--max-length {e.max_length}: must be at least 8")
    o = e.optimization
    # "not above" rather than "below": NaN is refused as well.
    for name in ("learning_rate", "clip_norm", "epsilon"):
        if not getattr(o, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(o, name)}: must be above 0")
    for name in ("warmup", "weight_decay"):
        if not getattr(o, name) >= 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(o, name)}: must not be below 0")
    for name in ("beta1", "beta2"):
        if not 0 <= getattr(o, name) < 1:
            raise InputError(f"--{name} {getattr(o, name)}: must lie in [0, 1)")
    if e.runtime.log_every < 1 or e.runtime.checkpoint_every < 1:
        raise InputError("--log-every and --checkpoint-every: must be at least 1")


def require(experiment: Any, *names: str) -> None:
    """Raises InputError for the first of these fields that is not given, or a value that cannot be used."""
    for name in names:
        if not getattr(experiment, name):
            raise InputError(f"--{name.replace('_', '-')} is missing; see --help")
    experiment.check()


def compute_dtype(name: str) -> Any:
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


def resolved(experiment: Experiment, files: dict[str, str]) -> dict[str, Any]:
    """The experiment as JSON, with the SHA-256 of each data file: two runs are one if all but ``runtime`` is equal."""
    fields = dataclasses.asdict(experiment)
    fields.pop("output")
    runtime = fields.pop("runtime")
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in sorted(files.values())}
    record = {"job": type(experiment).__name__, "experiment": fields, "data": digests, "runtime": runtime}
    return json.loads(json.dumps(record))  # tuples become lists, as they will be when read back


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """The first thing in which two resolved experiments differ, in words; None if they are one run."""
    if ours["job"] != theirs.get("job"):
        return f"it is a {theirs.get('job')} run"
    for section in ("experiment", "data"):
        mine, other = _flat(ours[section]), _flat(theirs.get(section, {}))
        for name in (*mine, *(name for name in other if name not in mine)):
            if mine.get(name) != other.get(name):
                if section == "data":
                    return f"the data file {name} has changed"
                return f"its {name} is {other.get(name)!r}, now it is {mine.get(name)!r}"
    return None


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= _flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
