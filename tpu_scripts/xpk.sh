#!/usr/bin/env bash
# xpk.sh create|delete [--env NAME=VALUE]... [--dry-run] [SETTINGS] -- ARG...: `jaxift ARG...` as an xpk workload, on a cluster
# that xpk made. Needs --tpu-name, --cluster, --project and --zone, and for create --tpu-type and --image.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/command.sh"
verb=${1:-}
case $verb in
  create) needs="TPU_NAME CLUSTER PROJECT ZONE TPU_TYPE IMAGE" ;;
  delete) needs="TPU_NAME CLUSTER PROJECT ZONE" ;;
  -h | --help) arguments '' '' -- --help ;;
  *) fail "$(printf %q "$verb") is no verb; give create or delete" ;;
esac
arguments "$needs" "TPU_NAME CLUSTER PROJECT ZONE TPU_TYPE IMAGE NODE_COUNT MAX_RESTARTS PRICE_PER_CHIP_HOUR" -- "${@:2}"
workload() { run xpk workload "$verb" "--workload=$JAXIFT_TPU_NAME" "--cluster=$JAXIFT_CLUSTER" "--project=$JAXIFT_PROJECT" "--zone=$JAXIFT_ZONE" "$@"; }

if [[ $verb == delete ]]; then
  no_more
  workload
  exit
fi
slice_size
command_line
no_more
((${#secrets[@]} == 0)) || fail "--secret: xpk passes no Kubernetes secrets on; use gke.sh, or let the image read them"
variables=()
for value in "${envs[@]}"; do variables+=("--env=$value"); done
cost
# xpk starts again after 42 and 127 to 255; 3 is a lost host
workload "--tpu-type=$JAXIFT_TPU_TYPE" "--num-slices=$slices" "--docker-image=$JAXIFT_IMAGE" \
  "--max-restarts=${JAXIFT_MAX_RESTARTS:-100}" --restart-on-exit-codes=3 "${variables[@]}" \
  "--command=$(quoted jaxift "${jaxift[@]}")"
