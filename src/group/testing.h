/* What the tests of this folder share: checks that any thread may make, ranks as threads, small tensors. */
#ifndef PERIGEE_GROUP_TESTING_H
#define PERIGEE_GROUP_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <perigee/group.h>

#include "base/attr.h"
#include "base/clock.h"
#include "base/error.h"

/* gcc says so in one way, clang in another. */
#ifndef __has_feature
#define __has_feature(_name) 0
#endif
#if defined(__SANITIZE_THREAD__) || __has_feature(thread_sanitizer)
#define THREAD_SANITIZED
#endif
#if defined(THREAD_SANITIZED) || defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define SANITIZED /* malloc is the sanitizer's */
#endif

#define MS PERIGEE_NS_PER_MS
/* How late a deadline may be seen. What is promised is 250 ms, by a machine with time to spare; tests share theirs. */
enum {
  LATE_MS = 2000
};

/* cmocka's assertions belong to its own thread: the others count, and the test looks at the count at its end. */
static _Atomic int failures;

static inline void note_failure(const char *file, int line, const char *text) {
  if (atomic_fetch_add(&failures, 1) < 20)
    fprintf(stderr, "%s:%d: check failed: %s (last error: %s)\n", file, line, text,
            perigee_last_error()->message);
}
#define CHECK(_cond)                                                                               \
  do {                                                                                             \
    if (!(_cond))                                                                                  \
      note_failure(__FILE__, __LINE__, #_cond);                                                    \
  } while (0)
/* Without it nothing that follows makes sense. */
#define REQUIRE(_cond)                                                                             \
  do {                                                                                             \
    if (!(_cond)) {                                                                                \
      note_failure(__FILE__, __LINE__, #_cond);                                                    \
      abort();                                                                                     \
    }                                                                                              \
  } while (0)

static inline void assert_no_failures(void) { assert_int_equal(atomic_load(&failures), 0); }

/* The whole program has this long, whatever hangs. */
static inline void program_deadline(unsigned seconds) {
  alarm(seconds);
  setvbuf(stdout, NULL, _IOLBF, 0);
}

static inline double ms_since(int64_t start_ns) {
  return (double)(perigee__now_ns() - start_ns) / 1e6;
}

static inline bool error_has(const perigee_error *error, const char *text) {
  return error != NULL && strstr(error->message, text) != NULL;
}
static inline bool last_error_has(const char *text) {
  return error_has(perigee_last_error(), text);
}

/* ---- tensors ----------------------------------------------------------------------------------- */

static inline perigee_tensor *tensor_of(perigee_dtype dtype, int64_t numel) {
  perigee_tensor *t;
  REQUIRE(perigee_tensor_create(dtype, 1, &numel, &t) == 0);
  return t;
}
static inline perigee_tensor *f32_of(int64_t numel, float value) {
  perigee_tensor *t = tensor_of(PERIGEE_F32, numel);
  for (int64_t i = 0; i < numel; i++)
    ((float *)perigee_tensor_data(t))[i] = value;
  return t;
}
static inline float f32_at(const perigee_tensor *t, int64_t i) {
  return ((const float *)perigee_tensor_data(t))[i];
}
static inline bool f32_is(const perigee_tensor *t, float value) {
  for (int64_t i = 0; i < perigee_tensor_numel(t); i++)
    if (!(f32_at(t, i) >= value && f32_at(t, i) <= value))
      return false;
  return true;
}

/* ---- groups ------------------------------------------------------------------------------------ */

static inline void drop_group(perigee_group *group) {
  REQUIRE(perigee_group_close(group) == 0);
  perigee_group_unref(group);
}

static inline perigee_group *open_alone(const char *stack, int rank, int nranks) {
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = stack;
  opts.rank = rank;
  opts.nranks = nranks;
  perigee_group *group = NULL;
  REQUIRE(perigee_init(&opts, &group) == 0);
  return group;
}

typedef struct rank_thread {
  pthread_t thread;
  perigee_group *group;
  void (*fn)(perigee_group *group, void *arg);
  void *arg;
} rank_thread;

static inline void *rank_main(void *arg) {
  rank_thread *self = arg;
  self->fn(self->group, self->arg);
  return NULL;
}

enum {
  RANKS_MAX = 16
};

/* fn(group of rank r, arg) on one thread for each rank. */
static inline void on_ranks(int n, perigee_group **groups,
                            void (*fn)(perigee_group *group, void *arg), void *arg) {
  rank_thread threads[RANKS_MAX];
  REQUIRE(n <= RANKS_MAX);
  for (int r = 0; r < n; r++) {
    threads[r] = (rank_thread){.group = groups[r], .fn = fn, .arg = arg};
    REQUIRE(pthread_create(&threads[r].thread, NULL, rank_main, &threads[r]) == 0);
  }
  for (int r = 0; r < n; r++)
    REQUIRE(pthread_join(threads[r].thread, NULL) == 0);
}

static inline void open_local(int n, const char *stack, perigee_group **groups) {
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = stack;
  opts.timeout_ns = 20 * PERIGEE_NS_PER_SEC;
  opts.init_timeout_ns = 20 * PERIGEE_NS_PER_SEC;
  REQUIRE(perigee_init_local(n, &opts, groups) == 0);
}

static inline void close_fn(perigee_group *group, void *arg) {
  (void)arg;
  CHECK(perigee_group_close(group) == 0);
}

static inline void close_local(int n, perigee_group **groups) {
  on_ranks(n, groups, close_fn, NULL);
  for (int r = 0; r < n; r++)
    perigee_group_unref(groups[r]);
}

/* A world of n ranks, fn on each, and its end. */
static inline void with_ranks(int n, void (*fn)(perigee_group *group, void *arg), void *arg) {
  perigee_group *groups[RANKS_MAX];
  open_local(n, NULL, groups);
  on_ranks(n, groups, fn, arg);
  close_local(n, groups);
  assert_no_failures();
}

/* ---- requests ---------------------------------------------------------------------------------- */

static inline perigee_request request_inplace(int op, perigee_tensor **list, uint32_t n) {
  perigee_request req;
  perigee_request_init(&req, op);
  req.in = (perigee_tensors){list, n, 0};
  return req;
}
static inline perigee_request request_out_in(int op, perigee_tensor **out, uint32_t nout,
                                             uint32_t out_rows, perigee_tensor **in, uint32_t nin,
                                             uint32_t in_rows) {
  perigee_request req;
  perigee_request_init(&req, op);
  req.out = (perigee_tensors){out, nout, out_rows};
  req.in = (perigee_tensors){in, nin, in_rows};
  return req;
}

/* ---- messages and works ------------------------------------------------------------------------ */

static inline perigee_request send_of(perigee_tensor **t, int dst, int64_t tag) {
  perigee_request req = request_inplace(PERIGEE_OP_SEND, t, 1);
  req.peer = dst;
  req.tag = tag;
  return req;
}
/* src -1: any */
static inline perigee_request recv_of(perigee_tensor **t, int src, int64_t tag) {
  perigee_request req =
      request_out_in(src < 0 ? PERIGEE_OP_RECV_ANYSOURCE : PERIGEE_OP_RECV, t, 1, 0, NULL, 0, 0);
  req.peer = src;
  req.tag = tag;
  return req;
}
static inline perigee_work *submit(perigee_group *group, const perigee_request *req) {
  perigee_work *work;
  REQUIRE(perigee_group_submit(group, req, &work) == 0);
  return work;
}

#endif
