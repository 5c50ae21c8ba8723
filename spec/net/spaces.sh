# shellcheck shell=bash
# Network namespaces that stand for hosts; each has its loopback device. Sourced by spec/net and bench/compare.sh.

add_space() { # name
  ip netns add "$1"
  ip -n "$1" link set lo up
}

drop_space() { # name: and what is plugged into it
  ip netns del "$1" 2>/dev/null || true
}

# A cable between two: veth0 in both.
join_spaces() { # name address name address
  ip link add veth0 netns "$1" type veth peer name veth0 netns "$3"
  ip -n "$1" addr add "$2/24" dev veth0
  ip -n "$3" addr add "$4/24" dev veth0
  ip -n "$1" link set veth0 up
  ip -n "$3" link set veth0 up
}

# A cable from each to a switch, which is a bridge in the namespace of the caller: veth0 in each.
switch_spaces() { # name address [name address]...
  local port=0
  ip link add switch0 type bridge
  ip link set switch0 up
  while [ $# -gt 0 ]; do
    ip link add "port$port" type veth peer name veth0 netns "$1"
    ip link set "port$port" master switch0 up
    ip -n "$1" addr add "$2/24" dev veth0
    ip -n "$1" link set veth0 up
    port=$((port + 1))
    shift 2
  done
}

# What leaves the namespace takes its time.
limit_space() { # name rate
  ip netns exec "$1" tc qdisc add dev veth0 root tbf rate "$2" burst 1mb latency 50ms
}
