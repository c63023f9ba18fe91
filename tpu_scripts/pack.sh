#!/usr/bin/env bash
# pack.sh OUT.tar.gz [FILE ...]: this checkout as it stands (the files that git tracks, with your changes) and FILEs beside
# them, for the hosts. What git does not track stays here, so that no key or data set goes along by mistake.
set -euo pipefail
unset CDPATH
root=$(cd "$(dirname "$0")/.." && pwd)
out=$1
shift
git -C "$root" rev-parse --git-dir >/dev/null 2>&1 || { echo "pack.sh: error: $root is no git checkout; clone the repository, and run the scripts there" >&2 && exit 2; }
mkdir -p "$(dirname "$out")"
# the same files make the same archive, whenever and by whom they were checked out: hosts install it once
same=()
if tar --version 2>/dev/null | grep -q GNU; then
  same=(--mtime='2020-01-01 00:00Z' --owner=0 --group=0 --numeric-owner)
fi
extra=()
for file in "$@"; do extra+=(-C "$(cd "$(dirname "$file")" && pwd)" "./$(basename "$file")"); done
# a file that is deleted but not committed is tracked still
git -C "$root" ls-files -z | while IFS= read -r -d '' name; do
  [[ ! -e $root/$name ]] || printf './%s\0' "$name"
done | tar -cz "${same[@]}" -f "$out.new" -C "$root" --null -T - "${extra[@]}"
mv "$out.new" "$out"
