"""``deberta-jax predict``: writes a trained model's answers for a file."""

import dataclasses

import jax

from deberta_jax.cli.progress import prediction_bar
from deberta_jax.inference.prediction import PredictOptions, Share, predict
from deberta_jax.training.distributed import start
from deberta_jax.training.experiment import compute_dtype
from deberta_jax.training.process_options import ProcessOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(PredictOptions):
    """Writes a model's answers for a file: one JSON object for each row, in the order of the file.

    Options that are not given are those of the run that trained the model. If the command is killed, the same command
    goes on where it was."""

    processes: int = 1
    """Number of processes that share the work. Each writes its answers to OUTPUT-00000-of-00004 and so on."""
    process: int = 0
    """Index of this process, counted from 0."""
    distributed: bool = False
    """Find both numbers as JAX does on TPU pods, SLURM and Kubernetes."""


def run(args: Args) -> None:
    """Writes the answers, whole or not at all."""
    if args.distributed:
        start(ProcessOptions(distributed=True))
        share = Share(jax.process_index(), jax.process_count())
    else:
        share = Share(args.process, args.processes)
    with prediction_bar(args.input, share) as progress:
        predict(args, dtype=compute_dtype(args.dtype), share=share, progress=progress)
