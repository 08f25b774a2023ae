#!/usr/bin/env bash
# One run on TPU slices of a GKE cluster, with xpk:
#
#   CLUSTER=mine IMAGE=REGISTRY/deberta-jax train/launch/xpk.sh mnli v5litepod-16 \
#     finetune --config configs/mnli.py:v3-large --data-dir gs://BUCKET/MNLI --output gs://BUCKET/mnli --mesh-fsdp 4
#
# mnli is the name of the workload. IMAGE is what train/launch/Dockerfile builds. Set SLICES for several slices, PROJECT
# and ZONE where gcloud has no defaults, ENV_FILE for a file with lines of NAME=value: no token is on a command line.
# xpk starts the workload again, up to RESTARTS times (20), where it ends with 42 or 127 to 255, and here with 1 too.
set -euo pipefail
if [ $# -lt 3 ] || [ -z "${CLUSTER:-}" ] || [ -z "${IMAGE:-}" ]; then
  sed -n '2,9p' "$0" >&2
  exit 2
fi
workload=$1 type=$2
shift 2
if [ -n "${ENV_FILE:-}" ] && [ ! -r "$ENV_FILE" ]; then
  echo "$0: ENV_FILE $ENV_FILE: cannot be read" >&2
  exit 2
fi
# exec: xpk sends SIGTERM to the shell that begins with this command.
printf -v command '%q ' exec deberta-jax "$@" --distributed
exec xpk workload create \
  --cluster "$CLUSTER" ${PROJECT:+--project "$PROJECT"} ${ZONE:+--zone "$ZONE"} \
  --workload "$workload" --tpu-type "$type" --num-slices "${SLICES:-1}" \
  --docker-image "$IMAGE" ${ENV_FILE:+--env-file "$ENV_FILE"} \
  --max-restarts "${RESTARTS:-20}" --restart-on-exit-codes 1 --termination-grace-period-seconds 120 \
  --command "${command% }"
