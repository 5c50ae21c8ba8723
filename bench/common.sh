# shellcheck shell=bash
# Shared by the scripts of this folder, which run in the project's root.
# shellcheck source=cmake/packages.sh
. cmake/packages.sh

say() { echo "$(date +%T) $*" >&2; }

# build_release FOLDER CMAKE_OPTION...: Perigee as it is measured.
build_release() {
  local folder=$1
  shift
  need "${build_packages[@]}"
  { cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPERIGEE_TESTS=OFF "$@" &&
    cmake --build "$folder"; } >"$folder.log" 2>&1 || { cat "$folder.log" >&2 && exit 1; }
}
