#!/usr/bin/env bash
# One run on all workers of a TPU pod slice, from any machine with gcloud:
#
#   train/launch/tpu_pod.sh NAME ZONE finetune --model microsoft/deberta-v3-large --train gs://... --output SHARED/run
#
# Every worker runs the same command; JAX finds the others itself (--distributed). It is run again, up to RESTARTS
# times (20), unless it is done (0) or the user has to change something (2): the run goes on from its last saved state.
# SHARED is a disk that all workers mount and that outlives them, such as Filestore.
# The package must be installed on the workers:
#   gcloud compute tpus tpu-vm ssh NAME --zone ZONE --worker=all --command "pip install 'deberta_jax[tpu]'"
set -euo pipefail
if [ $# -lt 3 ]; then
  sed -n '2,11p' "$0" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
printf -v command '%q ' deberta-jax "$@" --distributed
for attempt in $(seq 0 "${RESTARTS:-20}"); do
  code=0
  gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$command" || code=$?
  if [ "$code" = 0 ] || [ "$code" = 2 ]; then
    break
  fi
  echo "attempt $attempt ended with code $code" >&2
  sleep "${RESTART_SECONDS:-60}"
done
exit "$code"
