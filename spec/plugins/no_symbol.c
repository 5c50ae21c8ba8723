/* A library, but no plug-in. */
#include <perigee/export.h>

PERIGEE_API extern const int something_else;
const int something_else = 1;
