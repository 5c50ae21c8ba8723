/*
 * What every kind of store implements, and what all of them share.
 *
 * The public functions (store.c) check arguments and limits, resolve "the handle's default timeout" and then call the
 * slot; a slot may rely on that. Slots marked "may be NULL" fall back to store_generic.c.
 * A handle is bound to the process that made it: in a forked child every operation fails with EFORKED, because the
 * connection or lock behind it is shared with the parent.
 */
#ifndef PERIGEE_STORE_STORE_H
#define PERIGEE_STORE_STORE_H

#include <stdatomic.h>
#include <sys/types.h>

#include "base/clock.h"
#include "base/error.h"

#include <perigee/store.h>

enum {
  PERIGEE__STORE_KEY_MAX = 8191, /* 8 KiB together with the "/" a TCP client puts before a key */
  PERIGEE__STORE_VALUE_MAX = 8 << 20, /* bytes of one value, also after appends */
  PERIGEE__STORE_KEYS_MAX = 131072,   /* keys in one call */
};
#define PERIGEE__STORE_TIMEOUT_NS (300 * PERIGEE_NS_PER_SEC)
/* How long a request that has nothing to wait for may take (a lock, a round trip, a reconnect). */
#define PERIGEE__STORE_REQUEST_NS (10 * PERIGEE_NS_PER_SEC)

/*
 * timeout_ns is never negative here; 0 means "do not wait". Outputs are set on success only.
 * No slot is called with a lock of ours held, and none calls back.
 */
typedef struct perigee__store_ops {
  const char *kind;
  void (*destroy)(perigee_store *s);
  int (*clone)(perigee_store *s, perigee_store **store_p);
  int (*set)(perigee_store *s, const char *key, const void *value, size_t size);
  int (*get)(perigee_store *s, const char *key, int64_t timeout_ns, perigee_bytes *value_p);
  int (*add)(perigee_store *s, const char *key, int64_t delta, int64_t *value_p);
  int (*compare_set)(perigee_store *s, const char *key, const void *expected, size_t expected_size,
                     const void *desired, size_t desired_size, perigee_bytes *value_p);
  int (*wait)(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns);
  int (*check)(perigee_store *s, const char *const *keys, size_t n, bool *all_present_p);
  int (*delete_key)(perigee_store *s, const char *key, bool *deleted_p);
  int (*num_keys)(perigee_store *s, int64_t *n_p);
  /* may be NULL: no listing, no queues (ENOTSUP) */
  int (*list_keys)(perigee_store *s, char ***keys_p, size_t *n_p);
  int (*queue_push)(perigee_store *s, const char *key, const void *value, size_t size);
  int (*queue_pop)(perigee_store *s, const char *key, int64_t timeout_ns, perigee_bytes *value_p);
  int (*queue_len)(perigee_store *s, const char *key, int64_t *n_p);
  /* may be NULL: built from the others */
  int (*append)(perigee_store *s, const char *key, const void *value, size_t size);
  int (*multi_get)(perigee_store *s, const char *const *keys, size_t n, int64_t timeout_ns,
                   perigee_bytes *values_p);
  int (*multi_set)(perigee_store *s, const char *const *keys, const perigee_bytes *values,
                   size_t n);
  int (*barrier)(perigee_store *s, const char *key, int world_size, int64_t timeout_ns);
} perigee__store_ops;

struct perigee_store {
  const perigee__store_ops *ops; /* immutable */
  pid_t pid;                     /* immutable: who may use it */
  _Atomic int refs;              /* release on drop, acquire on the last one */
  _Atomic int64_t timeout_ns;    /* relaxed: a setting */
};

/** Start a handle with one reference and the default timeout. */
void perigee__store_init(perigee_store *s, const perigee__store_ops *ops);
int64_t perigee__store_timeout(const perigee_store *s);

/** Copy data into new memory with a NUL behind it. */
int perigee__bytes_make(const void *data, size_t size, perigee_bytes *bytes_p);
/** ETIMEDOUT "wait timeout after 300ms, keys: /k1, /k2"; prefix stands before each key. */
int perigee__store_timed_out(int64_t timeout_ns, const char *prefix, const char *const *keys,
                             size_t n);

/* Fallbacks, store_generic.c. */
int perigee__store_generic_append(perigee_store *s, const char *key, const void *value,
                                  size_t size);
int perigee__store_generic_multi_get(perigee_store *s, const char *const *keys, size_t n,
                                     int64_t timeout_ns, perigee_bytes *values_p);
int perigee__store_generic_multi_set(perigee_store *s, const char *const *keys,
                                     const perigee_bytes *values, size_t n);
int perigee__store_generic_barrier(perigee_store *s, const char *key, int world_size,
                                   int64_t timeout_ns);

#endif
