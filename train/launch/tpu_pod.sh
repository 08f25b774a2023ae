#!/usr/bin/env bash
# One run on all workers of a TPU pod slice, from any machine with gcloud:
#
#   train/launch/tpu_pod.sh NAME ZONE finetune --model microsoft/deberta-v3-large --train gs://... --output SHARED/run
#
# Every worker runs the same command; JAX finds the others itself (--distributed). Run it again after a preemption:
# the run goes on. SHARED is a disk that all workers mount and that outlives them, such as Filestore.
# The package must be installed on the workers:
#   gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command "pip install 'deberta_jax[tpu]'"
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,10p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
printf -v command '%q ' deberta-jax "$@" --distributed
exec gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$command"
