#include "cli/words.h"

#include <stdlib.h>

#include "base/alloc.h"

void perigee__words_put(perigee__words *w, char *word) {
  char **more = w->failed ? NULL : realloc(w->v, (w->n + 2) * sizeof(*more));
  if (word == NULL || more == NULL) {
    w->failed = true;
    free(word);
    return;
  }
  w->v = more;
  more[w->n++] = word;
  more[w->n] = NULL;
}

void perigee__words_put_option(perigee__words *w, const char *option, const char *value) {
  if (value != NULL) {
    perigee__words_put(w, perigee__strdup(option));
    perigee__words_put(w, perigee__strdup(value));
  }
}

void perigee__words_put_pair(perigee__words *w, const char *key, const char *value) {
  if (value != NULL)
    perigee__words_put(w, perigee__format("%s=%s", key, value));
}

void perigee__words_put_number(perigee__words *w, const char *key, int value) {
  perigee__words_put(w, perigee__format("%s=%d", key, value));
}

void perigee__words_fini(perigee__words *w) {
  for (size_t i = 0; i < w->n; i++)
    free(w->v[i]);
  free(w->v);
}
