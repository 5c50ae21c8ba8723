rockspec_format = "3.0"
package = "perigee"
version = "scm-1"
source = { url = "git+https://example.org/perigee.git" }
description = {
  summary = "Lua-scriptable process groups: collectives, point to point, backends written in Lua",
  license = "MIT",
}
dependencies = { "lua >= 5.4, < 5.5" }
external_dependencies = { LIBUV = { header = "uv.h", library = "uv" } }
build = {
  type = "cmake",
  variables = {
    CMAKE_BUILD_TYPE = "Release",
    CMAKE_INSTALL_PREFIX = "$(PREFIX)",
    PERIGEE_TESTS = "OFF",
    PERIGEE_INSTALL_CMOD = "$(LIBDIR)",
    PERIGEE_INSTALL_LMOD = "$(LUADIR)",
  },
}
test = { type = "busted" }
