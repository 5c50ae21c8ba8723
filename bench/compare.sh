#!/usr/bin/env bash
# Perigee beside Open MPI, MPICH and Gloo: every operation, size and number of ranks, interleaved in one go.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: bench/compare.sh [OPTIONS]

  --quick             7 sizes up to 16 MiB, 3 rounds: about ten minutes (default: 9 sizes up to 64 MiB, 5 rounds, an hour)
  --ranks LIST        default 2,4,8; over a network 2,4
  --sizes LIST        bytes, ascending: 8,1024,65536
  --ops LIST          of allreduce broadcast reduce allgather reduce_scatter alltoall gather scatter barrier pingpong bw
  --rounds N          repetitions of everything, the outermost loop
  --budget MS         milliseconds of calls per row and round
  --net loopback      TCP on the loopback device, against Open MPI (btl tcp) and Gloo
  --net veth          TCP between two network namespaces (root); half of the ranks in each
  --rate RATE         with veth: limit both directions with tbf, for example 10gbit
  --dir DIR           programs and raw figures (default build/compare). A run that was interrupted goes on where it was when it
                      is started again with the same settings and the same Perigee
  --out FILE.md       default bench/RESULTS.md, with --net bench/RESULTS-<net>.md; drawings are written beside it
  --fresh             do not go on, begin anew
  --report            only write the report, from the raw figures of the last run

PERIGEE names the command to measure (default: a Release build in DIR). Nothing else should run meanwhile.
TEXT
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
cd "$root"

quick=0 ranks='' sizes='' rounds='' budget='' net='' rate='' dir=build/compare out='' fresh=0 only_report=0
ops=''
while [ $# -gt 0 ]; do
  case "$1" in
    --quick) quick=1 ;;
    --fresh) fresh=1 ;;
    --report) only_report=1 ;;
    --help | -h) usage && exit 0 ;;
    --ranks | --sizes | --ops | --rounds | --budget | --net | --rate | --dir | --out)
      [ $# -ge 2 ] || { echo "compare.sh: $1 needs a value" >&2 && exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
    *) echo "compare.sh: unknown option '$1'" >&2 && usage >&2 && exit 2 ;;
  esac
  shift
done
case "$net" in
  '' | loopback) ;;
  veth) [ "$(id -u)" -eq 0 ] || { echo "compare.sh: --net veth needs root" >&2 && exit 2; } ;;
  *) echo "compare.sh: --net '$net' is neither loopback nor veth" >&2 && exit 2 ;;
esac

if [ $quick = 1 ]; then
  : "${sizes:=8,1024,16384,65536,262144,1048576,16777216}" "${rounds:=3}" "${budget:=5}"
else
  : "${sizes:=8,64,1024,16384,65536,262144,1048576,16777216,67108864}" "${rounds:=5}" "${budget:=20}"
fi
if [ -n "$net" ]; then
  : "${ranks:=2,4}" "${ops:=allreduce,broadcast,allgather,reduce_scatter,alltoall,barrier,pingpong,bw}"
else
  : "${ranks:=2,4,8}" "${ops:=allreduce,broadcast,reduce,allgather,reduce_scatter,alltoall,gather,scatter,barrier,pingpong,bw}"
fi
: "${out:=bench/RESULTS${net:+-$net}.md}"
cores=$(nproc)
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

say() { echo "$(date +%T) $*" >&2; }
steal() { awk '/^cpu /{print $9}' /proc/stat; }

# Figures that were taken in another way, or of another program, are never mixed.
open_data() {
  local key
  key=$(echo "$sizes $ops $budget $(cksum <"$PERIGEE")" | cksum | cut -d' ' -f1)
  data=$dir/data/${net:-shm}${rate:+-$rate}-$key
  if [ $only_report = 1 ] && [ ! -e "$data/finished" ]; then # of an older Perigee, or not at its end
    data=$(find "$dir/data" -maxdepth 1 -name "${net:-shm}${rate:+-$rate}-*" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
    [ -n "$data" ] || { echo "compare.sh: no figures in $dir/data" >&2 && exit 1; }
  fi
  if [ $only_report = 0 ] && { [ $fresh = 1 ] || [ -e "$data/finished" ]; }; then rm -rf "$data"; fi
  mkdir -p "$data"
}

# ---- programs ---------------------------------------------------------------------------------------------

need() { # packages
  local missing=() p sudo=()
  command -v apt-get >/dev/null || return 0
  for p in "$@"; do
    dpkg -s "$p" 2>/dev/null | grep -q '^Status: .* installed$' || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  say "installing ${missing[*]}"
  "${sudo[@]}" apt-get -qq update >&2
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}" >&2
}

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

build_perigee() {
  if [ -z "${PERIGEE-}" ]; then
    need build-essential cmake ninja-build pkg-config lua5.4 liblua5.4-dev libuv1-dev
    cmake -S . -B "$dir/perigee" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPERIGEE_TESTS=OFF >/dev/null
    cmake --build "$dir/perigee" >"$dir/build.log" 2>&1 || { cat "$dir/build.log" >&2 && exit 1; }
    PERIGEE=$dir/perigee/perigee
  fi
  "$PERIGEE" --version >/dev/null
}

# ---- runs -------------------------------------------------------------------------------------------------

# Every figure of a run belongs to one file; it appears when the run has ended. A run that hits its limit keeps the rows
# that it has printed; one that fails is tried again the next time.
run() { # file limit command...
  local file=$1 limit=$2 rc=0
  shift 2
  [ -e "$file" ] && return 0
  timeout -k 5 "$limit" "$@" >"$file.part" 2>"$file.log" </dev/null || rc=$?
  if [ $rc = 0 ] || { [ $rc = 124 ] && [ -s "$file.part" ]; }; then
    mv "$file.part" "$file" && rm -f "$file.log"
  else
    say "FAILED (exit $rc) $(basename "$file"): $(tail -n 1 "$file.log" | cut -c1-160)"
    rm -f "$file.part"
  fi
}

listed() { case ",$ops," in *",$1,"*) return 0 ;; *) return 1 ;; esac; }

# Names of the peers' programs: variants that a library does not have are ignored by them.
peer_ops() {
  local list='' op
  for op in ${ops//,/ }; do list+=",$op,${op}_ip,${op}_b2b,${op}_bcube_ip"; done
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

wall_of() { # seconds that a peer may start new rows in
  local factor=1
  [ $quick = 1 ] || factor=6
  case "$1" in 2) echo $((15 * factor)) ;; 4) echo $((20 * factor)) ;; *) echo $((40 * factor)) ;; esac
}

perigee() { # round ranks
  local how flags list limit transport=shm
  [ -z "$net" ] || transport=tcp
  limit=$((2 * $(wall_of "$2") + 60))
  for how in each in_place b2b symmetric; do
    [ $how != symmetric ] || [ -z "$net" ] || continue
    list=$(perigee_ops $how "$2")
    [ -n "$list" ] || continue
    case $how in in_place) flags=--in-place ;; b2b) flags=--b2b ;; symmetric) flags=--symmetric ;; *) flags='' ;; esac
    local file=$data/r$1-n$2-perigee-$how.json
    [ ! -e "$file" ] || continue
    # shellcheck disable=SC2086
    if [ "$net" = veth ]; then
      perigee_veth "$file" "$2" "$limit" $flags $list
    else
      run "$file.out" "$limit" "$PERIGEE" bench -n "$2" --sizes "$sizes" --budget "$budget" --timeout "$limit" \
        --transport $transport --json "$file.tmp" $flags $list
    fi
    [ ! -e "$file.tmp" ] || mv "$file.tmp" "$file"
    rm -f "$file.out"
  done
}

root_flag=()
[ "$(id -u)" -ne 0 ] || root_flag=(--allow-run-as-root)

openmpi() { # round ranks name mca...
  local file=$data/r$1-n$2-$3.csv n=$2 wall mca=()
  wall=$(wall_of "$n")
  shift 3
  [ "$n" -le "$cores" ] || mca=(--mca mpi_yield_when_idle 1)
  run "$file" $((2 * wall + 30)) mpirun.openmpi "${root_flag[@]}" --oversubscribe "${mca[@]}" "$@" -n "$n" \
    "$dir/mpi_coll.openmpi" --sizes "$sizes" --ops "$(peer_ops)" --budget "$budget" --wall "$wall"
}

mpich() { # round ranks
  local wall
  wall=$(wall_of "$2")
  run "$data/r$1-n$2-mpich.csv" $((2 * wall + 30)) mpirun.mpich -n "$2" "$dir/mpi_coll.mpich" --sizes "$sizes" \
    --ops "$(peer_ops)" --budget "$budget" --wall "$wall"
}

gloo() { # round ranks option...
  local file=$data/r$1-n$2-gloo.csv n=$2 wall
  wall=$(wall_of "$n")
  shift 2
  run "$file" $((2 * wall + 30)) "$dir/gloo_coll" --ranks "$n" --sizes "$sizes" --ops "$(peer_ops)" --budget "$budget" \
    --wall "$wall" "$@"
}

# ---- two network namespaces -------------------------------------------------------------------------------

space_a=perigee-a space_b=perigee-b addr_a=10.77.0.1 addr_b=10.77.0.2

drop_spaces() {
  ip netns del $space_a 2>/dev/null || true
  ip netns del $space_b 2>/dev/null || true
}

make_spaces() {
  drop_spaces
  trap drop_spaces EXIT
  ip netns add $space_a
  ip netns add $space_b
  ip link add veth0 netns $space_a type veth peer name veth0 netns $space_b
  ip -n $space_a addr add $addr_a/24 dev veth0
  ip -n $space_b addr add $addr_b/24 dev veth0
  local s
  for s in $space_a $space_b; do
    ip -n "$s" link set lo up
    ip -n "$s" link set veth0 up
    [ -z "$rate" ] || ip netns exec "$s" tc qdisc add dev veth0 root tbf rate "$rate" burst 1mb latency 50ms
  done
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
  run "$file.out" "$limit" ip netns exec $space_a "$PERIGEE" bench --node-rank 0 -x PERIGEE_BIND=$addr_a \
    --json "$file.tmp" "${common[@]}"
  wait $other || true
  rm -f "$file.node1.log"
}

openmpi_veth() { # round ranks
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

one_round() { # round
  local n
  for n in ${ranks//,/ }; do
    case "$net" in
      '')
        perigee "$1" "$n"
        openmpi "$1" "$n" openmpi
        openmpi "$1" "$n" openmpi-sm --mca coll_sm_priority 90
        mpich "$1" "$n"
        gloo "$1" "$n"
        ;;
      loopback)
        perigee "$1" "$n"
        openmpi "$1" "$n" openmpi-tcp --mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include lo
        gloo "$1" "$n"
        ;;
      veth)
        perigee "$1" "$n"
        openmpi_veth "$1" "$n"
        gloo "$1" "$n" --netns $space_a,$space_b --iface veth0
        ;;
    esac
    say "round $1 of $rounds, $n ranks, load $(cut -d' ' -f1 /proc/loadavg), steal $(($(steal) - steal0)) ticks"
  done
}

version_of() { dpkg-query -W -f '${Version}' "$1" 2>/dev/null || echo unknown; }

conditions() { # what the report says about the run; one key=value per line
  echo "net=${net:-shared memory}${rate:+, $rate}"
  echo "sizes=$sizes"
  echo "ranks=$ranks"
  echo "rounds=$rounds"
  echo "budget=$budget"
  echo "perigee=$("$PERIGEE" --version | cut -d' ' -f2) $(git rev-parse --short HEAD 2>/dev/null || true)"
  echo "openmpi=$(version_of openmpi-bin)"
  echo "mpich=$(version_of mpich)"
  echo "gloo=$(version_of libgloo-dev)"
  echo "steal=$(($(steal) - steal0))"
  echo "seconds=$(($(date +%s) - started))"
  echo "load=$load0 at the start, $(cut -d' ' -f1 /proc/loadavg) at the end"
}

build_perigee
open_data
steal0=$(steal) started=$(date +%s) load0=$(cut -d' ' -f1 /proc/loadavg)
if [ $only_report = 0 ]; then
  build_peers
  awk -v cores="$cores" '{ exit $1 < cores / 4 }' /proc/loadavg && say "the load is $load0: this machine is not quiet"
  [ "$net" != veth ] || make_spaces
  for ((round = 1; round <= rounds; round++)); do one_round $round; done
  conditions >"$data/conditions"
  touch "$data/finished"
fi
"$PERIGEE" run -n 1 bench/compare.lua "$data" "$out"
say "written: $out"
