#!/usr/bin/env bash
# status.sh [--dry-run] [SETTINGS]: the state of the queued resource, and of the command on every host: running, or its
# exit code (0 done, 2 refused input, 3 lost a host or stalled, 143 SIGTERM; after 3 and 143 resume.sh goes on).
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
arguments "$WHERE TPU_TYPE" "$WHAT" -- "$@"
no_more
slice_size

now=$(state)
[[ -n $dry_run ]] || echo "$JAXIFT_TPU_NAME ${now:-does not exist}"
[[ -z $dry_run && $now != ACTIVE ]] || all_hosts status
