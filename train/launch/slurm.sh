#!/usr/bin/env bash
# GPUs under SLURM, a process a GPU:
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 train/launch/slurm.sh finetune --model ... --output SHARED/run
#
# SLURM sends SIGTERM two minutes before the time is up: the run saves its state, and the job, put back into the queue,
# goes on from it. SHARED is a disk that all nodes mount.
#SBATCH --job-name=deberta_jax
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -uo pipefail
srun --kill-on-bad-exit=1 deberta-jax "$@" --distributed
code=$?
# 42: another process is gone, or a disk cannot be reached now. 128 and above: stopped or killed by a signal, as at the
# end of the time. --requeue alone is for nodes that fail; such a job has to ask.
if [ "$code" = 42 ] || [ "$code" -ge 128 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
