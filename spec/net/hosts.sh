# shellcheck shell=bash
# Hosts of a job, each a network namespace: host<I> has the address 10.77.0.<I+1>. Sourced by the scripts that support.lua
# runs, which are alone in namespaces of processes, mounts and networks; with $P (the command), $ROOT and $WIRE.
set -u
trap 'exit 130' INT
trap 'exit 143' TERM
mount -t tmpfs tmpfs /run && mkdir /run/work && cd /run/work || exit
ip link set lo up
# shellcheck source=spec/net/spaces.sh
. "$ROOT/spec/net/spaces.sh"
export PERIGEE_LOG=warn PERIGEE_TIMEOUT=50

address() { echo "10.77.0.$(($1 + 1))"; }

# cabled: hosts 0 and 1, with a cable between them
cabled() {
  add_space host0 && add_space host1
  join_spaces host0 "$(address 0)" host1 "$(address 1)"
}

# switched N: hosts 0 to N-1 on one switch
switched() {
  local i list=()
  for ((i = 0; i < $1; i++)); do
    add_space "host$i"
    list+=("host$i" "$(address "$i")")
  done
  switch_spaces "${list[@]}"
}

# wired DELAY_MS LOSSES_PER_1000: hosts 0 and 1, with a bad wire between them; unwire tells what it has carried
wired() {
  local i up
  add_space host0 && add_space host1
  mkfifo wire
  "$WIRE" /run/netns/host0 /run/netns/host1 "$1" "$2" >wire &
  wire=$!
  exec 3<wire
  read -r -u 3 up && [ "$up" = up ] || exit
  for i in 0 1; do
    ip -n "host$i" addr add "$(address $i)/24" dev wire0
    ip -n "host$i" link set wire0 up
  done
}
unwire() {
  kill "$wire"
  cat <&3
}

# launch HOSTS N OPTIONS... -- WORDS...: the command once on each host, N ranks there, as `perigee run --help` says it. Shows
# what they print, and the launchers' exit codes at the end. identity: "host", namespaces pass for machines of their own; or
# "container", for what they are. limit: seconds.
identity=host limit=100
launch() {
  local hosts=$1 n=$2 i pids=() codes='' id
  shift 2
  for ((i = hosts - 1; i >= 0; i--)); do # the first one comes last: the others wait for it
    id=()
    [ $identity = container ] || id=(-x "PERIGEE_HOST_ID=host$i")
    ip netns exec "host$i" "$P" run -n "$n" --nnodes "$hosts" --node-rank "$i" --endpoint "$(address 0):29500" \
      --timeout "$limit" --grace 2 "${id[@]}" "$@" &
    pids+=($!)
  done
  for i in "${pids[@]}"; do
    wait "$i"
    codes="$? $codes"
  done
  echo "exit codes $codes"
}

# when FILE COMMAND...: in the background, as soon as it is there
when() {
  local file=$1
  shift
  (until [ -s "$file" ]; do sleep 0.05; done && "$@") &
}

# left: what runs here besides the script, one line for each
left() {
  local p
  for p in /proc/[0-9]*; do
    case $p in /proc/1 | /proc/$BASHPID) continue ;; esac
    echo "left over: $(tr '\0' ' ' 2>/dev/null <"$p/cmdline")"
  done
}
