#!/usr/bin/env bash
# run.sh [--env NAME=VALUE]... [--secret NAME=ID]... [--dry-run] [SETTINGS] -- ARG...: `jaxift ARG...` on all hosts at once.
# The command outlives this ssh; its output is in a log on every host (logs.sh), its exit code in status.sh.
# --secret HF_TOKEN=hf-token reads the secret hf-token of Secret Manager on the hosts; its value is in no argument.
# Where it runs on all hosts already, that is said; where only on some, it is stopped there and started on all.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
source "$here/lib/command.sh"
arguments "$WHERE TPU_TYPE" "$WHAT" -- "$@"
slice_size
command_line
no_more

words=(--project "$JAXIFT_PROJECT")
for value in "${envs[@]}"; do words+=(--env "$value"); done
for value in "${secrets[@]}"; do words+=(--secret "$value"); done

all_hosts status
alive=$(grep -c ' running$' <<<"$said" || true)
if ((alive > 0 && alive < $(wc -l <<<"$said"))); then
  say "it runs on some hosts alone: it is stopped there, and started on all"
  all_hosts stop 60
fi
all_hosts start "${words[@]}" -- "${jaxift[@]}"
