"""Resolves an experiment: fills in fields that are not given, and finds the files, config and tokenizer it names."""

import dataclasses
from pathlib import Path
from typing import Any

from deberta_jax import hub, storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.stored_tables import TableStore
from deberta_jax.data.table import Table
from deberta_jax.errors import InputError
from deberta_jax.presets import PRESETS
from deberta_jax.tasks import NAMED_TASKS, find_file, read_task, resolve_options, without_unlabelled
from deberta_jax.text import Tokenizer, load_tokenizer
from deberta_jax.text.loading import FILES
from deberta_jax.training.distributed import any_process, start
from deberta_jax.training.experiment import Finetune, Pretraining, require, run_record
from deberta_jax.training.shared_tokens import leaders_first, leads_on_disk
from deberta_jax.weights import load_config, tokenizer_directory


@dataclasses.dataclass(frozen=True)
class ResolvedExperiment:
    """Holds a fine-tuning whose files, task and columns are resolved, its record, and the tables that it reads.

    Attributes:
      experiment: files, task and columns are filled in.
      record: what is saved with the run, as JSON; see ``experiment.run_record``.
      train: the table to train on.
      held_out: the table to evaluate on.
      leads: whether this process writes the caches for those that share its disk.
    """

    experiment: Finetune
    record: dict[str, Any]
    train: Table
    held_out: Table
    leads: bool


def resolve_experiment(experiment: Finetune) -> ResolvedExperiment:
    """Joins the run's processes, reads its tables, and fills in files, task and columns. Guesses are logged.

    A large training table is kept in the cache, and read from there.

    Raises:
      InputError: options, files or columns that cannot be used.
    """
    e = _with_student(_with_files(experiment))
    require(e, "model", "train", "eval", "output")
    start(e.runtime)
    leads, store = leads_on_disk(storage.cache_directory()), TableStore(storage.cache_directory())
    if any_process(store.keeps(e.train)):
        train = leaders_first(leads, lambda: read_task(e.task, [e.train], e.delimiter, store.read))
    else:
        train = read_task(e.task, [e.train], e.delimiter)
    held_out = read_task(e.task, [e.eval], e.delimiter)
    e = resolve_options(e, train)
    record = run_record(e, {"train": e.train, "eval": e.eval}, store.digests)
    names = NAMED_TASKS[e.task].names if e.task in NAMED_TASKS else ()
    train, held_out = (without_unlabelled(e, table, names) for table in (train, held_out))
    return ResolvedExperiment(e, record, train, held_out, leads)


def _with_files(e: Finetune) -> Finetune:
    """Returns the experiment with the files of a named task in ``data_dir``, where they are not given."""
    if not e.data_dir:
        return e
    if e.task not in NAMED_TASKS:
        raise InputError(f"--data-dir: goes with a named --task, one of {', '.join(NAMED_TASKS)}")
    train, held_out = e.train or find_file(e.task, e.data_dir, "train"), e.eval or find_file(e.task, e.data_dir, "dev")
    return dataclasses.replace(e, train=train, eval=held_out)


def _with_student(e: Finetune) -> Finetune:
    """Returns the experiment with the teacher as the model, where only layers for a student of it are given."""
    d = e.distillation
    return dataclasses.replace(e, model=d.teacher) if d.teacher and d.student_layers and not e.model else e


def check_same_tokenizer(option: str, name: str, tokenizer_name: str, tokenizer: Tokenizer) -> None:
    """Checks that a second model's directory has no tokenizer, or the same one as the model of the run.

    Args:
      option, name: the option that names the second model, and its directory or hub id.
      tokenizer_name, tokenizer: those of the run.

    Raises:
      InputError: it has another tokenizer, so that its ids mean other tokens.
    """
    directory = hub.resolve(name, files=hub.TEXT_FILES)
    if not any(all((directory / file).is_file() for file in files) for rule in FILES.values() for files in rule):
        return
    theirs = load_tokenizer(directory)
    if theirs.fingerprint() != tokenizer.fingerprint():
        ours, other = (f"{t.kind}, {t.vocab_size} ids, {t.fingerprint()[:12]}" for t in (tokenizer, theirs))
        what = option.removeprefix("--")
        raise InputError(
            f"{option} {name}: its tokenizer ({other}) is not that of {tokenizer_name} ({ours}); give a {what} and a "
            "model of one tokenizer"
        )


def resolve_config(e: Finetune | Pretraining) -> DebertaConfig:
    """Returns the config of the experiment's model directory, hub id or preset. Reads no weights.

    Raises:
      InputError: ``--model`` names a preset, which has no weights, and ``--from-scratch`` is not given.
    """
    if e.model in PRESETS and not Path(e.model).is_dir():
        if not e.from_scratch:
            raise InputError(
                f"--model {e.model}: is an architecture without weights; give a directory or a hub id such as "
                f"microsoft/{e.model}, or add --from-scratch"
            )
        return PRESETS[e.model]
    return load_config(e.model, base_model=e.base_model or None)


def resolve_tokenizer(e: Finetune | Pretraining) -> Path:
    """Returns the directory of the tokenizer: the one given, else the model's; for an adapter without one, its base's.

    Raises:
      InputError: no such directory or hub id.
    """
    if e.tokenizer:
        return hub.resolve(e.tokenizer, files=hub.TEXT_FILES)
    named = e.model in PRESETS and not Path(e.model).is_dir()
    return tokenizer_directory(f"microsoft/{e.model}" if named else e.model, base_model=e.base_model or None)
