#!/usr/bin/env bash
# What it costs to reach an override: Perigee in Lua beside PyTorch in Python, in turn, in one go.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: bench/dispatch.sh [--rounds N] [--dir DIR] [--no-torch]

  --rounds N   how often both programs are run, in turn (default 3, a few minutes)
  --dir DIR    programs and raw figures (default build/compare)
  --no-torch   only Perigee's part

Installs python3-torch, libtorch-dev, python3-dev and pybind11-dev when they are missing. Debian's torch needs Debian's Python.
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=bench/common.sh
. bench/common.sh

rounds=3 dir=build/compare torch=1
while [ $# -gt 0 ]; do
  case "$1" in
    --rounds | --dir)
      [ $# -ge 2 ] || { echo "dispatch.sh: $1 needs a value" >&2 && exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
    --no-torch) torch=0 ;;
    --help | -h) usage && exit 0 ;;
    *) echo "dispatch.sh: unknown option '$1'" >&2 && usage >&2 && exit 2 ;;
  esac
  shift
done
mkdir -p "$dir/dispatch"
dir=$(cd "$dir" && pwd)

build_release "$dir/perigee-bench" -DPERIGEE_BENCH=ON
[ $torch = 0 ] || need python3-torch libtorch-dev python3-dev pybind11-dev g++
rm -f "$dir"/dispatch/*.csv
for ((round = 1; round <= rounds; round++)); do
  say "round $round of $rounds, load $(cut -d' ' -f1 /proc/loadavg)"
  timeout -k 5 600 "$dir/perigee-bench/bench_dispatch" --csv >"$dir/dispatch/perigee-$round.csv"
  if [ $torch = 1 ]; then
    timeout -k 5 1200 /usr/bin/python3 bench/peers/dispatch_torch.py "$dir" --rounds 5 >"$dir/dispatch/torch-$round.csv"
  fi
done
"$dir/perigee-bench/perigee" run -n 1 bench/dispatch.lua "$dir/dispatch" "$rounds"
