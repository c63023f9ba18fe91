#!/usr/bin/env bash
# stop.sh [--dry-run] [SETTINGS]: ends the command on all hosts by SIGTERM, so that it saves; the TPU stays, and costs.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
arguments "$WHERE TPU_TYPE" "$WHAT" -- "$@"
no_more
slice_size
all_hosts stop 60
