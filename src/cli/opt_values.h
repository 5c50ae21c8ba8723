/* What the subcommands' options have in common: their values, and walking through them. */
#ifndef PERIGEE_CLI_OPT_VALUES_H
#define PERIGEE_CLI_OPT_VALUES_H

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/attr.h"

enum {
  PERIGEE__RANKS_MAX = 4096 /* of one node */
};

/* Errors: EINVAL naming the option and its value, ENOMEM. Outputs set on success only. */

PERIGEE_MUST_CHECK int perigee__int_parse(const char *option, const char *text, int min, int max,
                                          int *value_p);
/** what: of which it is a number, for the text ("number of seconds"). zero: allowed. */
PERIGEE_MUST_CHECK int perigee__number_parse(const char *option, const char *text, const char *what,
                                             bool zero, double *value_p);
/** "8", "64K", "1.5M", "2G" (powers of 1024) as bytes. */
PERIGEE_MUST_CHECK int perigee__bytes_parse(const char *option, const char *text, size_t *bytes_p);
/** -n: a number of ranks, or "auto" for as many as there are usable cores. */
PERIGEE_MUST_CHECK int perigee__count_parse(const char *text, int *n_p);
/** One of names (ends with NULL). *index_p: which. */
PERIGEE_MUST_CHECK int perigee__name_parse(const char *option, const char *text,
                                           const char *const *names, int *index_p);

/** take, for each word between commas; its first error ends it. */
PERIGEE_MUST_CHECK int perigee__each_word(const char *text,
                                          int (*take)(const char *word, void *arg), void *arg);

/** Adds to a list that the caller owns; text is borrowed. */
PERIGEE_MUST_CHECK int perigee__texts_add(char ***list_p, int *n_p, char *text);
/** The same for -x: NAME=VALUE */
PERIGEE_MUST_CHECK int perigee__export_add(char ***list_p, int *n_p, char *text);

/** Before the first perigee__option_next. */
void perigee__options_start(void);
/** getopt_long. *option_p: -1 behind the last. shorts begins with ':', or with "+:" to stop at the first other word. */
PERIGEE_MUST_CHECK int perigee__option_next(int argc, char **argv, const char *shorts,
                                            const struct option *longs, int *option_p);

#endif
