/* A plug-in that needs what this library does not have. */
#include <perigee/perigee.h>

extern int perigee_of_the_future(const char *name);

PERIGEE_PLUGIN(.init = perigee_of_the_future);
