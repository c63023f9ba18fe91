#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154 # names are shared with the scripts that source this
# The queued resource and its hosts, as create, setup, run, resume and the others see them. Sourced after common.sh.
readonly WHERE="TPU_NAME PROJECT ZONE"
readonly WHAT="TPU_TYPE NODE_COUNT SPOT RUNTIME_VERSION SERVICE_ACCOUNT NETWORK SUBNETWORK PRICE_PER_CHIP_HOUR SSH POLL_SECONDS"

queued() { # VERB ...: one gcloud command
  run gcloud compute tpus queued-resources "$1" "${@:2}" "--project=$JAXIFT_PROJECT" "--zone=$JAXIFT_ZONE"
}

exec 3>&1 # what a dry run prints inside $(...) goes there
state() { # of our queued resource, empty where there is none; `describe` could not tell that from a refused login
  local name what type all asked=${JAXIFT_TPU_TYPE:-}
  local format='--format=value(name.basename(),state.state,tpu.nodeSpec[0].node.acceleratorType.basename())'
  if [[ -n $dry_run ]]; then queued list "$format" >&3 && return; fi
  all=$(queued list "$format") || fail "the queued resources of $JAXIFT_PROJECT cannot be listed (see above)" 1
  while read -r name what type; do
    [[ $name == "$JAXIFT_TPU_NAME" ]] || continue
    [[ -z $type || -z $asked || $type == "$asked" ]] ||
      fail "--tpu-type $asked: $name exists and is $type; give that, another --tpu-name, or delete.sh first"
    printf %s "$what"
  done <<<"$all"
}

wait_until_active() {
  local now last=''
  while :; do
    now=$(state)
    [[ -n $dry_run || $now == ACTIVE ]] && return 0
    case $now in '' | FAILED | SUSPENDING | SUSPENDED | DELETING)
      fail "$JAXIFT_TPU_NAME is ${now:-gone}; resume.sh asks for it again" 1 ;;
    esac
    [[ $now == "$last" ]] || say "$JAXIFT_TPU_NAME is $now; looking every ${JAXIFT_POLL_SECONDS:-30} s"
    last=$now
    sleep "${JAXIFT_POLL_SECONDS:-30}"
  done
}

ssh_way() { case ${JAXIFT_SSH:-external} in internal) echo --internal-ip ;; iap) echo --tunnel-through-iap ;; esac; }

on_hosts() { # NODES WORKERS VERB ARG...: runs jaxift_on_host.sh there; nothing of ARG is seen by a shell
  local nodes=$1 workers=$2 way
  shift 2
  way=$(ssh_way)
  queued ssh "$JAXIFT_TPU_NAME" "--node=$nodes" "--worker=$workers" ${way:+"$way"} \
    "--command=$(quoted bash jaxift_on_host.sh "$@")"
}

# every host says one line `jaxift-host NAME STATE`. gcloud leaves out, with a warning and exit code 0, slices that it
# cannot prepare, so the lines are counted.
all_hosts() { # VERB ARG...: on every host; these lines are printed, and kept in `said`
  local output failed='' count
  said=''
  if [[ -n $dry_run ]]; then on_hosts all all "$@" && return; fi
  output=$(on_hosts all all "$@") || failed=yes
  [[ -z $output ]] || printf '%s\n' "$output"
  [[ -z $failed ]] || fail "$1 failed on a host (see above); a host that knows no jaxift_on_host.sh needs setup.sh" 1
  said=$(grep '^jaxift-host ' <<<"$output" || true)
  count=$(grep -c . <<<"$said" || true)
  ((count >= hosts * slices)) || fail "$1: $count of $((hosts * slices)) hosts answered; try again, and see status.sh" 1
}
