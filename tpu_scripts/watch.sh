#!/usr/bin/env bash
# watch.sh: what resume.sh takes, for as long as the command needs: looks every --poll-seconds, resumes after a preemption or a
# lost host, and ends with the command and its exit code. Ending watch.sh ends nothing else. The TPU stays until delete.sh.
source "$(dirname "$0")/lib/common.sh"
source "$here/lib/queued.sh"
arguments "$WHERE TPU_TYPE" "$WHAT PYTHON" -- "$@"
readonly patience=20 # failures in a row: a preempted TPU answers no ssh for some minutes before its state says so
pause() { sleep "${JAXIFT_POLL_SECONDS:-30}"; }

if [[ -n $dry_run ]]; then
  exec bash "$here/resume.sh" "$@"
fi
failures=0 running=''
while ((failures < patience)); do
  if [[ -z $running ]]; then
    code=0
    bash "$here/resume.sh" "$@" || code=$?
    ((code != 2)) || exit 2
    if ((code)); then failures=$((failures + 1)) && pause && continue; fi
    running=yes
    say "it runs; looking every ${JAXIFT_POLL_SECONDS:-30} s"
  fi
  pause
  # no answer: a passing fault, which resume.sh finds to be none, or a host that lost what setup.sh brought
  if ! seen=$(bash "$here/status.sh"); then failures=$((failures + 1)) running='' && continue; fi
  failures=0
  [[ $seen == "$JAXIFT_TPU_NAME ACTIVE"* ]] || { say "${seen%%$'\n'*}" && running='' && continue; }
  codes=$(sed -n 's/^jaxift-host .* exit //p' <<<"$seen" | sort -nu)
  # 3 lost a host or stalled; from 128 on killed by a signal: after these the same command goes on
  lost=$(awk '$1 == 3 || $1 >= 128' <<<"$codes")
  if [[ -n $lost ]]; then
    say "a host ended with exit code ${lost//$'\n'/, }: the command is started again"
    running=''
  elif [[ -n $codes ]] && ! grep -q ' running$' <<<"$seen"; then
    code=$(tail -n 1 <<<"$codes")
    say "ended with exit code $code; delete.sh gives the TPU back"
    exit "$code"
  fi
done
fail "$patience failures in a row; see above, then start watch.sh again" 1
