#include "cli/paths.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Given by the build: PERIGEE_BUILD_DIR, PERIGEE_LUA_DIR (source), PERIGEE_LUA_INSTALL_DIR. */

const char *perigee__exe_path(void) {
  static char path[PATH_MAX];
  if (path[0] == '\0') {
    ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
    if (n > 0)
      path[n] = '\0';
    else
      snprintf(path, sizeof(path), "perigee");
  }
  return path;
}

const char *perigee__lua_dir(void) {
  static char path[PATH_MAX + 32];
  if (path[0] != '\0')
    return path;
  const char *exe = perigee__exe_path();
  const char *slash = strrchr(exe, '/');
  int dir = slash == NULL ? 0 : (int)(slash - exe);
  if (strlen(PERIGEE_BUILD_DIR) == (size_t)dir && strncmp(exe, PERIGEE_BUILD_DIR, (size_t)dir) == 0)
    return PERIGEE_LUA_DIR;
  snprintf(path, sizeof(path), "%.*s/../share/lua/5.4/perigee/init.lua", dir, exe);
  if (access(path, R_OK) != 0)
    return strcpy(path, PERIGEE_LUA_INSTALL_DIR);
  path[strlen(path) - strlen("/perigee/init.lua")] = '\0';
  return path;
}
