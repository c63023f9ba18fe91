#!/usr/bin/env bash
# shellcheck disable=SC2034,SC2154 # names are shared with the scripts that source this
# What all scripts share: refusing in one line, quoting, the dry run, the size of a slice and its cost line. Sourced, never run.
set -euo pipefail
unset CDPATH # cd would go, and say, elsewhere
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly here

fail() { printf '%s: error: %s\n' "$(basename "$0")" "$1" >&2; exit "${2:-2}"; }
say() { printf '# %s\n' "$*" >&2; }
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  fail "bash $BASH_VERSION is too old; install 4.4 or newer (macOS: brew install bash) and run the script with it"
fi
shopt -s inherit_errexit # what fails inside $(...) ends the script too
source "$here/lib/settings.sh"

quoted() { local text; printf -v text '%q ' "$@"; printf %s "${text% }"; }
run() { # runs a command; in a dry run prints it, such that a shell would run exactly this
  if [[ -n $dry_run ]]; then quoted "$@" && echo; else "$@" 3>&-; fi
}

# chips and hosts of a slice. v5litepod-N and v6e-N have N chips, v5p-N counts TensorCores, two a chip; a host of several
# has four chips (https://docs.cloud.google.com/tpu/docs/v5e, /v5p, /v6e)
slice_size() {
  local number=${JAXIFT_TPU_TYPE#*-}
  case $JAXIFT_TPU_TYPE in
    v5p-*)
      ((number % 8 == 0 && number <= 12288)) || fail "--tpu-type $JAXIFT_TPU_TYPE: v5p counts TensorCores; give a multiple of 8 up to 12288"
      chips=$((number / 2)) hosts=$((number / 8)) ;;
    *)
      [[ " 1 4 8 16 32 64 128 256 " == *" $number "* ]] || fail "--tpu-type $JAXIFT_TPU_TYPE: sizes are 1, 4, 8, 16, 32, 64, 128 and 256"
      chips=$number hosts=$((number > 8 ? number / 4 : 1)) ;;
  esac
  slices=${JAXIFT_NODE_COUNT:-1}
}

cost() { # said before anything that costs; money only at a price that the user gave
  local all=$((chips * slices)) price=${JAXIFT_PRICE_PER_CHIP_HOUR:-}
  say "cost: $slices x $JAXIFT_TPU_TYPE = $all chips: $all chip-hours per hour, from when they are there until they are deleted"
  [[ -z $price ]] || say "cost: at your price of $price a chip-hour $(LC_ALL=C awk "BEGIN {printf \"%.2f\", $all * $price}") per hour"
}
