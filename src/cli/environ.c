#include "cli/environ.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"

static int no_memory(void) {
  return perigee__fail(PERIGEE_ENOMEM, "no memory for the environment");
}

/* Index of the variable with this name (name ends at '=' or '\0'), -1 none. */
static int find(const perigee__environ *env, const char *name) {
  size_t len = strcspn(name, "=");
  for (int i = 0; i < env->n; i++)
    if (strncmp(env->vars[i], name, len) == 0 && env->vars[i][len] == '=')
      return i;
  return -1;
}

/* Takes var. */
static int append(perigee__environ *env, char *var) {
  if (var == NULL)
    return no_memory();
  if (env->n + 1 >= env->capacity) {
    int capacity = env->capacity == 0 ? 64 : env->capacity * 2;
    char **vars = realloc(env->vars, (size_t)capacity * sizeof(*vars));
    if (vars == NULL) {
      free(var);
      return no_memory();
    }
    env->vars = vars;
    env->capacity = capacity;
  }
  env->vars[env->n++] = var;
  env->vars[env->n] = NULL;
  return 0;
}

int perigee__environ_init(perigee__environ *env, char *const *base) {
  *env = (perigee__environ){0};
  for (; *base != NULL; base++) {
    int rc = append(env, perigee__strdup(*base));
    if (rc < 0) {
      perigee__environ_fini(env);
      return rc;
    }
  }
  return 0;
}

int perigee__environ_put(perigee__environ *env, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  char *var;
  int len = vasprintf(&var, fmt, ap);
  va_end(ap);
  if (len < 0)
    return no_memory();
  int at = find(env, var);
  if (at < 0)
    return append(env, var);
  free(env->vars[at]);
  env->vars[at] = var;
  return 0;
}

void perigee__environ_drop(perigee__environ *env, const char *name) {
  int at = find(env, name);
  if (at < 0)
    return;
  free(env->vars[at]);
  env->vars[at] = env->vars[--env->n];
  env->vars[env->n] = NULL;
}

void perigee__environ_fini(perigee__environ *env) {
  for (int i = 0; i < env->n; i++)
    free(env->vars[i]);
  free(env->vars);
  *env = (perigee__environ){0};
}
