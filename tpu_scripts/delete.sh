#!/usr/bin/env bash
# delete.sh [--dry-run] [SETTINGS]: deletes the queued resource and its TPU VMs, and with them all that is not in a bucket.
# Where there is none, that is said and nothing is done.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
arguments "$WHERE" "$WHAT" -- "$@"
no_more
unset JAXIFT_TPU_TYPE # whatever it is, it is to go

now=$(state)
if [[ -z $now && -z $dry_run ]]; then
  say "$JAXIFT_TPU_NAME does not exist (any more)"
  exit 0
fi
queued delete "$JAXIFT_TPU_NAME" --force --quiet
