#include "group/plugin.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/env.h"
#include "base/error.h"
#include "group/registry.h"

#ifndef PERIGEE_BACKEND_DIR
#define PERIGEE_BACKEND_DIR ""
#endif

enum {
  PATH_ROOM = 4096
};

static const char prefix[] = "perigee_", suffix[] = ".so";

/*
 * lua5.4 loads C modules with RTLD_LOCAL: what a plug-in calls would not be found in the module that this code is part of. Does nothing
 * where the program itself or a library that it is linked with has the functions.
 */
static void export_ourselves(void) {
  Dl_info info;
  if (dladdr((const void *)&prefix, &info) != 0 && info.dli_fname != NULL) {
    void *self = dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL);
    (void)self; /* one more reference, for good */
  }
}

static int check_plugin(const perigee_plugin *plugin, const char *path) {
  if (plugin->abi != PERIGEE_BACKEND_ABI)
    return perigee__fail(PERIGEE_EVERSION,
                         "%s: made for version %u of the interface of backends, here it is %u",
                         path, plugin->abi, PERIGEE_BACKEND_ABI);
  if (plugin->size < sizeof(*plugin))
    return perigee__fail(PERIGEE_EVERSION, "%s: perigee_plugin.size is %u, at least %zu expected",
                         path, plugin->size, sizeof(*plugin));
  if (plugin->ops == NULL && plugin->init == NULL)
    return perigee__fail(PERIGEE_EINVAL, "%s: a plug-in needs ops or init", path);
  return 0;
}

static int register_plugin(const perigee_plugin *plugin, const char *name, const char *path) {
  int rc = plugin->init != NULL ? plugin->init(name) : 0;
  if (rc < 0) {
    perigee_error cause = *perigee_last_error();
    return perigee__fail(rc, "%s: its init failed: %s", path,
                         cause.code == rc && cause.message[0] != '\0' ? cause.message
                                                                      : perigee_strerror(rc));
  }
  if (plugin->ops != NULL)
    return perigee_backend_register(name, plugin->default_inner, plugin->ops, plugin->backend);
  if (!perigee_backend_exists(name))
    return perigee__fail(PERIGEE_EINVAL, "%s: its init did not register a backend '%s'", path,
                         name);
  return 0;
}

static int load_file(const char *path, const char *name) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, export_ourselves);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL)
    return perigee__fail(PERIGEE_EINVAL, "backend '%s' cannot be loaded: %s", name, dlerror());
  const perigee_plugin *plugin = dlsym(library, "perigee_plugin_v1");
  int rc =
      plugin != NULL
          ? check_plugin(plugin, path)
          : perigee__fail(PERIGEE_EINVAL,
                          "%s is no plug-in: it has no perigee_plugin_v1 (PERIGEE_PLUGIN)", path);
  if (rc < 0) {
    dlclose(library);
    return rc;
  }
  /* From here on it stays: groups may run its code until the process ends. */
  return register_plugin(plugin, name, path);
}

static bool is_file(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* 0 loaded, ENOENT (no message) it is not there. */
static int load_from(const char *folder, size_t folder_len, const char *name) {
  char path[PATH_ROOM];
  int len =
      snprintf(path, sizeof(path), "%.*s/%s%s%s", (int)folder_len, folder, prefix, name, suffix);
  if (len < 0 || (size_t)len >= sizeof(path) || !is_file(path))
    return PERIGEE_ENOENT;
  return load_file(path, name);
}

int perigee__plugin_find(const char *name) {
  for (const char *at = perigee__env("PERIGEE_BACKEND_PATH"); *at != '\0';) {
    size_t len = strcspn(at, ":");
    int rc = len > 0 ? load_from(at, len, name) : PERIGEE_ENOENT;
    if (rc != PERIGEE_ENOENT)
      return rc;
    at += at[len] == ':' ? len + 1 : len;
  }
  static const char installed[] = PERIGEE_BACKEND_DIR;
  return installed[0] != '\0' ? load_from(installed, strlen(installed), name) : PERIGEE_ENOENT;
}

void perigee__plugin_places(char *text, size_t size) {
  size_t used = 0;
  text[0] = '\0';
  for (const char *at = perigee__env("PERIGEE_BACKEND_PATH"); *at != '\0' && used < size;) {
    size_t len = strcspn(at, ":");
    if (len > 0)
      used += (size_t)snprintf(text + used, size - used, "%.*s, ", (int)len, at);
    at += at[len] == ':' ? len + 1 : len;
  }
  if (used < size)
    snprintf(text + used, size - used, "%s", PERIGEE_BACKEND_DIR);
}

/* "/a/perigee_count.so" -> "count". */
static int name_of_path(const char *path, char name[PERIGEE_NAME_MAX + 1]) {
  const char *file = strrchr(path, '/') + 1;
  size_t len = strlen(file), around = strlen(prefix) + strlen(suffix);
  if (len <= around || len - around > PERIGEE_NAME_MAX ||
      strncmp(file, prefix, strlen(prefix)) != 0 ||
      strcmp(file + len - strlen(suffix), suffix) != 0)
    return perigee__fail(PERIGEE_EINVAL, "'%s': a plug-in's file is called perigee_<name>.so",
                         path);
  snprintf(name, PERIGEE_NAME_MAX + 1, "%.*s", (int)(len - around), file + strlen(prefix));
  return 0;
}

int perigee_backend_load(const char *what) {
  if (what == NULL || what[0] == '\0')
    return perigee__fail(PERIGEE_EINVAL, "a plug-in's name or path is expected");
  if (strchr(what, '/') == NULL) {
    perigee__backend *found;
    PERIGEE_TRY(perigee__backend_find(what, &found));
    perigee__backend_unref(found);
    return 0;
  }
  char name[PERIGEE_NAME_MAX + 1];
  PERIGEE_TRY(name_of_path(what, name));
  perigee__backends_builtin();
  if (!is_file(what))
    return perigee__fail(PERIGEE_ENOENT, "there is no file %s", what);
  return load_file(what, name);
}
