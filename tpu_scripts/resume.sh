#!/usr/bin/env bash
# resume.sh [--copy FILE]... [--env NAME=VALUE]... [--secret NAME=ID]... [--dry-run] [SETTINGS] -- ARG...: brings everything to
# where `jaxift ARG...` runs, from wherever it is: deletes a queued resource that was preempted or failed, asks for one where
# there is none, waits for it, sets it up and starts the command, which goes on where it stopped. The first start is the same.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
source "$here/lib/command.sh"
arguments "$WHERE TPU_TYPE" "$WHAT PYTHON" -- "$@"
slice_size
command_line

copies=() words=()
for ((index = 0; index < ${#extra[@]}; index += 2)); do
  [[ ${extra[index]} == --copy ]] || fail "$(printf %q "${extra[index]}") is not known; see resume.sh --help"
  copies+=(--copy "${extra[index + 1]}")
done
for value in "${envs[@]}"; do words+=(--env "$value"); done
for value in "${secrets[@]}"; do words+=(--secret "$value"); done
each() { bash "$here/$1" ${dry_run:+"$dry_run"} "${@:2}"; } # settings go by the environment

now=$(state)
case $now in
  SUSPENDED | SUSPENDING | FAILED | DELETING)
    say "$JAXIFT_TPU_NAME is $now: it is deleted and asked for again"
    each delete.sh ;;
esac
each create.sh
wait_until_active
each setup.sh "${copies[@]}"
each run.sh "${words[@]}" -- "${jaxift[@]}"
