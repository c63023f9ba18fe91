#!/usr/bin/env bash
# create.sh [--spot] [--dry-run] [SETTINGS]: asks for a TPU slice, or several (--node-count), as a queued resource.
# Needs --tpu-name, --project, --zone and --tpu-type. Where it exists already, that is said and nothing is done.
# docs/tpu.md lists all settings.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
arguments "$WHERE TPU_TYPE" "$WHAT" -- "$@"
no_more
slice_size

now=$(state)
if [[ -n $now ]]; then
  hint=''
  case $now in SUSPEND* | FAILED) hint="; resume.sh deletes it and asks again" ;; esac
  say "$JAXIFT_TPU_NAME exists already and is $now$hint"
  exit 0
fi

# https://docs.cloud.google.com/tpu/docs/runtimes
case $JAXIFT_TPU_TYPE in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
esac
options=("--accelerator-type=$JAXIFT_TPU_TYPE" "--runtime-version=${JAXIFT_RUNTIME_VERSION:-$runtime}")
if ((slices > 1)); then
  options+=("--node-count=$slices" "--node-prefix=$JAXIFT_TPU_NAME")
else
  options+=("--node-id=$JAXIFT_TPU_NAME")
fi
[[ ${JAXIFT_SPOT:-} != true ]] || options+=(--spot)
[[ ${JAXIFT_SSH:-external} == external ]] || options+=(--internal-ips)
[[ -z ${JAXIFT_NETWORK:-} ]] || options+=("--network=$JAXIFT_NETWORK")
[[ -z ${JAXIFT_SUBNETWORK:-} ]] || options+=("--subnetwork=$JAXIFT_SUBNETWORK")
if [[ -n ${JAXIFT_SERVICE_ACCOUNT:-} ]]; then
  options+=("--service-account=$JAXIFT_SERVICE_ACCOUNT" --scopes=cloud-platform)
fi

cost
queued create "$JAXIFT_TPU_NAME" "${options[@]}" --quiet
