#include "host/suggest.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

enum {
  NAME_MAX_LEN = 48
};

static int min3(int a, int b, int c) {
  int m = a < b ? a : b;
  return m < c ? m : c;
}

int perigee__edit_distance(const char *a, const char *b, int limit) {
  int n = (int)strlen(a), m = (int)strlen(b);
  if (n > NAME_MAX_LEN || m > NAME_MAX_LEN || n - m > limit || m - n > limit)
    return limit + 1;
  /* Three rows of the table: one swap looks two rows back. */
  int rows[3][NAME_MAX_LEN + 1];
  for (int j = 0; j <= m; j++)
    rows[0][j] = j;
  for (int i = 1; i <= n; i++) {
    int *row = rows[i % 3], *up = rows[(i + 2) % 3], *up2 = rows[(i + 1) % 3];
    row[0] = i;
    for (int j = 1; j <= m; j++) {
      row[j] = min3(up[j] + 1, row[j - 1] + 1, up[j - 1] + (a[i - 1] != b[j - 1]));
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && up2[j - 2] + 1 < row[j])
        row[j] = up2[j - 2] + 1;
    }
  }
  int distance = rows[n % 3][m];
  return distance <= limit ? distance : limit + 1;
}

static void plain(const char *name, char to[NAME_MAX_LEN + 1]) {
  size_t n = 0;
  for (; *name != '\0' && n < NAME_MAX_LEN; name++)
    if (*name != '_')
      to[n++] = (char)tolower((unsigned char)*name);
  to[n] = '\0';
}

const char *perigee__nearest(const char *name, const char *const *names) {
  char mine[NAME_MAX_LEN + 1], other[NAME_MAX_LEN + 1];
  plain(name, mine);
  /* Two edits make another word of a short name ("read" of "recv"): there one is the most. */
  int best = (strlen(mine) >= 6 ? 2 : 1) + 1;
  const char *found = NULL;
  for (; *names != NULL; names++) {
    plain(*names, other);
    int distance = perigee__edit_distance(mine, other, best - 1);
    if (distance < best) {
      best = distance;
      found = *names;
    }
  }
  return found;
}

const char *perigee__did_you_mean(const char *name, const char *const *names, char *buf,
                                  size_t size) {
  const char *near = perigee__nearest(name, names);
  buf[0] = '\0';
  if (near != NULL)
    snprintf(buf, size, " (did you mean '%s'?)", near);
  return buf;
}
