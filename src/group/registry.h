/*
 * Backends by name, and stack strings: "log(fp16(native))" -> log, fp16, native.
 *
 * An entry is reference-counted: groups that opened a layer of it keep it while a newer one of the same name replaces it for
 * later groups. Thread-safety: any thread; one lock (rank REGISTRY), not held while a backend's own functions run.
 */
#ifndef PERIGEE_GROUP_REGISTRY_H
#define PERIGEE_GROUP_REGISTRY_H

#include <perigee/backend.h>

enum {
  PERIGEE_NAME_MAX = 63,
  PERIGEE_LAYERS_MAX = 32
};

typedef struct perigee__backend {
  _Atomic uint32_t refs;
  char name[PERIGEE_NAME_MAX + 1];
  char *inner; /* default stack below, NULL for a bottom */
  perigee_backend_ops_v1 ops;
  void *self;
  struct perigee__backend *next;
} perigee__backend;

/** Entry by name with one more reference; looks for a plug-in when it is not known. EINVAL, ENOENT, or what loading it said. */
PERIGEE_MUST_CHECK int perigee__backend_find(const char *name, perigee__backend **backend_p);
void perigee__backend_unref(perigee__backend *backend);
/** Whether the text can be the name of a backend. */
bool perigee__backend_name_is_good(const char *name);

/** The layers of a stack string, outermost first, default inner stacks filled in, down to a bottom. Each referenced once more. */
PERIGEE_MUST_CHECK int perigee__stack_parse(const char *stack,
                                            perigee__backend *layers[PERIGEE_LAYERS_MAX], int *n_p);

/** Register the built-in backends once. */
void perigee__backends_builtin(void);

#endif
