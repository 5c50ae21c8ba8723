#include "base/env.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"

static const perigee__env_entry table[] = {
#define XX(_name, _fallback, _help) {#_name, _fallback, _help},
    PERIGEE_ENV_MAP(XX)
#undef XX
        {NULL, NULL, NULL}};

const perigee__env_entry *perigee__env_table(void) { return table; }

static const perigee__env_entry *entry_of(const char *name) {
  for (const perigee__env_entry *e = table; e->name != NULL; e++)
    if (strcmp(e->name, name) == 0)
      return e;
  PERIGEE_BUG("%s is not in the table of variables", name);
}

const char *perigee__env(const char *name) {
  const perigee__env_entry *e = entry_of(name);
  const char *value = getenv(name);
  return value != NULL && value[0] != '\0' ? value : e->fallback;
}

int64_t perigee__env_int(const char *name, int64_t min, int64_t max) {
  const perigee__env_entry *e = entry_of(name);
  const char *text = perigee__env(name);
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (errno != 0 || *end != '\0' || value < min || value > max) {
    perigee__log(PERIGEE_LOG_WARN, "%s=%s is not a number from %lld to %lld: using %s", name, text,
                 (long long)min, (long long)max, e->fallback);
    value = strtoll(e->fallback, NULL, 10);
  }
  return value;
}

int64_t perigee__env_seconds(const char *name) {
  const perigee__env_entry *e = entry_of(name);
  const char *text = perigee__env(name);
  char *end;
  double value = strtod(text, &end);
  if (*end != '\0' || !(value > 0)) {
    perigee__log(PERIGEE_LOG_WARN, "%s=%s is not a number of seconds: using %s", name, text,
                 e->fallback);
    value = strtod(e->fallback, NULL);
  }
  return value >= 9e9 ? PERIGEE_NEVER : (int64_t)(value * 1e9);
}
