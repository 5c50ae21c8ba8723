/* The part of `perigee info` that shows which paths collectives take. */
#ifndef PERIGEE_CLI_INFO_PATHS_H
#define PERIGEE_CLI_INFO_PATHS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/attr.h"

/** What was asked. Strings are borrowed. */
typedef struct perigee__info_asked {
  int n;                 /* ranks on this machine */
  const char *transport; /* "auto", "shm", "tcp" */
  bool symmetric;
  const char *op; /* NULL: tables of all */
  size_t bytes;
} perigee__info_asked;

/** Whether ranks of one launcher can read each other's memory: two children try. */
bool perigee__info_cma(void);
/** One choice and why. Errors: EINVAL, and what is wrong with the rules of the environment. */
PERIGEE_MUST_CHECK int perigee__info_choice(const perigee__info_asked *asked);
/** Sizes and paths of every collective, for 2, 4 and 8 ranks, in shared memory and over TCP. */
PERIGEE_MUST_CHECK int perigee__info_tables(const perigee__info_asked *asked);
/** The rules in force, in the order in which they are asked. */
PERIGEE_MUST_CHECK int perigee__info_rules(void);
/** Read and explain a file of rules. Errors: EINVAL with the line and the word. */
PERIGEE_MUST_CHECK int perigee__info_file(const char *path);

#endif
