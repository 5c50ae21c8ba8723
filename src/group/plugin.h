/* Plug-ins: include/perigee/plugin.h says what they are. */
#ifndef PERIGEE_GROUP_PLUGIN_H
#define PERIGEE_GROUP_PLUGIN_H

#include <stddef.h>

#include <perigee/plugin.h>

/** Look for perigee_<name>.so and load it. 0 loaded, ENOENT (no message) not found, or an error. No lock held. */
PERIGEE_MUST_CHECK int perigee__plugin_find(const char *name);
/** The places that are looked at: "/a, /b". */
void perigee__plugin_places(char *text, size_t size);

#endif
