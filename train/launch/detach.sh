#!/usr/bin/env bash
# Runs a command on this machine apart from the shell that starts it, again and again as retry.sh does:
#
#   train/launch/detach.sh start COMMAND...    train/launch/detach.sh status | log | stop
#
# Log, process id and exit code are in DETACH_DIRECTORY (~/deberta_jax/run). The environment of the command also has
# the variables of the file secrets.env beside that directory, if there is one: lines of NAME=value.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
directory=${DETACH_DIRECTORY:-$HOME/deberta_jax/run}
secrets=$(dirname "$directory")/secrets.env
# A process that watches the command writes its end: while it lives and has written nothing, the command runs.
running() { [ -s "$directory/pid" ] && [ ! -e "$directory/code" ] && kill -0 "$(cat "$directory/pid")" 2>/dev/null; }
status() {
  if running; then
    echo running
  elif [ -e "$directory/code" ]; then
    echo "$([ -e "$directory/stopped" ] && echo stopped || echo ended) $(cat "$directory/code")"
  elif [ -e "$directory/pid" ]; then
    echo lost # the machine was started anew
  else
    echo "not started"
  fi
}
case "${1:-}" in
  start)
    shift
    if [ $# -lt 1 ]; then
      echo "$0 start: give a command" >&2
      exit 2
    fi
    if running; then
      echo "$0: a command runs already; stop it first" >&2
      exit 2
    fi
    mkdir -p "$directory"
    rm -f "$directory/code" "$directory/pid" "$directory/command" "$directory/stopped"
    if [ -f "$secrets" ]; then
      while IFS= read -r line || [ -n "$line" ]; do
        case "$line" in '' | '#'*) ;; *=*) export "${line?}" ;; esac
      done <"$secrets"
    fi
    nohup setsid bash -c '
      "$0/retry.sh" "${@:2}" &
      echo $! >"$1/command"
      echo $$ >"$1/pid"
      wait $!
      echo $? >"$1/code.new"
      mv "$1/code.new" "$1/code"
    ' "$here" "$directory" "$@" </dev/null >>"$directory/log" 2>&1 &
    until [ -s "$directory/pid" ]; do sleep 0.1; done
    echo started
    ;;
  status) status ;;
  log) tail -n "${LINES_SHOWN:-50}" "$directory/log" ;;
  stop)
    if running; then
      touch "$directory/stopped"
      kill -TERM "$(cat "$directory/command")"
    fi
    while running; do sleep 0.2; done
    status
    ;;
  *)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
