/* A plug-in that cannot work here. */
#include <perigee/perigee.h>

static int init(const char *name) {
  (void)name;
  return perigee_error_fail(PERIGEE_ENOTSUP, "not here");
}

PERIGEE_PLUGIN(.init = init);
