/* Argument lists that are put together: for the launcher and for scripts, which take key=value. */
#ifndef PERIGEE_CLI_WORDS_H
#define PERIGEE_CLI_WORDS_H

#include <stdbool.h>
#include <stddef.h>

/** Strings are owned. Zeroed: empty. failed: memory was short; what was put since is lost. */
typedef struct perigee__words {
  char **v; /* NULL-terminated */
  size_t n;
  bool failed;
} perigee__words;

/** Takes the word; NULL: its maker had no memory. */
void perigee__words_put(perigee__words *w, char *word);
/** Nothing when value is NULL. */
void perigee__words_put_option(perigee__words *w, const char *option, const char *value);
void perigee__words_put_pair(perigee__words *w, const char *key, const char *value);
void perigee__words_put_number(perigee__words *w, const char *key, int value);
void perigee__words_fini(perigee__words *w);

#endif
