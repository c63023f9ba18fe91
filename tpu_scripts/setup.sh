#!/usr/bin/env bash
# setup.sh [--copy FILE]... [--python 3.12] [--dry-run] [SETTINGS]: installs this checkout's jaxift[tpu,gcs] on every host.
# FILEs (your study.yaml) lie in the directory where commands then run, beside configs/. A second time changes nothing.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
arguments "$WHERE TPU_TYPE" "$WHAT PYTHON" -- "$@"
slice_size

copies=()
for ((index = 0; index < ${#extra[@]}; index += 2)); do
  file=${extra[index + 1]}
  [[ ${extra[index]} == --copy ]] || fail "$(printf %q "${extra[index]}") is not known; see setup.sh --help"
  [[ -f $file ]] || fail "--copy $(printf %q "$file"): no such file"
  copies+=("$(cd "$(dirname "$file")" && pwd)/$(basename "$file")")
done

archive=${XDG_CACHE_HOME:-$HOME/.cache}/jaxift/tpu/$JAXIFT_TPU_NAME/jaxift_source.tar.gz
run bash "$here/pack.sh" "$archive" "${copies[@]}"
way=$(ssh_way)
queued scp "$archive" "$here/host/jaxift_on_host.sh" "$JAXIFT_TPU_NAME:" --node=all --worker=all ${way:+"$way"}
all_hosts install "${JAXIFT_PYTHON:-3.12}"
