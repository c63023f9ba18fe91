#!/usr/bin/env bash
# gke.sh render|apply|status|delete [--env NAME=VALUE]... [--secret NAME=SECRET:KEY]... [--dry-run] [SETTINGS] -- ARG...:
# `jaxift ARG...` as a JobSet on GKE. render prints the manifest; apply sends it to the cluster, which starts it again after
# preemptions. Needs --tpu-name, --tpu-type and --image, and but for render --kube-context. ARG... for render and apply alone.
# --secret HF_TOKEN=hf:token is the key `token` of the Kubernetes secret `hf`.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/command.sh"
verb=${1:-}
case $verb in
  render) needs="TPU_NAME TPU_TYPE IMAGE" ;;
  apply) needs="TPU_NAME TPU_TYPE IMAGE KUBE_CONTEXT" ;;
  status | delete) needs="TPU_NAME KUBE_CONTEXT" ;;
  -h | --help) arguments '' '' -- --help ;;
  *) fail "$(printf %q "$verb") is no verb; give render, apply, status or delete" ;;
esac
arguments "$needs" "TPU_NAME TPU_TYPE IMAGE KUBE_CONTEXT NODE_COUNT SPOT TOPOLOGY NAMESPACE KUBE_SERVICE_ACCOUNT MAX_RESTARTS PRICE_PER_CHIP_HOUR" -- "${@:2}"
source "$here/lib/jobset.sh"
kube() { run kubectl "--context=$JAXIFT_KUBE_CONTEXT" "--namespace=${JAXIFT_NAMESPACE:-default}" "$@"; }

case $verb in
  status | delete) no_more ;;
  *)
    slice_size
    command_line
    no_more
    manifest=$(render) ;;
esac
case $verb in
  render) printf '%s\n' "$manifest" ;;
  apply)
    # the manifest is written in a dry run too: what the printed command reads is there
    file=${XDG_CACHE_HOME:-$HOME/.cache}/jaxift/tpu/$JAXIFT_TPU_NAME/jobset.yaml
    mkdir -p "$(dirname "$file")"
    printf '%s\n' "$manifest" >"$file"
    say "manifest: $file"
    cost
    kube apply "--filename=$file" ;;
  status)
    kube get jobset "$JAXIFT_TPU_NAME" --ignore-not-found
    kube get pods "--selector=jobset.sigs.k8s.io/jobset-name=$JAXIFT_TPU_NAME" --output=wide ;;
  delete) kube delete jobset "$JAXIFT_TPU_NAME" --ignore-not-found ;;
esac
