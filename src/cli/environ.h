/* Environments for programs to be started. */
#ifndef PERIGEE_CLI_ENVIRON_H
#define PERIGEE_CLI_ENVIRON_H

#include "base/attr.h"

/** An environment under construction. Strings are owned. */
typedef struct perigee__environ {
  char **vars; /* NULL-terminated: what execve takes */
  int n, capacity;
} perigee__environ;

/** A copy of base (NULL-terminated). */
PERIGEE_MUST_CHECK int perigee__environ_init(perigee__environ *env, char *const *base);
/** "NAME=VALUE"; replaces what NAME was. */
PERIGEE_MUST_CHECK int perigee__environ_put(perigee__environ *env, const char *fmt, ...)
    PERIGEE_PRINTF(2, 3);
void perigee__environ_drop(perigee__environ *env, const char *name);
void perigee__environ_fini(perigee__environ *env);

#endif
