/*
 * Plug-ins: backends written in C, in shared libraries that are found by name.
 *
 * A plug-in named `count` is a file perigee_count.so with one PERIGEE_PLUGIN in it (from perigee/perigee.h, as all it needs):
 *
 *   static const perigee_backend_ops_v1 ops = {
 *       .size = sizeof(ops), .abi = PERIGEE_BACKEND_ABI, .open = ..., .close = ..., .submit = ...};
 *   PERIGEE_PLUGIN(.default_inner = "native", .ops = &ops);
 *
 *   cc -shared -fPIC $(pkg-config --cflags perigee) count.c -o perigee_count.so
 *
 * Do not link it with libperigee: the process that loads it has Perigee in it already (a program's libperigee, the perigee command, or
 * the module of a lua5.4), and a second copy would be another world. A program that links libperigee.a must export the library's
 * functions (-rdynamic).
 *
 * Who loads it: a stack that names a backend which nobody has registered, "count(native)", from C, from Lua
 * (perigee.init{backend = "count(native)"}) or from PERIGEE_BACKEND; perigee_backend_load; perigee.load_backend in Lua.
 * Where it is looked for: in the folders of PERIGEE_BACKEND_PATH (separated by ':'; empty ones are skipped), then in the folder that
 * the library was built to be installed with (<prefix>/lib/perigee). Never in the current folder, unless it is in PERIGEE_BACKEND_PATH.
 * A plug-in stays loaded until the process ends. examples/plugin/ has a complete one.
 */
#ifndef PERIGEE_PLUGIN_H
#define PERIGEE_PLUGIN_H

#include <stdint.h>

#include "backend.h"
#include "export.h"

/** What a plug-in says about itself. Grows at the end only; `size` tells what the maker knew. */
typedef struct perigee_plugin {
  uint32_t size; /* sizeof(perigee_plugin) */
  uint32_t abi;  /* PERIGEE_BACKEND_ABI of the headers it was made with */
  /** As in perigee_backend_register: it is registered under the name of its file. ops NULL: init registers. */
  const char *default_inner;
  const perigee_backend_ops_v1 *ops;
  void *backend;
  /** Called once after loading and before the registration, with the name of the file ("count"). May be NULL. Returns 0 or an
   *  error, which refuses the plug-in; it may register more backends. It must not wait. No locks. */
  int (*init)(const char *name);
} perigee_plugin;

/** Once per plug-in, at file scope: fields of perigee_plugin. */
#define PERIGEE_PLUGIN(...)                                                                        \
  PERIGEE_API extern const perigee_plugin perigee_plugin_v1;                                       \
  const perigee_plugin perigee_plugin_v1 = {                                                       \
      .size = sizeof(perigee_plugin), .abi = PERIGEE_BACKEND_ABI, __VA_ARGS__}

/**
 * Load a plug-in and register its backends; does nothing when a backend of that name is known.
 * what: a name ("count"), which is looked for as above; or a path, which has a '/' in it and ends in perigee_<name>.so: then it is loaded
 *   from there, and replaces a backend of the same name for groups opened later.
 * Threads: any. Cost: reads files.
 * Errors:  ENOENT no such file (the message names the places), EINVAL not a library, not a plug-in, a bad name or incomplete ops,
 *          EVERSION made for another ABI, or what its init returned.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_backend_load(const char *what);

#endif
