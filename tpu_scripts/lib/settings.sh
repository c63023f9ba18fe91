#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154 # names are shared with the scripts that source this
# The settings, what each may look like, and where they come from. Sourced by common.sh. A setting ZONE is the flag --zone,
# the variable JAXIFT_ZONE or the line JAXIFT_ZONE=... of the file that --env-file names (or the variable JAXIFT_ENV_FILE):
# the flag wins over the variable, the variable over the file.

# a value is taken only where all of it matches; the text after the space says what is expected
declare -rA PATTERNS=(
  [TPU_NAME]='[a-z]([-a-z0-9]{0,38}[a-z0-9])? lower-case letters, digits and hyphens, at most 40, such as my-study'
  [PROJECT]='([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9] the id of a Google Cloud project, such as my-project'
  [ZONE]='[a-z]+-[a-z]+[0-9]+-[a-z] a zone, such as us-west4-a'
  [TPU_TYPE]='(v5litepod|v5p|v6e)-[1-9][0-9]{0,4} v5litepod-16, v5p-128, v6e-16 or another size of these three'
  [NODE_COUNT]='[1-9][0-9]{0,2} how many slices, from 1'
  [SPOT]='true|false true or false'
  [SSH]='external|internal|iap external, internal or iap'
  [RUNTIME_VERSION]='[a-z0-9][-a-z0-9.]* a TPU software version, such as v2-alpha-tpuv5-lite'
  [SERVICE_ACCOUNT]='[a-z0-9][-a-z0-9]*@[-a-z0-9.]+ the address of a service account'
  [NETWORK]='[a-z]([-a-z0-9]{0,61}[a-z0-9])? the name of a VPC network'
  [SUBNETWORK]='[a-z]([-a-z0-9]{0,61}[a-z0-9])? the name of a subnetwork'
  [PRICE_PER_CHIP_HOUR]='[0-9]{1,6}(\.[0-9]{1,6})? a number, in whatever you pay in, such as 1.2'
  [POLL_SECONDS]='[0-9]{1,5} seconds between two looks'
  [PYTHON]='3\.1[1-9] a Python version from 3.11'
  [IMAGE]='[a-z0-9][-a-z0-9._/:@]* a container image that holds jaxift'
  [TOPOLOGY]='[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2} a TPU topology, such as 4x4'
  [NAMESPACE]='[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])? a Kubernetes namespace'
  [KUBE_CONTEXT]='[A-Za-z0-9][-A-Za-z0-9_.:/@]* a context that kubectl config get-contexts names'
  [KUBE_SERVICE_ACCOUNT]='[a-z0-9]([-a-z0-9.]*[a-z0-9])? a Kubernetes service account'
  [MAX_RESTARTS]='[0-9]{1,4} a number'
  [CLUSTER]='[a-z]([-a-z0-9]{0,38}[a-z0-9])? the name of the xpk cluster'
)
flag() { local name=${1,,}; printf -- '--%s' "${name//_/-}"; }

matches() { local LC_ALL=C; [[ $2 =~ ^(${PATTERNS[$1]%% *})$ ]]; }

setting() { # NAME VALUE WHERE: takes a value, or refuses it
  matches "$1" "$2" || fail "$3: $(printf %q "$2") is refused; give ${PATTERNS[$1]#* }"
  printf -v "JAXIFT_$1" %s "$2"
  export "JAXIFT_$1"
}

env_file() { # lines JAXIFT_NAME=VALUE, which are read and never executed
  local line name number=0
  [[ -f $1 ]] || fail "--env-file $(printf %q "$1"): no such file"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
    name=${line%%=*}
    [[ $line == JAXIFT_*=* && -n ${PATTERNS[${name#JAXIFT_}]:-} ]] ||
      fail "$(printf %q "$1"):$number: $(printf %q "$name") is no setting; lines are JAXIFT_NAME=VALUE, see docs/tpu.md"
    [[ -n ${!name:-} ]] || setting "${name#JAXIFT_}" "${line#*=}" "$(printf %q "$1"):$number: $name"
  done <"$1"
}

# arguments REQUIRED OPTIONAL -- "$@": settings from flags, variables and file; what else is asked for is in
#   dry_run (empty or --dry-run), extra (other flags, checked by the script) and jaxift (what comes after --)
arguments() {
  local required=$1 optional=$2 argument name value file=${JAXIFT_ENV_FILE:-}
  dry_run='' extra=() jaxift=()
  shift 3
  while (($#)); do
    argument=$1 value=''
    shift
    name=${argument%%=*} name=${name#--} name=${name//-/_} name=${name^^}
    case $argument in
      --) jaxift=("$@") && break ;;
      -h | --help) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0" && exit 0 ;;
      --dry-run) dry_run=--dry-run ;;
      --spot) setting SPOT true --spot ;;
      *)
        if [[ $argument == *=* ]]; then value=${argument#*=}
        elif [[ $argument == --* && $argument != --follow ]]; then
          (($#)) || fail "$argument: needs a value"
          value=$1
          shift
        fi
        if [[ $name == ENV_FILE ]]; then file=$value
        elif [[ $argument == --* && " $required $optional " == *" $name "* ]]; then setting "$name" "$value" "$(flag "$name")"
        else extra+=("${argument%%=*}" "$value"); fi ;;
    esac
  done
  [[ -z $file ]] || env_file "$file"
  for name in $required $optional; do
    value=JAXIFT_$name
    [[ -z ${!value:-} ]] || setting "$name" "${!value}" "JAXIFT_$name"
  done
  for name in $required; do
    value=JAXIFT_$name
    [[ -n ${!value:-} ]] || fail "JAXIFT_$name is not set; give $(flag "$name"), the variable, or a line of --env-file: ${PATTERNS[$name]#* }"
  done
}
no_more() { ((${#extra[@]} == 0)) || fail "$(printf %q "${extra[0]}") is not known; see $(basename "$0") --help"; }
