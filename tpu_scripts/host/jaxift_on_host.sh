#!/usr/bin/env bash
# What happens on a host of the TPU: install, start, status, stop, log, follow, whole. setup.sh copies it there, and the
# others run it by ssh. Each verb but the last three says one line `jaxift-host NAME STATE`; a second time changes nothing.
set -euo pipefail
cd # $HOME
readonly at=$HOME/jaxift
readonly venv=$at/venv archive=$HOME/jaxift_source.tar.gz
me=$(hostname)
[[ -d $at/run ]] || mkdir -p "$at/run"

say() { printf 'jaxift-host %s %s\n' "$me" "$*"; }
running() { ! flock --nonblock "$at/run/lock" true; } # the command holds the lock for as long as it lives

install() { # PYTHON: the archive's jaxift into an environment of its own
  local python=$1 stamp uv
  stamp="$python $(sha256sum <"$archive")"
  if [[ -f $at/installed && $(<"$at/installed") == "$stamp" ]]; then say "installed before" && return; fi
  if running; then say "busy: a command runs; stop it before installing something else" && exit 1; fi
  rm -rf "$at/installed" "$at/src" "$venv"
  mkdir -p "$at/src"
  tar -xzf "$archive" -C "$at/src"
  # the images' own Python is older than 3.11; uv brings one
  uv=$(command -v uv || true)
  if [[ -z $uv ]]; then
    python3 -m pip install --quiet --user uv
    uv=$HOME/.local/bin/uv
  fi
  "$uv" venv --quiet --python "$python" "$venv"
  "$uv" pip install --quiet --python "$venv/bin/python" "$at/src[tpu,gcs]"
  printf %s "$stamp" >"$at/installed"
  say installed
}

start() { # [--env NAME=VALUE]... [--secret NAME=ID]... [--project ID] -- ARG...: jaxift ARG..., apart from this ssh
  [[ -x $venv/bin/jaxift ]] || { say "not set up: run setup.sh" && exit 1; }
  exec 9>"$at/run/lock" # inherited by the command, and thereby held
  if ! flock --nonblock 9; then
    if [[ $(printf '%q ' "$@") == "$(<"$at/run/command")" ]]; then say running && return; fi
    say "busy with another command: $(<"$at/run/command"); stop it first" && exit 1
  fi
  rm -f "$at/run/exit"
  printf '%q ' "$@" >"$at/run/command"
  setsid nohup bash "$HOME/jaxift_on_host.sh" command "$@" </dev/null >>"$at/run/log" 2>&1 &
  echo $! >"$at/run/pid"
  say started
}

end() { printf '%s' "$1" >"$at/run/exit.new" && mv "$at/run/exit.new" "$at/run/exit"; }

command_line() { # the arguments of start, in a session of its own; leaves the exit code behind
  local project=() name value code=0
  trap : HUP INT TERM # jaxift hears the signal too, and ends in order; its exit code is still to be written
  while [[ $1 != -- ]]; do
    name=${2%%=*} value=${2#*=}
    case $1 in
      --project) project=("--project=$2") ;;
      --env) export "$name=$value" ;;
      --secret)
        # a secret is in the environment alone: in no argument and no file
        value=$(gcloud secrets versions access latest "--secret=$value" "${project[@]}") ||
          { echo "jaxift: error: secret ${2#*=} cannot be read; grant roles/secretmanager.secretAccessor" && end 2 && exit 2; }
        export "$name=$value" ;;
    esac
    shift 2
  done
  shift
  printf '\n== %s jaxift %s\n' "$(date -u +%FT%TZ)" "$*"
  cd "$at/src"
  "$venv/bin/jaxift" "$@" || code=$?
  printf '== %s exit code %d\n' "$(date -u +%FT%TZ)" "$code"
  end "$code"
}

status() {
  if running; then say running
  elif [[ -f $at/run/exit ]]; then say "exit $(<"$at/run/exit")"
  elif [[ -f $at/run/command ]]; then say "exit 137" # ended without a word: killed, or the host restarted
  else say idle; fi
}

stop() { # SIGTERM to the whole session, which jaxift answers by saving; SIGKILL where it does not end
  if running; then
    kill -TERM -- "-$(<"$at/run/pid")" 2>/dev/null || true
    flock --timeout "$1" "$at/run/lock" true || kill -KILL -- "-$(<"$at/run/pid")" 2>/dev/null || true
    flock --timeout 10 "$at/run/lock" true || { say "busy: cannot be stopped" && exit 1; }
  fi
  status
}

[[ -f $at/run/log ]] || touch "$at/run/log"
case ${1:-} in
  install | start | status | stop) "$@" ;;
  command) shift && command_line "$@" ;;
  log) tail -n "$2" "$at/run/log" | sed "s/^/[$me] /" ;;
  follow) tail -n "$2" -F "$at/run/log" | sed -u "s/^/[$me] /" ;;
  whole) cat "$at/run/log" ;;
  *) echo "jaxift_on_host.sh: error: ${1:-nothing} is no verb" >&2 && exit 2 ;;
esac
