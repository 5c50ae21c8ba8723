#!/usr/bin/env bash
# Install what is needed, build, and run or test Perigee. Made for Debian 12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=cmake/packages.sh
. cmake/packages.sh

usage() {
  cat <<'TEXT'
Usage: ./setup.sh demo | build | test [--full]

  demo         build, then train a small network on 4 ranks
  build        install the packages that are missing, build into build/
  test         build, then run all tests
  test --full  also over several network namespaces, and with sanitizers, other compilers, tiny buffers, valgrind and
               fuzzers (half an hour)
TEXT
}

say() { printf '\n==> %s\n' "$*"; }

test_packages=(libcmocka-dev lua-busted lua-check lua-luv clang-format)
full_packages=(clang libclang-rt-14-dev valgrind iproute2)

# configure_and_build FOLDER CMAKE_OPTION...
configure_and_build() {
  local folder=$1
  shift
  # A cache that came from another place (a copied tree) cannot be used.
  if [ -f "$folder/CMakeCache.txt" ] &&
    ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$folder/CMakeCache.txt"; then
    rm -rf "$folder"
  fi
  cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release "$@" >"$folder.log" 2>&1 || {
    cat "$folder.log"
    rm -f "$folder.log"
    return 1
  }
  rm -f "$folder.log"
  cmake --build "$folder"
}

# run_tests FOLDER CTEST_OPTION...
run_tests() {
  local folder=$1
  shift
  ctest --test-dir "$folder" --output-on-failure --no-label-summary --no-tests=error --timeout 180 "$@"
}

build() {
  need "${build_packages[@]}"
  say "building"
  configure_and_build build "$@"
}

demo() {
  build -DPERIGEE_TESTS=OFF
  say "build/perigee run -n 4 examples/digits.lua"
  build/perigee run -n 4 examples/digits.lua
}

quick_test() {
  need "${build_packages[@]}" "${test_packages[@]}"
  build -DPERIGEE_TESTS=ON
  say "testing"
  run_tests build
}

# ---- the long ladder: every rung is tried, the failed ones are named at the end ------------------

# Hosts are network namespaces. Where those are refused nothing is proved: the rung has failed.
net_rung() {
  local why
  configure_and_build build -DPERIGEE_TESTS=ON
  why=$(unshare --map-root-user --net --mount --pid --fork ip link set lo up 2>&1) || {
    echo "not run: this machine refuses network namespaces ($why)"
    return 1
  }
  run_tests build -C net -L '^net$'
}

asan_rung() {
  configure_and_build build-asan -DPERIGEE_SANITIZE=address,undefined -DPERIGEE_DEBUG=ON
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 run_tests build-asan -LE lint
}

tsan_rung() {
  CC=clang configure_and_build build-tsan -DPERIGEE_SANITIZE=thread -DPERIGEE_DEBUG=ON
  # without address randomisation: clang 14 does not know the wide layout of recent kernels
  TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1 setarch -R \
    ctest --test-dir build-tsan --output-on-failure --no-label-summary --timeout 600 -L '^c$'
}

clang_rung() {
  CC=clang configure_and_build build-clang -DPERIGEE_DEBUG=ON
  run_tests build-clang -LE lint
}

hostile_rung() {
  configure_and_build build-hostile -DPERIGEE_HOSTILE=ON -DPERIGEE_DEBUG=ON
  # two specs are about buffers of the usual size: rules for what fits them, memory at rest
  run_tests build-hostile -LE lint -E 'spec\.(cli\.tune|host\.lean)$'
}

valgrind_rung() {
  local program script status=0
  # leaks are the address sanitizer's part
  local check=(valgrind -q --error-exitcode=99 --fair-sched=yes)
  configure_and_build build-debug -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG="-O1 -g"
  for program in build-debug/*_test; do
    case "$program" in
      # these promise times, which no program keeps fifty times slower
      */coll_net_process_test | */group_native_call_test | */group_native_queue_test | */store_store_tcp_life_test) continue ;;
      # valgrind does not grow the main thread's stack by the page that its signal needs
      */host_watch_test) continue ;;
      # valgrind rounds the long doubles that this one compares
      */tensor_whole_test) continue ;;
    esac
    echo "valgrind $program"
    timeout 600 "${check[@]}" "$program" >build-debug/valgrind.log 2>&1 || {
      cat build-debug/valgrind.log
      status=1
    }
  done
  for script in examples/*.lua; do
    echo "valgrind $script"
    timeout 600 build-debug/perigee run -n 2 "${check[@]}" build-debug/perigee lua "$script" \
      >build-debug/valgrind.log 2>&1 || {
      cat build-debug/valgrind.log
      status=1
    }
  done
  return $status
}

fuzz_rung() {
  local source name status=0
  mkdir -p build-fuzz
  CC=clang configure_and_build build-fuzz -DPERIGEE_FUZZ=ON -DPERIGEE_SANITIZE=address,undefined \
    -DPERIGEE_TESTS=OFF
  for source in spec/fuzz/fuzz_*.c; do
    [ -e "$source" ] || continue
    name=$(basename "$source" .c)
    mkdir -p "build-fuzz/found/$name"
    echo "$name"
    # new inputs go to the first folder; the corpus is only read
    UBSAN_OPTIONS=halt_on_error=1 "build-fuzz/$name" -max_total_time=30 -rss_limit_mb=1024 -timeout=10 -print_final_stats=1 \
      -artifact_prefix="build-fuzz/found/$name-" "build-fuzz/found/$name" \
      "spec/fuzz/corpus/${name#fuzz_}" >"build-fuzz/$name.log" 2>&1 || {
      tail -n 60 "build-fuzz/$name.log"
      status=1
    }
  done
  return $status
}

full_test() {
  local rung failed=()
  need "${build_packages[@]}" "${test_packages[@]}" "${full_packages[@]}"
  for rung in quick_test net_rung asan_rung tsan_rung clang_rung hostile_rung valgrind_rung fuzz_rung; do
    say "$rung"
    # a shell of its own: `set -e` is off inside a condition
    if ./setup.sh --rung "$rung"; then
      echo "$rung: passed"
    else
      echo "$rung: FAILED"
      failed+=("$rung")
    fi
  done
  say "${#failed[@]} rungs failed ${failed[*]-}"
  [ ${#failed[@]} -eq 0 ]
}

case "${1-}:${2-}" in
  demo:) demo ;;
  build:) build -DPERIGEE_TESTS=OFF ;;
  test:) quick_test ;;
  test:--full) full_test ;;
  --rung:?*) "$2" ;;
  --help: | -h:) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
