/*
 * What a store without a slot of its own gets, built from the operations every store has.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "store/store.h"

/*
 * compare_set answers with a value, not with "stored": when two callers append the same bytes to the same value at the
 * same moment, one of the two may be lost. Stores that matter have an append of their own.
 */
int perigee__store_generic_append(perigee_store *s, const char *key, const void *value,
                                  size_t size) {
  perigee_bytes now = {NULL, 0}, reply;
  bool present;
  PERIGEE_TRY(perigee_store_check(s, &key, 1, &present));
  if (present)
    PERIGEE_TRY(perigee_store_get(s, key, 0, &now));
  for (;;) {
    if (now.size + size > PERIGEE__STORE_VALUE_MAX) {
      perigee_bytes_free(&now);
      return perigee__fail(PERIGEE_ELIMIT, "store append '%s': value would exceed %d bytes", key,
                           PERIGEE__STORE_VALUE_MAX);
    }
    size_t want_size = now.size + size;
    char *want = malloc(want_size + 1);
    if (want == NULL) {
      perigee_bytes_free(&now);
      return perigee__fail(PERIGEE_ENOMEM, "store append '%s': no memory", key);
    }
    if (now.size > 0)
      memcpy(want, now.data, now.size);
    if (size > 0)
      memcpy(want + now.size, value, size);
    int rc = perigee_store_compare_set(s, key, now.data, now.size, want, want_size, &reply);
    perigee_bytes_free(&now);
    bool stored = rc == 0 && reply.size == want_size && memcmp(reply.data, want, want_size) == 0;
    free(want);
    if (rc < 0)
      return rc;
    now = reply;
    if (stored)
      break;
  }
  perigee_bytes_free(&now);
  return 0;
}

int perigee__store_generic_multi_get(perigee_store *s, const char *const *keys, size_t n,
                                     int64_t timeout_ns, perigee_bytes *values_p) {
  PERIGEE_TRY(perigee_store_wait(s, keys, n, timeout_ns));
  perigee_bytes *values = perigee__calloc(n, sizeof(*values));
  if (values == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "store multi_get: no memory for %zu values", n);
  int rc = 0;
  size_t done = 0;
  /* 0: they exist; one that was deleted since is reported, not waited for again */
  while (done < n && (rc = perigee_store_get(s, keys[done], 0, &values[done])) == 0)
    done++;
  if (rc == 0)
    memcpy(values_p, values, n * sizeof(*values));
  else
    while (done > 0)
      perigee_bytes_free(&values[--done]);
  free(values);
  return rc;
}

int perigee__store_generic_multi_set(perigee_store *s, const char *const *keys,
                                     const perigee_bytes *values, size_t n) {
  for (size_t i = 0; i < n; i++)
    PERIGEE_TRY(perigee_store_set(s, keys[i], values[i].data, values[i].size));
  return 0;
}

int perigee__store_generic_barrier(perigee_store *s, const char *key, int world_size,
                                   int64_t timeout_ns) {
  char *members = perigee__format("%s/num_members", key);
  char *last = perigee__format("%s/last_member", key);
  int rc = 0;
  int64_t arrived;
  if (members == NULL || last == NULL) {
    rc = perigee__fail(PERIGEE_ENOMEM, "store barrier '%s': no memory", key);
    goto out;
  }
  PERIGEE_TRY_GOTO(perigee_store_add(s, members, 1, &arrived), out);
  if (arrived == world_size)
    PERIGEE_TRY_GOTO(perigee_store_set(s, last, "1", 1), out);
  rc = perigee_store_wait(s, (const char *const[]){last}, 1, timeout_ns);
out:
  free(members);
  free(last);
  return rc;
}
