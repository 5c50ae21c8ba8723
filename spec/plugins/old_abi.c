/* A plug-in of another time. */
#include <perigee/perigee.h>

PERIGEE_API extern const perigee_plugin perigee_plugin_v1;
const perigee_plugin perigee_plugin_v1 = {.size = sizeof(perigee_plugin), .abi = 99};
