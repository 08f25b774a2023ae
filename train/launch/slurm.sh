#!/usr/bin/env bash
# GPUs under SLURM, a process a GPU:
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 train/launch/slurm.sh finetune --model ... --output SHARED/run
#
# SLURM sends SIGTERM two minutes before the time is up: the run saves its state, and the requeued job goes on from it.
#SBATCH --job-name=deberta_jax
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -euo pipefail
exec srun --kill-on-bad-exit=1 deberta-jax "$@" --distributed
