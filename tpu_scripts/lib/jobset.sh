#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154 # names are shared with the scripts that source this
# Fills in jobset.yaml. Sourced by gke.sh; `render` comes after the settings and the command are known and checked.

# what GKE calls a slice (https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus)
topology() {
  local chosen=${JAXIFT_TOPOLOGY:-} sizes
  if [[ -z $chosen ]]; then
    case $JAXIFT_TPU_TYPE in
      v5p-*) sizes=" 2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16 16x16x16 16x16x24 " ;;
      *) sizes=" 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 " ;;
    esac
    for chosen in $sizes ''; do [[ -z $chosen ]] || ((${chosen//x/*} != chips)) || break; done
    [[ -n $chosen ]] || fail "JAXIFT_TOPOLOGY is not set, and $JAXIFT_TPU_TYPE has no usual one; give --topology, such as 4x4x12"
  fi
  ((${chosen//x/*} == chips)) || fail "--topology $chosen: has $((${chosen//x/*})) chips, $JAXIFT_TPU_TYPE has $chips"
  printf %s "$chosen"
}

json() { # TEXT as a JSON string, which is YAML too; control characters were refused before
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}
# what the user wrote. Kubernetes replaces $(NAME) in commands and variables, and $$ by $: with every $ doubled it gives back
# the text; and no @ in it is taken for a place to fill in
literal() { local text; text=$(json "${1//\$/\$\$}"); printf %s "${text//@/\\u0040}"; }
joined() { local text; printf -v text ', %s' "$@"; printf '[%s]' "${text:2}"; }

environment() { # the list of the container's variables
  local entry name value entries=()
  for entry in "${envs[@]}"; do
    entries+=("{name: $(json "${entry%%=*}"), value: $(literal "${entry#*=}")}")
  done
  for entry in "${secrets[@]}"; do
    name=${entry%%=*} value=${entry#*=}
    [[ $value =~ ^[a-z0-9][-a-z0-9.]*:[-A-Za-z0-9._]+$ ]] || fail "--secret $name: give SECRET:KEY of a Kubernetes secret"
    entries+=("{name: $(json "$name"), valueFrom: {secretKeyRef: {name: $(json "${value%%:*}"), key: $(json "${value#*:}")}}}")
  done
  if ((${#entries[@]})); then joined "${entries[@]}"; else printf '[]'; fi
}

render() { # the manifest
  local text accelerator shape variables word words=()
  text=$(<"$here/jobset.yaml")
  shape=$(topology)
  variables=$(environment)
  case $JAXIFT_TPU_TYPE in
    v5litepod-*) accelerator=tpu-v5-lite-podslice ;;
    v5p-*) accelerator=tpu-v5p-slice ;;
    v6e-*) accelerator=tpu-v6e-slice ;;
  esac
  for word in jaxift "${jaxift[@]}"; do words+=("$(literal "$word")"); done
  if [[ ${JAXIFT_SPOT:-} == true ]]; then
    fill SPOT_SELECTOR 'cloud.google.com/gke-spot: "true"'
    fill TOLERATIONS '[{key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}]'
  else
    fill SPOT_SELECTOR '# no spot VMs'
    fill TOLERATIONS '[]'
  fi
  fill NAME "$(json "$JAXIFT_TPU_NAME")"
  fill NAMESPACE "$(json "${JAXIFT_NAMESPACE:-default}")"
  fill MAX_RESTARTS "${JAXIFT_MAX_RESTARTS:-100}"
  fill SLICES "$slices"
  fill HOSTS "$hosts"
  fill CHIPS "$((chips / hosts))"
  fill ACCELERATOR "$accelerator"
  fill TOPOLOGY "$(json "$shape")"
  fill SERVICE_ACCOUNT "$(json "${JAXIFT_KUBE_SERVICE_ACCOUNT:-default}")"
  fill IMAGE "$(json "$JAXIFT_IMAGE")"
  fill ENV "$variables"
  fill COMMAND "$(joined "${words[@]}")"
  printf %s "$text"
}
fill() { text=${text//"@$1@"/"$2"}; }
