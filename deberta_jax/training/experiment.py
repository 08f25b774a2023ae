"""Defines experiments: frozen dataclasses that describe a run.

They are saved with the run. The command line sets each field with an option, and shows the docstrings below as help.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from deberta_jax.data.documents import CorpusOptions
from deberta_jax.data.files import matching_files
from deberta_jax.data.hub_datasets import digest
from deberta_jax.errors import InputError, brief, shown
from deberta_jax.models import Runtime
from deberta_jax.ops.quantized_matrix import check_scheme
from deberta_jax.tasks import TaskOptions
from deberta_jax.training.distillation_options import Distillation
from deberta_jax.training.experiment_checks import check_common
from deberta_jax.training.process_options import ProcessOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """Configures AdamW, its learning rate schedule, and the parameters that it leaves unchanged."""

    learning_rate: float = 2e-5
    """Highest learning rate, reached at the end of the warm-up."""
    warmup: float | int = 0.1
    """Length of the warm-up: a fraction of all steps if below 1, else a number of steps."""
    schedule: Literal["linear", "cosine", "constant", "original"] = "linear"
    """Learning rate after the warm-up: falls linearly or as a cosine to 0 at the last step, or stays constant.
    ``original`` is Microsoft's linear schedule, whose learning rate jumps down at the end of the warm-up."""
    weight_decay: float = 0.01
    """Weight decay of all parameters except biases and LayerNorms."""
    beta1: float = 0.9
    """Decay rate of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay rate of Adam's mean of squared gradients."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of Adam's two means in memory and in saved states. They are computed in float32; bfloat16 rounds them at
    random, so that changes below its precision add up as they should."""
    epsilon: float = 1e-6
    """Constant added to the denominator of Adam's update."""
    bias_correction: bool = True
    """Correct the bias of Adam's means in the first steps; --no-bias-correction omits it, as Microsoft's code does."""
    clip_norm: float = 1.0
    """Global norm to which larger gradients are scaled down."""
    layer_decay: float = 1.0
    """Factor by which the learning rate of each layer is smaller than that of the layer above; the head has the full
    learning rate."""
    freeze: tuple[str, ...] = ()
    """Patterns of parameters that are not trained, such as deberta/embeddings/*."""
    freeze_layers: int = 0
    """Number of layers that are not trained, counted from the first."""
    ema: float = 0.0
    """Decay of the exponential moving average of the parameters, which is evaluated and saved in their place; 0 turns
    it off."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(ProcessOptions):
    """Configures devices, memory, logging and checkpoints. These options may change when a run is continued."""

    attention: str = "auto"
    """Implementation of attention: auto, reference, xla, blocked (CPU) or pallas (TPU, GPU)."""
    remat: Literal["none", "dots", "full"] = "none"
    """Activations that the backward pass recomputes to save memory: none; all but the results of the projections
    (dots); or all but the inputs of the layers (full)."""
    scan: bool = True
    """Compile one layer and loop over it; --no-scan compiles all layers."""
    accumulate: int = 1
    """Number of parts of a batch that are computed one after the other to save memory."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which devices add up the gradients of kernels and word embeddings, whatever the mesh; bfloat16 halves
    what they exchange, and goes with --dtype bfloat16."""
    log_every: int = 20
    """Number of steps between lines of log.jsonl."""
    checkpoint_every: int = 500
    """Number of steps between saved training states; a state is also saved before every evaluation."""
    checkpoint_minutes: float = 15.0
    """Largest number of minutes between saved training states, looked at when a line is logged; 0 for no limit."""
    keep_state: int = 1
    """Number of saved training states that are kept. With 2, a run goes on from the older if the latest is damaged.
    With 0 none is saved, and a run that is stopped begins again at the first step."""
    resume: Literal["auto", "never"] = "auto"
    """Continue a run that the output directory holds (auto), or refuse to (never)."""
    compile_cache: str = ""
    """Directory, or bucket such as gs://bucket/programs, in which compiled programs are kept for all hosts and later
    runs; ~/.cache/deberta_jax/programs if not given."""
    dry_run: bool = False
    """Describe the run (guesses, shapes, parameters, memory, steps) without training or writing anything."""
    plan: str = ""
    """Log what the run needs, and refuse a run that does not fit: ``here`` (CPU), or a slice such as v5e:4x4, for which
    nothing is run."""
    profile: tuple[int, ...] = ()
    """First and last step of a profile, which is written to DIR/profile."""
    peak_tflops: float = 0.0
    """Peak performance of one device in TFLOP/s, for the utilization (mfu) in the log; 0 looks the device up."""
    tensorboard: bool = False
    """Also write DIR/tensorboard; needs the extra ``tensorboard``."""
    wandb: str = ""
    """Project of Weights & Biases to log to as well; needs the extra ``wandb``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(TaskOptions):
    """Fine-tune a model on a task: classification, regression, tagging, question answering or multiple choice."""

    model: str = ""
    """Model directory, hub id, or the name of a released architecture."""
    train: str = ""
    """File to train on (csv, tsv, json, jsonl, parquet, conll, conllu), a pattern of files, hub:NAME/CONFIG@SPLIT, or a
    folder that save_to_disk of datasets wrote."""
    eval: str = ""
    """File to evaluate on, which selects the best checkpoint."""
    data_dir: str = ""
    """Directory with the files of a named task, instead of --train and --eval."""
    output: str = ""
    """Directory of the run, which becomes the model directory of the best checkpoint."""
    tokenizer: str = ""
    """Directory or hub id of the tokenizer; that of the model if not given."""
    ignore: tuple[str, ...] = ()
    """Patterns of the model's tensors to leave out, such as 'crf.*' for a head that is not known here."""
    base_model: str = ""
    """Base model of --model if that is a peft adapter: a directory or hub id. By default the one that
    adapter_config.json names."""
    from_scratch: bool = False
    """Initialize all parameters; no weights are read."""
    reinit_layers: int = 0
    """Number of layers to reinitialize, counted from the last (Zhang et al. 2021); this can help with few examples."""
    epochs: int = 3
    """Number of passes over the training data."""
    batch_size: int = 32
    """Number of examples in an optimizer step, over all devices."""
    max_length: int = 256
    """Longest input in tokens; longer ones are truncated, and the log gives their number."""
    batching: Literal["packed", "buckets"] = "packed"
    """Several examples in a row without attention between them (packed), or one example in a row, padded to one of four
    lengths (buckets)."""
    row_length: int = 0
    """Number of tokens of a packed row; 0 chooses it from the lengths of the examples."""
    seed: int = 0
    """Seed of initialization, dropout and the order of the examples."""
    seeds: int = 1
    """Number of runs with consecutive seeds, in DIR/seed-N; their median and spread are printed."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters and optimizer state are float32."""
    dropout: float | None = None
    """Dropout rate before the classifier; the model's own if not given."""
    metric: str = ""
    """Metric that selects the best checkpoint; the task's usual one if not given."""
    sift: float = 0.0
    """Weight of SiFT's loss between clean and perturbed inputs; 0 turns it off."""
    sift_sigma: float = 1e-2
    """Standard deviation of SiFT's random initial perturbation."""
    sift_step: float = 1e-4
    """Size of the gradient ascent step by which SiFT increases the effect of the perturbation."""
    lora: int = 0
    """Rank of LoRA's updates, with which the encoder is frozen and the head is trained; 0 trains all parameters."""
    lora_alpha: float = 16.0
    """Scale of LoRA's updates, which are multiplied by alpha / rank."""
    lora_targets: tuple[str, ...] = ("*/query_proj/kernel", "*/value_proj/kernel")
    """Patterns of the kernels that have LoRA's updates."""
    quantization: str = ""
    """Scheme of the frozen kernels of --lora in memory: int8, int4 or nf4 (QLoRA); in float32 if not given."""
    distillation: Distillation = dataclasses.field(default_factory=Distillation)
    recipe: str = ""
    """Source of these settings, which --dry-run shows. It is not part of the run."""
    published_score: str = ""
    """Score that is published for these settings, which --dry-run shows. It is not part of the run."""
    optimization: Optimization = dataclasses.field(default_factory=Optimization)
    runtime: RunOptions = dataclasses.field(default_factory=RunOptions)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        check_common(self)
        if len(self.text) > 2:
            raise InputError(f"--text: give one column, or two for a pair, not {len(self.text)}")
        for name in ("epochs", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.seed + self.seeds > 2**63:
            raise InputError(f"--seeds {self.seeds}: the last seed would be above 2**63 - 1; lower --seed or --seeds")
        self.distillation.check(sift=self.sift > 0, from_scratch=self.from_scratch)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"--dropout {self.dropout}: a rate lies in [0, 1)")
        for name in ("sift", "sift_sigma", "sift_step", "lora", "row_length", "doc_stride", "reinit_layers"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be below 0")
        if self.reinit_layers and self.from_scratch:
            raise InputError("--reinit-layers: with --from-scratch all layers are initialized anyway")
        if self.reinit_layers and self.lora:
            raise InputError("--reinit-layers: with --lora reinitialized layers would never be trained; leave one out")
        if self.quantization:
            check_scheme(self.quantization)
        if self.quantization and (not self.lora or self.from_scratch):
            raise InputError("--quantization: is for the frozen weights of a trained model; give --lora, such as 8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Holds the options that both kinds of pre-training have."""

    model: str = ""
    """Model directory, hub id, or the name of a released architecture."""
    tokenizer: str = ""
    """Directory or hub id of the tokenizer; that of the model if not given."""
    train: tuple[str, ...] = ()
    """Text to train on: files with one document or paragraph on each line, or a directory that ``prepare`` made."""
    eval: str = ""
    """Text to evaluate on, which selects the best checkpoint."""
    output: str = ""
    """Directory of the run."""
    ignore: tuple[str, ...] = ()
    """Patterns of tensors to leave out of the files of weights, such as 'crf.*' for a head that is not known here."""
    base_model: str = ""
    """Base model of --model if that is a peft adapter: a directory or hub id. By default the one that
    adapter_config.json names."""
    from_scratch: bool = False
    """Initialize all parameters; no weights are read."""
    steps: int = 1000
    """Number of optimizer steps."""
    batch_size: int = 32
    """Number of rows of --max-length tokens in an optimizer step, over all devices."""
    max_length: int = 128
    """Number of tokens of a row."""
    seed: int = 0
    """Seed of initialization, dropout, masking and the order of the rows."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters and optimizer state are float32."""
    source: CorpusOptions = dataclasses.field(default_factory=CorpusOptions)
    layout: Literal["packed", "contiguous"] = "packed"
    """Documents packed in rows without attention between them (packed), or one stream of tokens that is cut into rows
    (contiguous)."""
    mask_share: float = 0.15
    """Fraction of a row's tokens that are predicted."""
    mask_unit: Literal["token", "word"] = "token"
    """Unit of masking: single tokens, or all tokens of a word together."""
    longest_span: int = 1
    """Largest number of consecutive units that are masked together; a span of n units is chosen with probability
    proportional to 1/n."""
    skip_tail: bool = False
    """Mask as Microsoft's code does, which almost never masks the last tenth of a row."""
    eval_every: int = 500
    """Number of steps between evaluations."""
    optimization: Optimization = dataclasses.field(default_factory=lambda: Optimization(learning_rate=1e-3))
    runtime: RunOptions = dataclasses.field(default_factory=RunOptions)

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        check_common(self)
        if not 0 < self.mask_share < 1:
            raise InputError(f"--mask-share {self.mask_share}: a probability lies between 0 and 1")
        for name in ("steps", "eval_every", "longest_span"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least 1")
        if self.longest_span > self.max_length:
            raise InputError(f"--longest-span {self.longest_span}: must be at most --max-length {self.max_length}")
        if self.optimization.layer_decay != 1.0 or self.optimization.freeze_layers:
            raise InputError("--layer-decay and --freeze-layers: are for fine-tuning")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainMLM(Pretraining):
    """Pre-train an encoder by masked language modelling. DIR becomes the model directory of the best checkpoint."""

    head: Literal["model", "mask-decoder", "plain"] = "model"
    """Head that predicts the tokens: the enhanced mask decoder, as the released models have it (mask-decoder), a head
    on the last layer (plain), or the one that the model's config names (model)."""
    shown: Literal["80-10-10", "mask"] = "80-10-10"
    """Input token of a target: [MASK], a random token or the token itself with probabilities of 80, 10 and 10 %; or
    always [MASK]."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainRTD(Pretraining):
    """Pre-train by replaced-token detection: a generator fills masks, and a discriminator finds the replaced tokens.

    DIR/generator and DIR/discriminator become model directories. --model is the discriminator.
    """

    generator: str = ""
    """Model directory, hub id or file of the generator's weights; not with --from-scratch."""
    generator_layers: int = 0
    """Number of layers of a generator from scratch; 0 for half as many as the discriminator has."""
    sharing: Literal["gdes", "es", "none"] = "gdes"
    """Embeddings of the discriminator: those of the generator without gradient plus a trained difference (gdes), those
    of the generator with gradients from both losses (es), or separate ones (none)."""
    update: Literal["decoupled", "joint"] = "decoupled"
    """Update generator and discriminator one after the other with separate optimizers (decoupled), or both with one
    optimizer on the sum of their losses (joint)."""
    discriminator_weight: float = 50.0
    """Weight of the discriminator's loss."""
    discriminator_learning_rate: float = 0.0
    """Highest learning rate of the discriminator's optimizer; 0 for that of the generator."""

    def check(self) -> None:
        """Raises InputError for the first value that cannot be used."""
        super().check()
        for name in ("generator_layers", "discriminator_learning_rate"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: must not be below 0")
        if self.generator_layers > _MOST_LAYERS:
            raise InputError(f"--generator-layers {self.generator_layers}: must be at most {_MOST_LAYERS}")
        if self.discriminator_weight <= 0:
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


Experiment = Finetune | PretrainMLM | PretrainRTD

# Fields that records of older runs lack, those of a group after a dot. Records omit them at their defaults, so that
# older runs can be continued.
_ADDED = {
    "optimization.moment_dtype": "float32",
    "quantization": "",
    "delimiter": "",
    "skip_unlabelled": False,
    "ignore": (),
    "base_model": "",
    "distillation": dataclasses.asdict(Distillation()),
}

_MOST_LAYERS = 1000


def require(experiment: Any, *names: str) -> None:
    """Raises InputError if one of these fields is not given, or a value cannot be used."""
    for name in names:
        if not getattr(experiment, name):
            raise InputError(f"--{name.replace('_', '-')} is missing; see --help")
    experiment.check()


def compute_dtype(name: str) -> Any:
    """Returns the JAX dtype with this name."""
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[name]


def model_runtime(experiment: Any) -> Runtime:
    """Returns the runtime choices of an experiment's models."""
    r = experiment.runtime
    return Runtime(
        compute_dtype(experiment.dtype),
        attention=r.attention,
        remat=r.remat,
        scan=r.scan,
        gradient_dtype=compute_dtype(r.gradient_dtype),
    )


def run_record(
    experiment: Finetune | Pretraining, files: dict[str, str], known: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Returns the record of a run as JSON: the experiment, and the digest of each data file.

    Two experiments describe the same run if their records differ only in ``runtime``.

    Args:
      files: paths or patterns of the data files.
      known: digests of files that have been read before, by path.
    """
    fields = dataclasses.asdict(experiment)
    # Where a run is, how many others there are, and where its settings come from are not part of the run.
    for name in ("output", "seeds", "recipe", "published_score"):
        fields.pop(name, None)
    for name, default in _ADDED.items():
        group, _, last = name.rpartition(".")
        holder = fields[group] if group else fields
        if last in holder and holder[last] == default:
            del holder[last]
    runtime = fields.pop("runtime")
    paths = sorted({path for pattern in files.values() for path in matching_files(pattern)})
    digests = {path: (known or {}).get(path) or digest(path) for path in paths}
    record = {"job": type(experiment).__name__, "experiment": fields, "data": digests, "runtime": runtime}
    return json.loads(json.dumps(record))  # tuples become lists, as they will be when read back


def fingerprint(record: dict[str, Any]) -> str:
    """Returns a hash that is equal for two records of the same run."""
    same = {name: record[name] for name in ("job", "experiment", "data")}
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:16]


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Describes the first difference between two records; returns None if they describe the same run."""
    if ours["job"] != theirs.get("job"):
        return f"it is a {brief(theirs.get('job'))} run"
    for section in ("experiment", "data"):
        mine, other = flat_settings(ours[section]), flat_settings(theirs.get(section, {}))
        for name in (*mine, *(name for name in other if name not in mine)):
            if mine.get(name) != other.get(name):
                if section == "data":
                    return f"the data file {brief(name, 300)} has changed"
                return f"its {brief(name)} is {shown(other.get(name))}, now it is {shown(mine.get(name))}"
    return None


def flat_settings(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings of a record by their dotted names."""
    out = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            out |= flat_settings(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
