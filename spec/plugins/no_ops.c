/* A plug-in that gives nothing. */
#include <perigee/perigee.h>

PERIGEE_PLUGIN(.ops = NULL);
