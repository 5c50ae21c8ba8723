/* A plug-in that cannot work here. */
#include <perigee/perigee.h>

static int init(const char *name) {
  (void)name;
  return PERIGEE_ENOTSUP;
}

PERIGEE_PLUGIN(.init = init);
