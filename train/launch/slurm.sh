#!/usr/bin/env bash
# GPUs under SLURM, a process a GPU:
#
#   sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 train/launch/slurm.sh finetune --model ... --output SHARED/run
#
# SLURM sends SIGTERM two minutes before the time is up: the run saves its state, and the job, put back into the queue,
# goes on from it. SHARED is a disk that all nodes mount. In a container, with `sbatch --export ALL,...`:
#   IMAGE=registry#name:tag    by pyxis and enroot; MOUNTS=/shared:/shared are paths to mount
#   SIF=/shared/deberta.sif    by Apptainer, with MOUNTS too
#SBATCH --job-name=deberta_jax
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
set -uo pipefail
container=() inside=()
if [ -n "${IMAGE:-}" ] && [ -n "${SIF:-}" ]; then
  echo "$0: IMAGE and SIF are both set; give one" >&2
  exit 2
elif [ -n "${IMAGE:-}" ]; then
  container=(--container-image="$IMAGE" ${MOUNTS:+--container-mounts="$MOUNTS"})
elif [ -n "${SIF:-}" ]; then
  inside=(apptainer exec --nv ${MOUNTS:+--bind "$MOUNTS"} "$SIF")
fi
srun --kill-on-bad-exit=1 "${container[@]}" "${inside[@]}" deberta-jax "$@" --distributed
code=$?
# 42: another process is gone, or a disk cannot be reached now. 128 and above: stopped or killed by a signal, as at the
# end of the time. --requeue alone is for nodes that fail; such a job has to ask.
if [ "$code" = 42 ] || [ "$code" -ge 128 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
