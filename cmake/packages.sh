# shellcheck shell=bash
# Sourced by setup.sh and the scripts of bench/.

build_packages=(build-essential cmake ninja-build pkg-config lua5.4 liblua5.4-dev libuv1-dev)

# need PACKAGE...: installs those that are missing; when none is, no network is needed.
need() {
  local missing=() package sudo=() self
  self=$(basename "$0")
  if ! command -v apt-get >/dev/null; then
    echo "$self: no apt-get here; it is up to you to have: $*" >&2
    return 0
  fi
  for package in "$@"; do
    dpkg -s "$package" 2>/dev/null | grep -q '^Status: .* installed$' || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  echo "$self: installing ${missing[*]}" >&2
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get -o Acquire::Retries=3 -qq update >&2
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=3 -qq -y \
    --no-install-recommends install "${missing[@]}" >&2
}
