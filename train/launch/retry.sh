#!/usr/bin/env bash
# Runs a command again until it is done or somebody has to change something, which its exit code says:
#
#   train/launch/retry.sh deberta-jax finetune --config configs/mnli.py --output SHARED/run --distributed
#
# 0: done. 2: somebody has to change something. 42, and 128 and above: again, up to RESTARTS times (20),
# RESTART_SECONDS apart (60). 1, a failure that nobody foresaw: again, up to 3 of these times. Other codes end it.
# SIGTERM and SIGINT are sent on as SIGTERM; the command saves its state and ends, and is not run again.
set -uo pipefail
if [ $# -lt 1 ]; then
  sed -n '2,8p' "$0" >&2
  exit 2
fi
stopped='' child=''
stop() {
  stopped=1
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap stop TERM INT
# A signal ends `wait` early; the program may need minutes more.
finish() {
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do
    wait "$child"
    code=$?
  done
}
unforeseen=0
for ((attempt = 1; ; attempt++)); do
  "$@" &
  child=$!
  [ -z "$stopped" ] || stop
  finish
  [ "$code" != 1 ] || unforeseen=$((unforeseen + 1))
  again=''
  if [ "$code" = 42 ] || [ "$code" -ge 128 ] || { [ "$code" = 1 ] && [ "$unforeseen" -le 3 ]; }; then again=1; fi
  if [ -n "$stopped" ] || [ -z "$again" ] || [ "$attempt" -gt "${RESTARTS:-20}" ]; then
    exit "$code"
  fi
  echo "$0: attempt $attempt ended with code $code; the next one follows in ${RESTART_SECONDS:-60} s" >&2
  sleep "${RESTART_SECONDS:-60}" &
  child=$!
  wait "$child"
  if [ -n "$stopped" ]; then
    exit "$code"
  fi
done
