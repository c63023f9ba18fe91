#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154 # names are shared with the scripts that source this
# The jaxift command and its environment, checked before it is sent anywhere. Sourced after common.sh.

# command_line [WORDS]: takes --env NAME=VALUE and --secret NAME=ID out of `extra` into `envs` and `secrets`, and checks `jaxift`
command_line() {
  local index option value name
  envs=() secrets=() others=()
  for ((index = 0; index < ${#extra[@]}; index += 2)); do
    option=${extra[index]} value=${extra[index + 1]} name=${extra[index + 1]%%=*}
    case $option in
      --env | --secret)
        [[ $value =~ ^[A-Za-z_][A-Za-z0-9_]*=.+$ ]] || fail "$option $(printf %q "$name"): give NAME=..." ;;&
      --env)
        [[ ! ${name^^} =~ (^|_)(TOKEN|SECRET|PASSWORD|CREDENTIALS?|KEY)(_|$) ]] || fail "--env $name: a secret is no argument; give --secret $name=ID and keep its value in a secret store"
        plain "--env $name" "$value"
        envs+=("$value") ;;
      --secret)
        [[ ${value#*=} =~ ^[A-Za-z0-9_.:-]{1,255}$ ]] || fail "--secret $name: give the secret's id, never its value"
        plain "--secret $name" "$value"
        secrets+=("$value") ;;
      *) others+=("$option" "$value") ;;
    esac
  done
  extra=("${others[@]}")
  [[ ${jaxift[0]:-} != jaxift ]] || jaxift=("${jaxift[@]:1}")
  ((${#jaxift[@]})) || fail "no command; give it after --, such as: $(basename "$0") -- run configs/smollm2_arc.yaml --run-dir gs://BUCKET/RUN"
  for ((index = 0; index < ${#jaxift[@]}; index++)); do
    value=${jaxift[index]}
    plain "argument $((index + 1)) after --" "$value"
    [[ $value != --run-dir ]] || value=--run-dir=${jaxift[index + 1]:-}
    [[ $value != --run-dir=* || $value == --run-dir=gs://?* || $((hosts * slices)) -eq 1 ]] ||
      fail "$(printf %q "$value"): $((hosts * slices)) hosts share no disk; give a run directory in a bucket, gs://BUCKET/RUN"
  done
}

# WHAT TEXT: refuses what could not arrive as it is, and what looks like a token (which is not repeated here)
plain() {
  [[ ! $2 =~ [[:cntrl:]] ]] || fail "$1: has a line end or another control character; write it without"
  [[ ! $2 =~ (^|[^A-Za-z0-9])(hf_|ghp_|github_pat_|ya29\.|AIza)[A-Za-z0-9_-]{16,} ]] || fail "$1: looks like a token; give --secret NAME=ID instead, and withdraw the token"
}
