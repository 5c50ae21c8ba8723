#include "cli/opt_values.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/futex.h"

int perigee__int_parse(const char *option, const char *text, int min, int max, int *value_p) {
  char *end;
  errno = 0;
  long value = strtol(text, &end, 10);
  if (errno != 0 || end == text || *end != '\0' || value < min || value > max)
    return perigee__fail(PERIGEE_EINVAL, "%s '%s' is not a whole number from %d to %d", option,
                         text, min, max);
  *value_p = (int)value;
  return 0;
}

int perigee__number_parse(const char *option, const char *text, const char *what, bool zero,
                          double *value_p) {
  char *end;
  double value = strtod(text, &end);
  if (end == text || *end != '\0' || !(value >= 0) || (!zero && value == 0) || value > 1e9)
    return perigee__fail(PERIGEE_EINVAL, "%s '%s' is not a %s%s", option, text, what,
                         zero ? "" : " above 0");
  *value_p = value;
  return 0;
}

int perigee__bytes_parse(const char *option, const char *text, size_t *bytes_p) {
  static const char units[] = "KMG";
  char *end;
  double value = strtod(text, &end);
  double scale = 1;
  const char *unit = *end != '\0' ? strchr(units, *end & ~0x20) : NULL;
  if (unit != NULL) {
    for (const char *u = units; u <= unit; u++)
      scale *= 1024;
    end++;
    if (strcmp(end, "B") == 0 || strcmp(end, "iB") == 0)
      end += strlen(end);
  }
  if (end == text || *end != '\0' || !(value * scale >= 1) || value * scale > 1e12)
    return perigee__fail(PERIGEE_EINVAL, "%s '%s' is not a size such as 8, 64K or 16M", option,
                         text);
  *bytes_p = (size_t)(value * scale);
  return 0;
}

int perigee__each_word(const char *text, int (*take)(const char *word, void *arg), void *arg) {
  char *copy = perigee__strdup(text), *rest = copy;
  if (copy == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for '%s'", text);
  int rc = 0;
  for (char *word; rc == 0 && (word = strsep(&rest, ",")) != NULL;)
    rc = take(word, arg);
  free(copy);
  return rc;
}

int perigee__count_parse(const char *text, int *n_p) {
  if (strcmp(text, "auto") == 0) {
    *n_p = perigee__usable_cores();
    return 0;
  }
  if (perigee__int_parse("-n", text, 1, PERIGEE__RANKS_MAX, n_p) < 0)
    return perigee__fail(PERIGEE_EINVAL,
                         "-n '%s' is neither 'auto' nor a whole number from 1 to %d", text,
                         PERIGEE__RANKS_MAX);
  return 0;
}

int perigee__name_parse(const char *option, const char *text, const char *const *names,
                        int *index_p) {
  char all[128] = "";
  size_t used = 0;
  for (int i = 0; names[i] != NULL; i++) {
    if (strcmp(text, names[i]) == 0) {
      *index_p = i;
      return 0;
    }
    if (used < sizeof(all))
      used += (size_t)snprintf(all + used, sizeof(all) - used, "%s%s", i > 0 ? ", " : "", names[i]);
  }
  return perigee__fail(PERIGEE_EINVAL, "%s '%s' is none of %s", option, text, all);
}

int perigee__texts_add(char ***list_p, int *n_p, char *text) {
  char **more = realloc(*list_p, ((size_t)*n_p + 1) * sizeof(*more));
  if (more == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for '%s'", text);
  *list_p = more;
  more[(*n_p)++] = text;
  return 0;
}

int perigee__export_add(char ***list_p, int *n_p, char *text) {
  const char *equals = strchr(text, '=');
  if (equals == NULL || equals == text)
    return perigee__fail(PERIGEE_EINVAL, "-x '%s' is not NAME=VALUE", text);
  return perigee__texts_add(list_p, n_p, text);
}

void perigee__options_start(void) {
  optind = 0; /* glibc: start afresh */
  opterr = 0;
}

int perigee__option_next(int argc, char **argv, const char *shorts, const struct option *longs,
                         int *option_p) {
  int option = getopt_long(argc, argv, shorts, longs, NULL);
  /* A letter of several (-ab) has not moved optind: it is known by itself. */
  if (option == '?' && optopt > 0 && optopt < 256 && strchr(shorts, optopt) == NULL)
    return perigee__fail(PERIGEE_EINVAL, "unknown option '-%c'", optopt);
  if (option == '?')
    return perigee__fail(PERIGEE_EINVAL, "unknown option '%s'", argv[optind - 1]);
  if (option == ':')
    return perigee__fail(PERIGEE_EINVAL, "option '%s' needs a value", argv[optind - 1]);
  *option_p = option;
  return 0;
}
