/*
 * Key-value stores: how ranks find each other.
 *
 * Keys and values are byte strings. One handle may be used from several threads (operations on it are serialised;
 * a blocking wait on a TCP handle uses a connection of its own so that others are not held up).
 * Every wait has a deadline. Semantics follow c10d's stores; where c10d is inconsistent, the comment says what holds.
 */
#ifndef PERIGEE_STORE_H
#define PERIGEE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"
#include "export.h"

typedef struct perigee_store perigee_store;

typedef struct perigee_bytes {
  char *data; /* owned by whoever got it from a get: free with perigee_bytes_free */
  size_t size;
} perigee_bytes;

PERIGEE_API void perigee_bytes_free(perigee_bytes *bytes);

/* ---- making. *store_p: returned owned (one reference) ------------------------------------------ */

/** In this process only. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_hash_create(perigee_store **store_p);
/** A file shared by processes of one machine; removed when the last handle of the last process goes. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_file_create(const char *path,
                                                             perigee_store **store_p);
/** key -> prefix "/" key in inner (a reference is taken). */
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_store_prefix_create(const char *prefix, perigee_store *inner, perigee_store **store_p);

/** Client of a TCP store that speaks PyTorch's TCPStore protocol. */
typedef struct perigee_store_tcp_options {
  uint32_t size;
  const char *host; /* name or address */
  int port;
  int64_t timeout_ns; /* connect, and default of waits; <= 0: 300 s */
  int world_size;     /* > 0: announce this client under "init/" */
} perigee_store_tcp_options;
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_tcp_connect(const perigee_store_tcp_options *opts,
                                                             perigee_store **store_p);

PERIGEE_API perigee_store *perigee_store_ref(perigee_store *store);
PERIGEE_API void perigee_store_unref(perigee_store *store); /* NULL is accepted */
/** "hash", "file", "tcp", "prefix". */
PERIGEE_API const char *perigee_store_kind(const perigee_store *store);
/** Default of waits on this handle. */
PERIGEE_API void perigee_store_set_timeout(perigee_store *store, int64_t timeout_ns);
/** A handle with a connection of its own. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_clone(perigee_store *store,
                                                       perigee_store **store_p);

/* ---- the server of a TCP store ------------------------------------------------------------------ */

typedef struct perigee_store_server perigee_store_server;
/**
 * Serve a TCP store on a thread of its own until destroyed.
 * bind_addr: NULL = 127.0.0.1. port 0 = chosen by the kernel, see perigee_store_server_port.
 * Errors: EADDRINUSE and other system codes, naming address and port.
 */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_server_create(const char *bind_addr, int port,
                                                               perigee_store_server **server_p);
PERIGEE_API int perigee_store_server_port(const perigee_store_server *server);
PERIGEE_API void perigee_store_server_destroy(perigee_store_server **server_p);

/* ---- operations. timeout_ns: < 0 the handle's default, 0 do not wait -------------------------- */

PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_set(perigee_store *s, const char *key,
                                                     const void *value, size_t size);
/** Waits until the key exists. ETIMEDOUT "wait timeout after 300ms, keys: /k". */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_get(perigee_store *s, const char *key,
                                                     int64_t timeout_ns, perigee_bytes *value_p);
/** Missing counts as 0; stored as decimal text. EINVAL when the value is no number. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_add(perigee_store *s, const char *key,
                                                     int64_t delta, int64_t *value_p);
/** Missing key: stores and returns desired when expected is empty, else returns expected and stores nothing.
 *  Present key: stores and returns desired on a match, else returns the current value. */
PERIGEE_API PERIGEE_MUST_CHECK int
perigee_store_compare_set(perigee_store *s, const char *key, const void *expected,
                          size_t expected_size, const void *desired, size_t desired_size,
                          perigee_bytes *value_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_wait(perigee_store *s, const char *const *keys,
                                                      size_t n, int64_t timeout_ns);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_check(perigee_store *s, const char *const *keys,
                                                       size_t n, bool *all_present_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_delete_key(perigee_store *s, const char *key,
                                                            bool *deleted_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_num_keys(perigee_store *s, int64_t *n_p);
/** keys_p: malloc'ed array of malloc'ed strings; free with perigee_store_keys_free. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_list_keys(perigee_store *s, char ***keys_p,
                                                           size_t *n_p);
PERIGEE_API void perigee_store_keys_free(char **keys, size_t n);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_append(perigee_store *s, const char *key,
                                                        const void *value, size_t size);
/** Waits until all keys exist; values_p: n entries, each owned by the caller. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_multi_get(perigee_store *s,
                                                           const char *const *keys, size_t n,
                                                           int64_t timeout_ns,
                                                           perigee_bytes *values_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_multi_set(perigee_store *s,
                                                           const char *const *keys,
                                                           const perigee_bytes *values, size_t n);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_queue_push(perigee_store *s, const char *key,
                                                            const void *value, size_t size);
/** timeout_ns 0: EAGAIN "queue is empty" when there is nothing. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_queue_pop(perigee_store *s, const char *key,
                                                           int64_t timeout_ns,
                                                           perigee_bytes *value_p);
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_queue_len(perigee_store *s, const char *key,
                                                           int64_t *n_p);
/** Returns on each of world_size callers when all have called with this key. */
PERIGEE_API PERIGEE_MUST_CHECK int perigee_store_barrier(perigee_store *s, const char *key,
                                                         int world_size, int64_t timeout_ns);

#endif
