"""What a run is, as frozen dataclasses: saved with the run, overridable one by one on the command line."""

import dataclasses
import hashlib
import json
from typing import Any, Literal

import jax.numpy as jnp

from deberta_jax.data.documents import CorpusOptions
from deberta_jax.data.files import matching
from deberta_jax.data.hub_datasets import digest
from deberta_jax.errors import InputError
from deberta_jax.models import Runtime
from deberta_jax.tasks import TaskOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """AdamW with warm-up and decay. Biases and LayerNorm weights are not decayed."""

    learning_rate: float = 2e-5
    """Peak, reached at the end of the warm-up."""
    warmup: float | int = 0.1
    """Share of all steps if below 1, else a number of steps."""
    schedule: Literal["linear", "cosine", "constant", "original"] = "linear"
    """After the warm-up: linearly or by a cosine to 0 at the last step, or level. ``original``: Microsoft's linear one,
    which drops by the warm-up's share at its end."""
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-6
    bias_correction: bool = True
    """False: Adam as Microsoft's code has it."""
    clip_norm: float = 1.0
    """Largest global norm of a gradient."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one below; the head has the full rate."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters that stay as they are, such as deberta/embeddings/*."""
    freeze_layers: int = 0
    """So many of the lowest layers stay as they are."""
    ema: float = 0.0
    """Decay of a running mean of the parameters, which is then evaluated and saved; 0: none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is computed. It may change when a run is continued: what is computed does not depend on it."""

    mesh_data: int = -1
    """Devices along the mesh axis ``data``; -1: all that the other axes leave."""
    mesh_fsdp: int = 1
    """Devices that share the parameters; each also has its part of the batch."""
    mesh_tensor: int = 1
    """Devices that share heads, feed-forward and vocabulary."""
    attention: str = "auto"
    remat: Literal["none", "dots", "full"] = "none"
    scan: bool = True
    accumulate: int = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    log_every: int = 20
    """Steps from one line of log.jsonl to the next."""
    checkpoint_every: int = 500
    """Steps from one saved state to the next; a state is saved after every evaluation too."""
    keep: int = 1
    """Saved states that are kept."""
    resume: Literal["auto", "never"] = "auto"
    """Go on with a run that is there already, or refuse to."""
    distributed: bool = False
    """Several processes, found by JAX itself on TPU pods, SLURM and Kubernetes."""
    coordinator: str = ""
    """Address host:port of process 0, where JAX does not find the processes itself; with --processes and --process."""
    processes: int = 0
    process: int = -1
    heartbeat: int = 40
    """Seconds without a sign of life after which a process is given up, and with it the run."""
    deadline: int = 300
    """Seconds within which every process must have arrived."""
    dry_run: bool = False
    """Only say what the run would be: guesses, shapes, parameters, memory, steps; write nothing."""
    plan: str = ""
    """Before the run say what it needs, and refuse if that cannot fit: here (CPUs), or of a slice such as v5e:4x4; then
    nothing is run."""
    profile: tuple[int, ...] = ()
    """First and last step of a profile, written to DIR/profile."""
    peak_tflops: float = 0.0
    """Peak of one device, for the utilisation (mfu) in the log; 0: from a table of known devices."""
    tensorboard: bool = False
    """Write DIR/tensorboard too; needs the extra of that name."""
    wandb: str = ""
    """Log to this project of Weights & Biases too; needs the extra of that name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(TaskOptions):
    """Fine-tune a model on a task: classes, numbers, several labels, tags of words, answers, or multiple choice."""

    model: str = ""
    """Model directory, hub id, or the name of a released architecture."""
    train: str = ""
    """File to train on (csv, tsv, json, jsonl, parquet, conll, conllu), or a pattern of several; hub:NAME/CONFIG@SPLIT,
    or a folder of datasets' save_to_disk."""
    eval: str = ""
    """File to evaluate on; the best checkpoint is chosen by it."""
    data_dir: str = ""
    """Directory of a named task's files, in place of --train and --eval."""
    output: str = ""
    """Directory of the run: becomes the model directory of the best checkpoint."""
    tokenizer: str = ""
    """Directory or hub id of the tokenizer; that of the model if not given."""
    ignore: tuple[str, ...] = ()
    """Patterns of the model's tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str = ""
    """Base of --model where that is a peft adapter: a directory or hub id; what adapter_config.json names if not
    given."""
    from_scratch: bool = False
    """Initialise all parameters; no weights are read."""
    reinit_layers: int = 0
    """Number of layers to reinitialize, counted from the last (Zhang et al. 2021). With few examples that may give a
    better start."""
    epochs: int = 3
    batch_size: int = 32
    """Examples in an optimizer step, over all devices, however they are laid out."""
    max_length: int = 256
    """Longest input in tokens; longer ones lose their ends, and the run says how many."""
    batching: Literal["packed", "buckets"] = "packed"
    """Several examples in a row, each kept to itself; or an example a row, padded to one of four lengths."""
    row_length: int = 0
    """Tokens of a packed row; 0: what suits the examples."""
    seed: int = 0
    seeds: int = 1
    """So many runs, with this seed and those after it, in DIR/seed-N; prints their median and spread."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters and optimizer state are float32."""
    dropout: float | None = None
    """Dropout before the classifier; the model's own if not given."""
    metric: str = ""
    """What chooses the best checkpoint; the task's usual one if not given."""
    sift: float = 0.0
    """Weight of SiFT's loss between clean and perturbed inputs; 0: none."""
    sift_sigma: float = 1e-2
    """Spread of SiFT's first, random perturbation."""
    sift_step: float = 1e-4
    """Length of SiFT's step from there uphill."""
    lora: int = 0
    """Rank of LoRA's updates, the head trained whole; 0: all parameters are trained."""
    lora_alpha: float = 16.0
    """LoRA's updates are scaled by alpha / rank."""
    lora_targets: tuple[str, ...] = ("*/query_proj/kernel", "*/value_proj/kernel")
    """Patterns of the kernels that get them."""
    optimization: Optimization = dataclasses.field(default_factory=Optimization)
    runtime: RunOptions = dataclasses.field(default_factory=RunOptions)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _check_common(self)
        if len(self.text) > 2:
            raise InputError(f"--text: give one column, or two for a pair, not {len(self.text)}")
        for name in ("epochs", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout}: a rate lies in [0, 1)")
        for name in ("sift", "sift_sigma", "sift_step", "lora", "row_length", "doc_stride", "reinit_layers"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be below 0")
        if self.reinit_layers and self.from_scratch:
            raise InputError("--reinit-layers: with --from-scratch all layers are initialized anyway")
        if self.reinit_layers and self.lora:
            raise InputError("--reinit-layers: with --lora reinitialized layers would never be trained; leave one out")
        if self.sift and self.task == "question-answering":
            raise InputError("--sift: is for classes and numbers, not for answers in a context")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What both kinds of pre-training have."""

    model: str = ""
    """Model directory, hub id, or the name of a released architecture."""
    tokenizer: str = ""
    """Directory or hub id of the tokenizer; that of the model if not given."""
    train: tuple[str, ...] = ()
    """Text to train on: files, one document or paragraph a line, or a directory that ``prepare`` made."""
    eval: str = ""
    """Text held out."""
    output: str = ""
    """Directory of the run."""
    ignore: tuple[str, ...] = ()
    """Patterns of the tensors to leave out of the files of weights, such as 'crf.*' for a head that is not known
    here."""
    base_model: str = ""
    """Base of --model where that is a peft adapter: a directory or hub id; what adapter_config.json names if not
    given."""
    from_scratch: bool = False
    """Initialise all parameters; no weights are read."""
    steps: int = 1000
    batch_size: int = 32
    """Rows of ``max_length`` tokens in an optimizer step, over all devices."""
    max_length: int = 128
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters and optimizer state are float32."""
    source: CorpusOptions = dataclasses.field(default_factory=CorpusOptions)
    layout: Literal["packed", "contiguous"] = "packed"
    """Documents packed in rows, each kept to itself; or the text as one stream of tokens, cut into rows."""
    mask_share: float = 0.15
    """Share of a row's tokens that are predicted."""
    mask_unit: Literal["token", "word"] = "token"
    """What is masked whole."""
    longest_span: int = 1
    """Up to so many neighbouring units are masked together, n of them with a weight of 1/n."""
    skip_tail: bool = False
    """Mask as Microsoft's code does, which almost never reaches the last tenth of a row."""
    eval_every: int = 500
    """Steps from one evaluation to the next."""
    optimization: Optimization = dataclasses.field(default_factory=lambda: Optimization(learning_rate=1e-3))
    runtime: RunOptions = dataclasses.field(default_factory=RunOptions)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        _check_common(self)
        if not 0 < self.mask_share < 1:
            raise InputError(f"--mask-share {self.mask_share}: a share lies between 0 and 1")
        for name in ("steps", "eval_every", "longest_span"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.optimization.layer_decay != 1.0 or self.optimization.freeze_layers:
            raise InputError("--layer-decay and --freeze-layers: are for fine-tuning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainMLM(Pretraining):
    """Pre-train an encoder by masked language modelling; DIR becomes the model directory of the best checkpoint."""

    head: Literal["model", "mask-decoder", "plain"] = "model"
    """The enhanced mask decoder, as the released models have it, or the last layer; as the model says if not given."""
    shown: Literal["80-10-10", "mask"] = "80-10-10"
    """What stands in a target's place: [MASK], a random token, itself in 80, 10, 10 % of cases; or always [MASK]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRTD(Pretraining):
    """Pre-train by replaced-token detection: a generator fills masks, a discriminator finds what it replaced.

    DIR/generator and DIR/discriminator become model directories. --model is the discriminator's.
    """

    generator: str = ""
    """Model directory, hub id or file of the generator's weights; not with --from-scratch."""
    generator_layers: int = 0
    """Layers of a generator from scratch; 0: half of the discriminator's."""
    sharing: Literal["gdes", "es", "none"] = "gdes"
    """Embeddings of the discriminator: the generator's, without a gradient to them, plus a difference of its own; the
    generator's, with gradients from both losses; its own."""
    update: Literal["decoupled", "joint"] = "decoupled"
    """The generator first, then the discriminator, each with an optimizer of its own; or both on the sum."""
    discriminator_weight: float = 50.0
    """What the discriminator's loss is multiplied with."""
    discriminator_learning_rate: float = 0.0
    """Peak, of the discriminator's own optimizer; 0: that of the generator."""

    def check(self) -> None:
        super().check()
        for name in ("generator_layers", "discriminator_learning_rate"):
            if not getattr(self, name) >= 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be below 0")
        if not self.discriminator_weight > 0:
            raise InputError(f"--discriminator-weight {self.discriminator_weight}: must be above 0")
        if self.discriminator_learning_rate and self.update == "joint":
            raise InputError("--discriminator-learning-rate: a joint update has one optimizer; use --update decoupled")
        if self.sharing == "es" and self.update == "decoupled":
            raise InputError("--sharing es: both losses train one table, which goes with --update joint alone")
        if self.from_scratch and self.generator:
            raise InputError("--generator: its weights are not read with --from-scratch; leave one of them out")
        if not self.from_scratch and not self.generator:
            raise InputError("--generator is missing: give its weights, or start with --from-scratch")
        if self.generator_layers and not self.from_scratch:
            raise InputError("--generator-layers: goes with --from-scratch; other generators have the layers they have")


Experiment = Finetune | Pretraining

# Fields that records of older runs lack: left out where they have their defaults, so that such runs go on.
_ADDED = {"delimiter": "", "skip_unlabelled": False, "ignore": (), "base_model": ""}


def _check_common(e: Any) -> None:
    if e.batch_size < 1:
        raise InputError(f"--batch-size {e.batch_size}: must be at least 1")
    if e.max_length < 8:
        raise InputError(f"--max-length {e.max_length}: must be at least 8")
    for name in ("ignore", "base_model"):
        if e.from_scratch and getattr(e, name):
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option}: no weights are read with --from-scratch; leave one of them out")
    o, r = e.optimization, e.runtime
    # "not above" rather than "below": NaN is refused as well.
    for name in ("learning_rate", "clip_norm", "epsilon"):
        if not getattr(o, name) > 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(o, name)}: must be above 0")
    for name in ("warmup", "weight_decay", "freeze_layers"):
        if not getattr(o, name) >= 0:
            raise InputError(f"--{name.replace('_', '-')} {getattr(o, name)}: must not be below 0")
    for name in ("beta1", "beta2", "ema"):
        if not 0 <= getattr(o, name) < 1:
            raise InputError(f"--{name} {getattr(o, name)}: must lie in [0, 1)")
    if not 0 < o.layer_decay <= 1:
        raise InputError(f"--layer-decay {o.layer_decay}: must lie in (0, 1]")
    if r.log_every < 1 or r.checkpoint_every < 1:
        raise InputError("--log-every and --checkpoint-every: must be at least 1")
    for name in ("accumulate", "keep", "heartbeat", "deadline"):
        if getattr(r, name) < 1:
            raise InputError(f"--{name} {getattr(r, name)}: must be at least 1")
    if r.profile and not (len(r.profile) == 2 and 0 <= r.profile[0] <= r.profile[1]):
        raise InputError(f"--profile {' '.join(map(str, r.profile))}: give a first and a last step")


def require(experiment: Any, *names: str) -> None:
    """Raises InputError for the first of these fields that is not given, or a value that cannot be used."""
    for name in names:
        if not getattr(experiment, name):
            raise InputError(f"--{name.replace('_', '-')} is missing; see --help")
    experiment.check()


def compute_dtype(name: str) -> Any:
    """Returns the dtype that an experiment calls by this name."""
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


def model_runtime(experiment: Any) -> Runtime:
    """Returns how an experiment's models are computed."""
    r = experiment.runtime
    return Runtime(compute_dtype(experiment.dtype), attention=r.attention, remat=r.remat, scan=r.scan)


def run_record(experiment: Experiment, files: dict[str, str]) -> dict[str, Any]:
    """Returns a run's record as JSON: the experiment, and the SHA-256 of each data file.

    Two experiments are one run if their records are equal but for ``runtime``.

    Args:
      files: paths or patterns of the data files.
    """
    fields = dataclasses.asdict(experiment)
    for name in ("output", "seeds"):  # where a run is, and how many there are beside it
        fields.pop(name, None)
    fields = {name: value for name, value in fields.items() if name not in _ADDED or value != _ADDED[name]}
    runtime = fields.pop("runtime")
    paths = sorted({path for pattern in files.values() for path in matching(pattern)})
    digests = {path: digest(path) for path in paths}
    record = {"job": type(experiment).__name__, "experiment": fields, "data": digests, "runtime": runtime}
    return json.loads(json.dumps(record))  # tuples become lists, as they will be when read back


def fingerprint(record: dict[str, Any]) -> str:
    """Returns a hash of what makes two records those of one run."""
    same = {name: record[name] for name in ("job", "experiment", "data")}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Returns the first thing in which two records differ, in words; None if they are those of one run."""
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
