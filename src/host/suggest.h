/* "did you mean": the nearest of a few names. */
#ifndef PERIGEE_HOST_SUGGEST_H
#define PERIGEE_HOST_SUGGEST_H

#include <stddef.h>

/** Edits (insert, delete, replace, swap of neighbours) from a to b, at most `limit` + 1. */
int perigee__edit_distance(const char *a, const char *b, int limit);
/** Nearest of the NULL-terminated names, upper case and '_' not counted, or NULL when none is near enough. */
const char *perigee__nearest(const char *name, const char *const *names);
/** " (did you mean 'x'?)" into buf, or "". Returns buf. */
const char *perigee__did_you_mean(const char *name, const char *const *names, char *buf,
                                  size_t size);

#endif
