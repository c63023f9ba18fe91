#!/usr/bin/env bash
# logs.sh [--node all|N] [--worker all|N] [--lines 200] [--follow | --to DIR] [--dry-run] [SETTINGS]: what the hosts wrote.
# Lines begin with their host's name; --to DIR writes each host's whole log into DIR/NODE-WORKER.log instead.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
arguments "$WHERE TPU_TYPE" "$WHAT" -- "$@"
slice_size

node=all worker=all lines=200 follow=log to=''
for ((index = 0; index < ${#extra[@]}; index += 2)); do
  value=${extra[index + 1]}
  case ${extra[index]} in
    --node | --worker) [[ $value =~ ^(all|[0-9]{1,4})$ ]] || fail "${extra[index]} $(printf %q "$value"): give all, or a number from 0" ;;&
    --node) node=$value ;;
    --worker) worker=$value ;;
    --lines) [[ $value =~ ^[0-9]{1,7}$ ]] || fail "--lines $(printf %q "$value"): give a number" ; lines=$value ;;
    --follow) follow=follow ;;
    --to) [[ -n $value ]] || fail "--to: give a directory" ; to=$value ;;
    *) fail "$(printf %q "${extra[index]}") is not known; see logs.sh --help" ;;
  esac
done

if [[ -z $to ]]; then
  on_hosts "$node" "$worker" "$follow" "$lines"
  exit
fi
# one by one: what gcloud's own --output-directory writes (SDK 528) lands in a folder named None
[[ -n $dry_run ]] || mkdir -p "$to"
for n in $([[ $node == all ]] && seq 0 $((slices - 1)) || echo "$node"); do
  for w in $([[ $worker == all ]] && seq 0 $((hosts - 1)) || echo "$worker"); do
    if [[ -n $dry_run ]]; then on_hosts "$n" "$w" whole; else on_hosts "$n" "$w" whole >"$to/$n-$w.log"; fi
  done
done
