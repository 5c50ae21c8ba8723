#include "group/registry.h"

#include <ctype.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/thread.h"
#include "group/fake.h"
#include "group/native.h"
#include "group/plugin.h"

static perigee_mutex mutex = PERIGEE_MUTEX_INIT(PERIGEE_LOCK_REGISTRY, "registry");
static perigee__backend *entries; /* under mutex */

static bool name_is_good(const char *name, size_t len) {
  if (len == 0 || len > PERIGEE_NAME_MAX)
    return false;
  for (size_t i = 0; i < len; i++)
    if (!isalnum((unsigned char)name[i]) && name[i] != '_' && name[i] != '-')
      return false;
  return true;
}

bool perigee__backend_name_is_good(const char *name) { return name_is_good(name, strlen(name)); }

static int fail_name(const char *name) {
  return perigee__fail(PERIGEE_EINVAL,
                       "backend name '%s': 1 to %d letters, digits, '_' or '-' expected",
                       name != NULL ? name : "NULL", PERIGEE_NAME_MAX);
}

void perigee__backend_unref(perigee__backend *backend) {
  if (backend == NULL || atomic_fetch_sub_explicit(&backend->refs, 1, memory_order_acq_rel) != 1)
    return;
  if (backend->ops.drop != NULL)
    backend->ops.drop(backend->self);
  free(backend->inner);
  free(backend);
}

int perigee_backend_register(const char *name, const char *default_inner,
                             const perigee_backend_ops_v1 *ops, void *self) {
  if (name == NULL || !name_is_good(name, strlen(name)))
    return fail_name(name);
  /* `run` and what follows may be missing from a maker's struct. */
  if (ops == NULL || ops->abi != PERIGEE_BACKEND_ABI ||
      ops->size < offsetof(perigee_backend_ops_v1, run) || ops->open == NULL ||
      ops->close == NULL || ops->submit == NULL)
    return perigee__fail(PERIGEE_EINVAL,
                         "backend '%s': abi %d with open, close and submit expected", name,
                         PERIGEE_BACKEND_ABI);
  perigee__backend *backend = perigee__calloc(1, sizeof(*backend));
  if (backend == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for backend '%s'", name);
  atomic_init(&backend->refs, 1);
  snprintf(backend->name, sizeof(backend->name), "%s", name);
  if (default_inner != NULL && (backend->inner = perigee__strdup(default_inner)) == NULL) {
    free(backend);
    return perigee__fail(PERIGEE_ENOMEM, "no memory for backend '%s'", name);
  }
  /* A maker that knows fewer slots than we do leaves the rest NULL. */
  size_t known = ops->size < sizeof(*ops) ? ops->size : sizeof(*ops);
  memcpy(&backend->ops, ops, known);
  backend->self = self;

  perigee__lock(&mutex);
  perigee__backend **at = &entries, *old = NULL;
  while (*at != NULL && strcmp((*at)->name, name) != 0)
    at = &(*at)->next;
  if (*at != NULL) {
    old = *at;
    backend->next = old->next;
  }
  *at = backend;
  perigee__unlock(&mutex);
  perigee__backend_unref(old);
  return 0;
}

static perigee__backend *find_registered(const char *name) {
  perigee__lock(&mutex);
  perigee__backend *found = entries;
  while (found != NULL && strcmp(found->name, name) != 0)
    found = found->next;
  if (found != NULL)
    atomic_fetch_add_explicit(&found->refs, 1, memory_order_relaxed);
  perigee__unlock(&mutex);
  return found;
}

static int fail_unknown(const char *name) {
  char places[300];
  perigee__plugin_places(places, sizeof(places));
  return perigee__fail(PERIGEE_ENOENT, "there is no backend '%s' (nor a perigee_%s.so in %s)", name,
                       name, places);
}

int perigee__backend_find(const char *name, perigee__backend **backend_p) {
  perigee__backends_builtin();
  if (!name_is_good(name, strlen(name)))
    return fail_name(name);
  perigee__backend *found = find_registered(name);
  if (found == NULL) {
    int rc = perigee__plugin_find(name);
    if (rc < 0 && rc != PERIGEE_ENOENT)
      return rc;
    found = find_registered(name);
  }
  if (found == NULL)
    return fail_unknown(name);
  *backend_p = found;
  return 0;
}

bool perigee_backend_exists(const char *name) {
  perigee__backends_builtin();
  perigee__backend *found = find_registered(name);
  perigee__backend_unref(found);
  return found != NULL;
}

/* Append the layers of `text` to layers[*n_p...]; no trailing text may be left but `closers` parentheses. */
static int parse_into(const char *text, perigee__backend **layers, int *n_p) {
  const char *at = text;
  int open = 0;
  for (;;) {
    while (*at == ' ')
      at++;
    size_t len = strcspn(at, "() ");
    char name[PERIGEE_NAME_MAX + 1];
    if (!name_is_good(at, len))
      return perigee__fail(PERIGEE_EINVAL, "stack '%s': a backend's name is expected at '%s'", text,
                           at);
    if (*n_p == PERIGEE_LAYERS_MAX)
      return perigee__fail(PERIGEE_ELIMIT, "stack '%s': more than %d layers", text,
                           PERIGEE_LAYERS_MAX);
    memcpy(name, at, len);
    name[len] = '\0';
    PERIGEE_TRY(perigee__backend_find(name, &layers[*n_p]));
    (*n_p)++;
    at += len;
    while (*at == ' ')
      at++;
    if (*at != '(')
      break;
    open++;
    at++;
  }
  for (; open > 0 && *at == ')'; open--) {
    at++;
    while (*at == ' ')
      at++;
  }
  if (open > 0 || *at != '\0')
    return perigee__fail(PERIGEE_EINVAL, "stack '%s': %s", text,
                         open > 0 ? "a ')' is missing" : "text behind the last ')'");
  return 0;
}

int perigee__stack_parse(const char *stack, perigee__backend *layers[PERIGEE_LAYERS_MAX],
                         int *n_p) {
  int n = 0;
  int rc = parse_into(stack, layers, &n);
  /* The innermost one named may itself stand for a stack; a cycle of defaults runs into the limit. */
  while (rc == 0 && layers[n - 1]->inner != NULL)
    rc = parse_into(layers[n - 1]->inner, layers, &n);
  if (rc == 0)
    for (int i = 0; i + 1 < n; i++)
      if (layers[i]->inner == NULL) {
        rc = perigee__fail(PERIGEE_EINVAL, "stack '%s': nothing can stand below '%s'", stack,
                           layers[i]->name);
        break;
      }
  if (rc < 0) {
    for (int i = 0; i < n; i++)
      perigee__backend_unref(layers[i]);
    return rc;
  }
  *n_p = n;
  return 0;
}

static void register_builtin(void) {
  /* Cannot fail but for memory; a group that needs one then says that it is not there. */
  perigee__error_set_op_namer(perigee_op_name);
  if (perigee_backend_register("native", NULL, &perigee__native_ops, NULL) < 0 ||
      perigee_backend_register("fake", NULL, &perigee__fake_ops, NULL) < 0)
    return;
}

void perigee__backends_builtin(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, register_builtin);
}
