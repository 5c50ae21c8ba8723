#!/usr/bin/env bash
# Perigee beside Open MPI, MPICH and Gloo: every operation, size and number of ranks, interleaved in one go.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: bench/compare.sh [OPTIONS]

Everything (8 sizes up to 64 MiB on 2, 4 and 8 ranks, 3 rounds: 20 minutes; over a network 2 to 5) goes to bench/RESULTS.md. A part of
it, asked for with --ops, --ranks, --sizes or --peers, is printed when it is done and leaves no files, unless --out is given.

  --ops LIST          of allreduce broadcast reduce allgather reduce_scatter alltoall gather scatter barrier pingpong bw
  --ranks LIST        default 2,4,8; over a network 2,4
  --sizes LIST        bytes, ascending: 8,1024,65536
  --peers LIST        of openmpi openmpi-sm mpich gloo; over a network openmpi-tcp gloo
  --rounds N          repetitions of everything, the outermost loop (default 3)
  --budget MS         milliseconds per row and round (default 30)
  --net loopback      TCP on the loopback device, against Open MPI (btl tcp) and Gloo; sizes up to 16 MiB
  --net veth          TCP between two network namespaces (root); half of the ranks in each
  --rate RATE         with veth: limit both directions with tbf, for example 1gbit
  --dir DIR           programs and raw figures (default build/compare). A run that was interrupted goes on where it was when it
                      is started again with the same settings and the same Perigee; the report says so
  --out FILE.md       default bench/RESULTS.md, over a network bench/RESULTS-<net>[-<rate>].md; FILE.csv has every figure, drawings are
                      beside it
  --fresh             do not go on, begin anew
  --report            only write the report, from the raw figures of the last run with the same settings, of whatever Perigee

PERIGEE names the command to measure (default: a Release build in DIR). Nothing else should run meanwhile.
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=bench/common.sh
. bench/common.sh
# shellcheck source=spec/net/spaces.sh
. spec/net/spaces.sh

ops='' ranks='' sizes='' peers='' rounds=3 budget=30 net='' rate='' dir=build/compare out='' fresh=0 only_report=0
while [ $# -gt 0 ]; do
  case "$1" in
    --fresh) fresh=1 ;;
    --report) only_report=1 ;;
    --help | -h) usage && exit 0 ;;
    --ops | --ranks | --sizes | --peers | --rounds | --budget | --net | --rate | --dir | --out)
      [ $# -ge 2 ] || { echo "compare.sh: $1 needs a value" >&2 && exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
    *) echo "compare.sh: unknown option '$1'" >&2 && usage >&2 && exit 2 ;;
  esac
  shift
done
case "$net" in
  '' | loopback) [ -z "$rate" ] || { echo "compare.sh: --rate goes with --net veth" >&2 && exit 2; } ;;
  veth) [ "$(id -u)" -eq 0 ] || { echo "compare.sh: --net veth needs root" >&2 && exit 2; } ;;
  *) echo "compare.sh: --net '$net' is neither loopback nor veth" >&2 && exit 2 ;;
esac

part=0 whole=1
[ -z "$ops$ranks$sizes$peers" ] && [ "$rounds" -ge 3 ] && [ "$budget" -ge 30 ] || whole=0
[ -z "$ops$ranks$sizes$peers" ] || [ -n "$out" ] || part=1
if [ -n "$net" ]; then
  : "${ranks:=2,4}" "${ops:=allreduce,broadcast,allgather,reduce_scatter,alltoall,barrier,pingpong,bw}"
  : "${sizes:=8,1024,16384,65536,262144,1048576,16777216}" "${peers:=openmpi-tcp,gloo}"
else
  : "${ranks:=2,4,8}" "${ops:=allreduce,broadcast,reduce,allgather,reduce_scatter,alltoall,gather,scatter,barrier,pingpong,bw}"
  : "${sizes:=8,1024,16384,65536,262144,1048576,16777216,67108864}" "${peers:=openmpi,openmpi-sm,mpich,gloo}"
fi
where=${net:-shm}${rate:+-$rate}
: "${out:=bench/RESULTS${net:+-$where}.md}"
cores=$(nproc)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

steal() { awk '/^cpu /{print $9}' /proc/stat; }
load() { cut -d' ' -f1 /proc/loadavg; }

# What this script has started and made, however it ends. `timeout` puts a program into a process group of its own: it does
# not hear of a ^C by itself.
children='' data='' spaces=0
leave() {
  # shellcheck disable=SC2086
  if [ -n "$children" ]; then kill $children 2>/dev/null || true; wait $children || true; fi
  [ $spaces = 0 ] || drop_spaces
  [ $part = 0 ] || rm -rf "$data"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Figures that were taken in another way, or of other programs, are never mixed.
open_data() {
  local settings programs
  settings=$(echo "$sizes $ops $ranks $peers $rounds $budget" | cksum | cut -d' ' -f1)
  programs=$(cat "$PERIGEE" bench/peers/*_coll.* | cksum | cut -d' ' -f1)
  data=$dir/data/$where-$settings-$programs
  if [ $only_report = 1 ]; then # perhaps of an older Perigee, or not at its end
    data=$(find "$dir/data" -maxdepth 1 -name "$where-$settings-*" -printf '%T@ %p\n' 2>/dev/null | sort -n | tail -n 1 |
      cut -d' ' -f2-)
    [ -n "$data" ] || { echo "compare.sh: no figures of such a run in $dir/data" >&2 && exit 1; }
  elif [ $part = 1 ]; then
    data=$(mktemp -d "$dir/part.XXXXXX")
  elif [ $fresh = 1 ] || [ -e "$data/finished" ]; then
    rm -rf "$data"
  fi
  mkdir -p "$data"
}

# ---- programs ---------------------------------------------------------------------------------------------

newer() { [ ! -e "$2" ] || [ "$1" -nt "$2" ]; }

build_peers() {
  need build-essential openmpi-bin libopenmpi-dev mpich libmpich-dev libgloo-dev iproute2
  local source=bench/peers/mpi_coll.c
  newer $source "$dir/mpi_coll.openmpi" && mpicc.openmpi -O3 -march=native -std=gnu11 $source -o "$dir/mpi_coll.openmpi"
  newer $source "$dir/mpi_coll.mpich" && mpicc.mpich -O3 -march=native -std=gnu11 $source -o "$dir/mpi_coll.mpich"
  source=bench/peers/gloo_coll.cc
  newer $source "$dir/gloo_coll" && g++ -O3 -march=native -std=c++17 -w $source -o "$dir/gloo_coll" -lgloo -lpthread
  return 0
}

commit=''
build_perigee() {
  if [ -z "${PERIGEE-}" ]; then
    build_release "$dir/perigee"
    PERIGEE=$dir/perigee/perigee
    commit=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
    git diff --quiet HEAD 2>/dev/null || commit="$commit with changes"
  fi
  # what cannot run at all is told now, not by a report without figures
  "$PERIGEE" bench -n 2 --sizes 8 --iters 1 --settle 0 barrier >/dev/null || { echo "compare.sh: $PERIGEE does not run" >&2 && exit 1; }
}

# ---- runs -------------------------------------------------------------------------------------------------

# Every figure of a run belongs to one file; it appears when the run has ended. A run that hits its limit keeps the rows
# that it has printed; one that fails is tried again the next time. The file `runs` has a line for each: name, how it ended, seconds.
run() { # file limit command...
  local file=$1 limit=$2 rc=0 begun=$SECONDS how=ended
  shift 2
  [ -e "$file" ] && return 0
  timeout -k 5 "$limit" "$@" >"$file.part" 2>"$file.log" </dev/null &
  children="$children $!"
  wait $! || rc=$?
  children=${children% *}
  if [ $rc = 124 ] && [ -s "$file.part" ]; then how=stopped; elif [ $rc != 0 ]; then how="failed:$rc"; fi
  echo "$(basename "$file") $how $((SECONDS - begun))" >>"$data/runs"
  case $how in
    failed*)
      say "FAILED (exit $rc) $(basename "$file"): $(tail -n 1 "$file.log" | cut -c1-160)"
      rm -f "$file.part"
      ;;
    *) mv "$file.part" "$file" && rm -f "$file.log" ;;
  esac
}

listed() { case ",$1," in *",$2,"*) return 0 ;; *) return 1 ;; esac; }

# Names of the peers' programs, with the variants that figures.lua has a use for; those that a library does not have are
# ignored by it.
peer_ops() {
  local list='' op
  for op in ${ops//,/ }; do
    list+=",$op"
    case $op in
      allreduce) list+=,allreduce_ip,allreduce_b2b,allreduce_bcube_ip ;;
      reduce | allgather | reduce_scatter) list+=",${op}_ip" ;;
      barrier) list+=,barrier_b2b ;;
    esac
  done
  echo "${list#,}"
}

# Ours: how the call is made and which operations.
perigee_ops() { # each|in_place|b2b|symmetric ranks
  local op
  for op in ${ops//,/ }; do
    case "$1:$op" in
      each:pingpong | each:bw) [ "$2" != 2 ] || echo "$op" ;;
      each:allgather) echo allgather_into_tensor allgather ;;
      each:reduce_scatter) echo reduce_scatter_tensor reduce_scatter ;;
      each:alltoall) echo alltoall_base alltoall ;;
      each:*) echo "$op" ;;
      symmetric:allreduce | symmetric:broadcast | symmetric:reduce) echo "$op" ;;
      symmetric:allgather) echo allgather_into_tensor ;;
      symmetric:reduce_scatter) echo reduce_scatter_tensor ;;
      symmetric:alltoall) echo alltoall_base ;;
      in_place:allgather) echo allgather_into_tensor ;;
      in_place:reduce_scatter) echo reduce_scatter_tensor ;;
      b2b:allreduce | b2b:barrier) echo "$op" ;;
    esac
  done
}

wall_of() { # seconds in which a peer may start new rows
  if [ -n "$net" ]; then echo 20; else case "$1" in 2) echo 40 ;; 4) echo 50 ;; *) echo 60 ;; esac fi
}

perigee() { # round ranks
  local how flags list limit transport=shm check=1 file
  [ -z "$net" ] || transport=tcp
  [ "$1" = 1 ] || check=0 # results are compared once
  limit=$((2 * $(wall_of "$2") + 60))
  for how in each in_place b2b symmetric; do
    [ $how != symmetric ] || [ -z "$net" ] || continue
    list=$(perigee_ops $how "$2")
    [ -n "$list" ] || continue
    case $how in in_place) flags=--in-place ;; b2b) flags=--b2b ;; symmetric) flags=--symmetric ;; *) flags='' ;; esac
    file=$data/r$1-n$2-perigee-$how.json
    [ ! -e "$file" ] || continue
    [ -e "$file.out" ] || rm -f "$file.tmp" # of a run that was interrupted
    flags="$flags -c $check ${list//$'\n'/ }"
    # shellcheck disable=SC2086
    if [ "$net" = veth ]; then
      perigee_veth "$file" "$2" "$limit" $flags
    else
      run "$file.out" "$limit" "$PERIGEE" bench -n "$2" --sizes "$sizes" --budget "$budget" --timeout "$limit" \
        --transport $transport --json "$file.tmp" $flags
    fi
    [ ! -e "$file.tmp" ] || mv "$file.tmp" "$file"
    rm -f "$file.out"
  done
}

root_flag=()
[ "$(id -u)" -ne 0 ] || root_flag=(--allow-run-as-root)

openmpi() { # round ranks name mca...
  listed "$peers" "$3" || return 0
  local file=$data/r$1-n$2-$3.csv n=$2 wall mca=()
  wall=$(wall_of "$n")
  shift 3
  [ "$n" -le "$cores" ] || mca=(--mca mpi_yield_when_idle 1)
  run "$file" $((2 * wall + 30)) mpirun.openmpi "${root_flag[@]}" --oversubscribe "${mca[@]}" "$@" -n "$n" \
    "$dir/mpi_coll.openmpi" --sizes "$sizes" --ops "$(peer_ops)" --budget "$budget" --wall "$wall"
}

mpich() { # round ranks
  listed "$peers" mpich || return 0
  local wall
  wall=$(wall_of "$2")
  run "$data/r$1-n$2-mpich.csv" $((2 * wall + 30)) mpirun.mpich -n "$2" "$dir/mpi_coll.mpich" --sizes "$sizes" \
    --ops "$(peer_ops)" --budget "$budget" --wall "$wall"
}

gloo() { # round ranks option...
  listed "$peers" gloo || return 0
  local file=$data/r$1-n$2-gloo.csv n=$2 wall
  wall=$(wall_of "$n")
  shift 2
  run "$file" $((2 * wall + 30)) "$dir/gloo_coll" --ranks "$n" --sizes "$sizes" --ops "$(peer_ops)" --budget "$budget" \
    --wall "$wall" "$@"
}

# ---- two network namespaces -------------------------------------------------------------------------------

space_a=perigee-a space_b=perigee-b addr_a=10.77.0.1 addr_b=10.77.0.2

drop_spaces() {
  drop_space $space_a
  drop_space $space_b
}

make_spaces() {
  spaces=1
  drop_spaces
  add_space $space_a
  add_space $space_b
  join_spaces $space_a $addr_a $space_b $addr_b
  [ -z "$rate" ] || { limit_space $space_a "$rate" && limit_space $space_b "$rate"; }
  # stands in for ssh: the other "host" is a namespace, with a host name of its own
  cat >"$dir/ns-agent.sh" <<AGENT
#!/bin/bash
shift
exec ip netns exec $space_b unshare --uts sh -c "hostname $space_b; \$*"
AGENT
  chmod +x "$dir/ns-agent.sh"
  sleep 2 # until the link is up
}

perigee_veth() { # file ranks limit word...
  local file=$1 half=$(($2 / 2)) limit=$3 other
  shift 3
  local common=(-n "$half" --nnodes 2 --endpoint "$addr_a:29477" --sizes "$sizes" --budget "$budget" --timeout "$limit"
    --transport tcp "$@")
  timeout -k 5 "$limit" ip netns exec $space_b "$PERIGEE" bench --node-rank 1 -x PERIGEE_BIND=$addr_b "${common[@]}" \
    >/dev/null 2>"$file.node1.log" </dev/null &
  other=$!
  children=" $other"
  run "$file.out" "$limit" ip netns exec $space_a "$PERIGEE" bench --node-rank 0 -x PERIGEE_BIND=$addr_a \
    --json "$file.tmp" "${common[@]}"
  wait $other || true
  children=''
  rm -f "$file.node1.log"
}

openmpi_veth() { # round ranks
  listed "$peers" openmpi-tcp || return 0
  local half=$(($2 / 2)) wall yield=0
  wall=$(wall_of "$2")
  [ "$2" -le "$cores" ] || yield=1
  # Each "host" counts its cores from 0: binding would put all ranks on the same one.
  run "$data/r$1-n$2-openmpi-tcp.csv" $((2 * wall + 30)) ip netns exec $space_a unshare --uts sh -c "hostname $space_a
    exec mpirun.openmpi ${root_flag[*]} --bind-to none --mca plm_rsh_agent '$dir/ns-agent.sh' \
    --mca oob_tcp_if_include veth0 --mca btl_tcp_if_include veth0 --mca pml ob1 --mca btl tcp,self \
    --mca mpi_yield_when_idle $yield --host $addr_a:$half,$addr_b:$half -n $2 '$dir/mpi_coll.openmpi' \
    --sizes $sizes --ops $(peer_ops) --budget $budget --wall $wall"
}

# ---- all of it --------------------------------------------------------------------------------------------

# The cores of a virtual machine that did something else may be far from each other for a while, and what runs first would pay for it.
warm_up() { # ranks
  "$PERIGEE" bench -n "$1" --settle 1500 --iters 1 -c 0 --sizes 8 barrier >/dev/null 2>&1 || true
}

one_round() { # round
  local n begun steal_before
  for n in ${ranks//,/ }; do
    begun=$SECONDS steal_before=$(steal)
    warm_up "$n"
    perigee "$1" "$n"
    case "$net" in
      '')
        openmpi "$1" "$n" openmpi
        openmpi "$1" "$n" openmpi-sm --mca coll_sm_priority 90
        mpich "$1" "$n"
        gloo "$1" "$n"
        ;;
      loopback)
        openmpi "$1" "$n" openmpi-tcp --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include lo
        gloo "$1" "$n"
        ;;
      veth)
        openmpi_veth "$1" "$n"
        gloo "$1" "$n" --netns $space_a,$space_b --iface veth0
        ;;
    esac
    echo "$((SECONDS - begun)) $(($(steal) - steal_before))" >>"$data/spent"
    [ $part = 1 ] || say "round $1 of $rounds, $n ranks, $((SECONDS - begun)) s, load $(load), steal $(($(steal) - steal_before)) ticks"
  done
}

version_of() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || echo unknown; }

conditions() { # what the report says about the run; one key=value per line, later ones hold
  echo "net=${net:-shared memory}${rate:+, $rate}"
  echo "whole=$whole"
  echo "ops=$ops"
  echo "sizes=$sizes"
  echo "ranks=$ranks"
  echo "rounds=$rounds"
  echo "budget=$budget"
  echo "peers=$peers"
  echo "perigee=$("$PERIGEE" --version | cut -d' ' -f2)${commit:+ ($commit)}"
  echo "openmpi=$(version_of openmpi-bin)"
  echo "mpich=$(version_of mpich)"
  echo "gloo=$(version_of libgloo-dev)"
  echo "sitting=$(date -u +%FT%TZ), load $(load)"
}

build_perigee
[ $only_report = 1 ] || build_peers
open_data
if [ $only_report = 0 ]; then
  conditions >>"$data/conditions"
  awk -v cores="$cores" '{ exit $1 < cores / 4 }' /proc/loadavg && say "the load is $(load): this machine is not quiet"
  [ "$net" != veth ] || make_spaces
  for ((round = 1; round <= rounds; round++)); do one_round $round; done
  touch "$data/finished"
fi
if [ $part = 1 ]; then
  "$PERIGEE" run -n 1 bench/compare.lua "$data"
else
  "$PERIGEE" run -n 1 bench/compare.lua "$data" "$out"
  say "written: $out"
fi
