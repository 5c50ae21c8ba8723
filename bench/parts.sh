#!/usr/bin/env bash
# What one call of 8 bytes consists of below the caller: instructions in its parts, counted by valgrind (callgrind), and
# their share of the call. One rank, so that no waiting is counted.
#
#   bench/parts.sh [path of perigee, default build/compare/perigee]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
perigee=${1:-build/compare/perigee}
[ -x "$perigee" ] || { echo "parts.sh: $perigee is not there: give the path of a Release build" >&2; exit 2; }
command -v valgrind >/dev/null || { echo "parts.sh: valgrind is missing" >&2; exit 2; }
calls=20000 dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cat >"$dir/calls.lua" <<LUA
local perigee, loop = require "perigee", require "perigee.bench.loop"
local world <close> = perigee.init()
loop.back_to_back("allreduce", $calls)(world, perigee.zeros("f32", 2))
LUA
valgrind --tool=callgrind --callgrind-out-file="$dir/out" --toggle-collect=loop_back_to_back "$perigee" lua "$dir/calls.lua" \
  2>"$dir/log" || { cat "$dir/log" >&2; exit 1; }
callgrind_annotate --inclusive=yes --threshold=100 "$dir/out" | awk -v calls=$calls '
  function of(name, text) { if (!(name in seen)) return; printf "%-14s %6.0f %5.1f %%   %s\n", text, seen[name] / calls,
    100 * seen[name] / total, name }
  $1 ~ /^[0-9,]+$/ {
    n = $1; gsub(",", "", n); name = $0
    if (/PROGRAM TOTALS/) { total = n; next }
    sub(/.*:/, "", name); sub(/ .*/, "", name)
    if (!(name in seen)) seen[name] = n
  }
  END {
    printf "%-14s %6.0f         instructions of one call\n", "all", total / calls
    of("perigee__group_check", "checks")
    of("perigee__request_deadline", "deadline")
    of("perigee__native_print_start", "fingerprint")
    of("perigee__hash_mix", "fingerprint")
    of("perigee__native_print_pack", "fingerprint")
    of("self_reduce", "the reduction")
  }'
