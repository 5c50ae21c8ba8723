#include "host/hook_log.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "host/lerror.h"

enum {
  ERRORS_KEPT = 16 /* until they are reported; more are counted */
};

struct perigee__hook_log {
  _Atomic uint32_t refs; /* the group object, and each hook */
  uint64_t count;
  int nkept;
  perigee_error *kept[ERRORS_KEPT]; /* owned, oldest first */
};

static void clear(perigee__hook_log *log) {
  for (int i = 0; i < log->nkept; i++)
    free(log->kept[i]);
  log->nkept = 0;
  log->count = 0;
}

perigee__hook_log *perigee__hook_log_create(void) {
  perigee__hook_log *log = calloc(1, sizeof(*log));
  if (log != NULL)
    atomic_init(&log->refs, 1);
  return log;
}

perigee__hook_log *perigee__hook_log_ref(perigee__hook_log *log) {
  atomic_fetch_add_explicit(&log->refs, 1, memory_order_relaxed);
  return log;
}

void perigee__hook_log_unref(perigee__hook_log *log) {
  /* acq_rel: the last one sees what the others wrote */
  if (log == NULL || atomic_fetch_sub_explicit(&log->refs, 1, memory_order_acq_rel) != 1)
    return;
  clear(log);
  free(log);
}

void perigee__hook_log_keep(perigee__hook_log *log, const perigee_error *error) {
  log->count++;
  if (log->nkept == ERRORS_KEPT)
    return;
  perigee_error *kept = malloc(sizeof(*kept));
  if (kept != NULL) {
    *kept = *error;
    log->kept[log->nkept++] = kept;
  }
}

void perigee__hook_log_raise(lua_State *L, perigee__hook_log *log) {
  if (log == NULL || log->count == 0)
    return;
  perigee_error first;
  perigee__error_set(&first, PERIGEE_ENOMEM, "an error that there was no memory to keep");
  if (log->nkept > 0)
    first = *log->kept[0];
  if (log->count > 1) {
    char text[sizeof(first.message)];
    snprintf(text, sizeof(text), "%" PRIu64 " errors in hooks, the first: %.400s", log->count,
             first.message);
    memcpy(first.message, text, sizeof(text));
  }
  perigee__error_push(L, &first);
  lua_pushinteger(L, (lua_Integer)log->count);
  lua_setfield(L, -2, "count");
  lua_createtable(L, log->nkept, 0);
  for (int i = 0; i < log->nkept; i++) {
    perigee__error_push(L, log->kept[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "errors");
  clear(log);
  lua_error(L);
}
