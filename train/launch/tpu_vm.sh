#!/usr/bin/env bash
# One run on all workers of a TPU slice without Kubernetes, from any machine with gcloud. NAME and ZONE come first:
#
#   train/launch/tpu_vm.sh NAME ZONE create TYPE [OPTION...]   ask for a slice, such as v5litepod-16 --spot
#   train/launch/tpu_vm.sh NAME ZONE wait                      until the slice is there
#   train/launch/tpu_vm.sh NAME ZONE install [EXTRAS]          copy this checkout to the workers and install it (tpu,gcs)
#   train/launch/tpu_vm.sh NAME ZONE secrets FILE              copy lines of NAME=value for the environment of runs
#   train/launch/tpu_vm.sh NAME ZONE run preflight             a command on all workers, while this one waits
#   train/launch/tpu_vm.sh NAME ZONE start finetune ...        a run that goes on when this machine is shut down
#   train/launch/tpu_vm.sh NAME ZONE status | log | stop       of that run, on each worker
#   train/launch/tpu_vm.sh NAME ZONE keep TYPE finetune ...    all of this, again whenever the slice is taken away
#   train/launch/tpu_vm.sh NAME ZONE delete
#
# Workers run retry.sh. `keep` makes a new slice up to RESTARTS times (20), and copies the file SECRETS if that is set; it
# looks every POLL_SECONDS (60). TPU_OPTIONS are more options of `create`, such as --spot. RUNTIME is the version of the
# TPU software.
set -euo pipefail
usage() {
  sed -n '2,16p' "$0" >&2
  exit 2
}
[ $# -ge 3 ] || usage
checkout=$(cd "$(dirname "$0")/../.." && pwd)
name=$1 zone=$2 action=$3
shift 3

queued() { gcloud compute tpus queued-resources "$1" "$name" --zone "$zone" "${@:2}"; }
# NONE: there is no such slice. UNKNOWN: gcloud could not ask, for a reason that it prints.
state() {
  local text
  if text=$(queued describe --format 'value(state.state)' 2>&1); then
    tail -n 1 <<<"$text"
  elif grep -qi 'not[_ ]found' <<<"$text"; then
    echo NONE
  else
    echo "$text" >&2
    echo UNKNOWN
  fi
}
workers() { gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$1"; }
copy() { gcloud compute tpus tpu-vm scp "$1" "$name:deberta_jax/$2" --zone "$zone" --worker=all; }
detach() { workers "cd deberta_jax/source && PATH=\$HOME/deberta_jax/env/bin:\$PATH train/launch/detach.sh $1"; }

create() {
  local type=$1 runtime=${RUNTIME:-}
  case "${runtime:+given}$type" in
    given*) ;;
    v4-*) runtime=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime=v2-alpha-tpuv5 ;;
    v6e-*) runtime=v2-alpha-tpuv6e ;;
    *)
      echo "$0: the TPU software for $type is not known; set RUNTIME" >&2
      exit 2
      ;;
  esac
  # shellcheck disable=SC2086  # TPU_OPTIONS are several words
  queued create --node-id "$name" --accelerator-type "$type" --runtime-version "$runtime" ${TPU_OPTIONS:-} "${@:2}"
}
delete() { queued delete --force --quiet; }
wait_for_slice() {
  local now
  until now=$(state) && [ "$now" = ACTIVE ]; do
    case "$now" in
      FAILED | SUSPENDED | SUSPENDING | NONE | UNKNOWN)
        echo "$0: the slice is not coming ($now)" >&2
        return 42
        ;;
    esac
    sleep "${POLL_SECONDS:-60}"
  done
}
install() {
  local archive
  archive=$(mktemp -d)/source.tar.gz
  tar -czf "$archive" -C "$checkout" --exclude __pycache__ \
    pyproject.toml README.md LICENSE locks configs deberta_jax train
  workers 'mkdir -p deberta_jax/source && chmod 700 deberta_jax'
  copy "$archive" source.tar.gz
  rm -r "$(dirname "$archive")"
  workers "tar -xzf deberta_jax/source.tar.gz -C deberta_jax/source &&
deberta_jax/source/train/launch/install.sh deberta_jax/env ${1:-tpu,gcs}"
}
secrets() {
  if [ ! -r "$1" ]; then
    echo "$0: $1: cannot be read" >&2
    return 2
  fi
  workers 'mkdir -p deberta_jax && chmod 700 deberta_jax' # before the file: nobody else can read it at any time
  copy "$1" secrets.env
}
quoted() { printf '%q ' "$@"; }
start() { detach "start $(quoted deberta-jax "$@" --distributed)"; }

# Returns the exit code of the run; 42 where the slice was taken away, 130 where somebody has stopped the run.
follow() {
  local found
  while [ "$(state)" = ACTIVE ]; do
    if found=$(detach status) && ! grep -q running <<<"$found"; then
      if grep -q stopped <<<"$found"; then return 130; fi
      if grep -q 'lost\|not started' <<<"$found"; then return 42; fi
      return "$(sed -n 's/.*ended //p' <<<"$found" | sort -n | tail -n 1)"
    fi
    sleep "${POLL_SECONDS:-60}"
  done
  return 42
}
prepare() {
  wait_for_slice
  install
  if [ -n "${SECRETS:-}" ]; then secrets "$SECRETS"; fi
  start "$@"
}
keep() {
  local type=$1 code=42 attempt found
  shift
  for ((attempt = 0; attempt <= ${RESTARTS:-20}; attempt++)); do
    case "$(state)" in
      FAILED | SUSPENDED | SUSPENDING) delete && create "$type" ;;
      NONE) create "$type" ;;
      UNKNOWN)
        sleep "${POLL_SECONDS:-60}"
        continue
        ;;
    esac
    code=0
    found=$(detach status 2>/dev/null || true)
    if ! grep -q running <<<"$found"; then
      # In a process of its own: here bash would not stop at the first command that fails.
      "$0" "$name" "$zone" prepare "$@" || code=$?
    fi
    if [ "$code" = 0 ]; then follow || code=$?; fi
    case "$code" in 0 | 2 | 130) break ;; esac
    echo "$0: attempt $attempt ended with code $code" >&2
  done
  return "$code"
}

case "$action" in
  create | secrets) [ $# -ge 1 ] || usage; "$action" "$@" ;;
  start | run) [ $# -ge 1 ] || usage
    if [ "$action" = start ]; then start "$@"; else
      workers "cd deberta_jax/source && ../env/bin/$(quoted deberta-jax "$@" --distributed)"
    fi ;;
  keep) [ $# -ge 2 ] || usage; keep "$@" ;;
  prepare) prepare "$@" ;; # a part of keep
  wait) wait_for_slice ;;
  install) install "$@" ;;
  status | log | stop) detach "$action" ;;
  delete) delete ;;
  *) usage ;;
esac
