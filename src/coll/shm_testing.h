/*
 * For tests of the shared-memory engine: a group of ranks in this process (threads) or in forked ones, over memory that the test made.
 * Checks inside a rank are counted, not asserted, because cmocka can only leave the main thread.
 */
#ifndef PERIGEE_COLL_SHM_TESTING_H
#define PERIGEE_COLL_SHM_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "coll/arena_impl.h"
#include "coll/fingerprint.h"
#include "coll/reach.h"
#include "transport/memfd.h"

enum {
  RANKS_MAX = 8,
  PATIENCE_S = 30
};

typedef struct world world;

typedef struct member {
  world *w;
  int me, n;
  perigee__fate fate;
  perigee__arena *arena;
  uint64_t seq;
  int64_t timeout_ns; /* of the calls this rank makes */
  perigee_error error;
  int failures;
  pthread_t thread;
  bool running;
  void *arg;
  perigee__segment *segment; /* symmetric memory for the buffers of calls; NULL: the heap */
  size_t used;               /* bytes of it */
} member;

typedef void (*rank_fn)(member *m);

struct world {
  int n;
  void *base;
  size_t bytes;
  member member[RANKS_MAX];
  rank_fn fn;
};

/* Count and show a failed check of a rank; the rank goes on. */
#define RANK_CHECK(_m, _cond, ...)                                                                 \
  do {                                                                                             \
    if (!(_cond) && (_m)->failures++ < 5) {                                                        \
      fprintf(stderr, "%s:%d: rank %d of %d, #%llu: %s: ", __FILE__, __LINE__, (_m)->me, (_m)->n,  \
              (unsigned long long)(_m)->seq, #_cond);                                              \
      fprintf(stderr, __VA_ARGS__);                                                                \
      fprintf(stderr, "\n");                                                                       \
    }                                                                                              \
  } while (0)

static inline world *world_open(int n, perigee__arena_mode mode, uint32_t first_epoch) {
  static const int members[RANKS_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};
  world *w = calloc(1, sizeof(*w));
  assert_non_null(w);
  size_t buffer = perigee__arena_buffer_bytes(n);
  w->n = n;
  w->bytes = perigee__arena_layout_for(n, buffer).total;
  w->base = mmap(NULL, w->bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_true(w->base != MAP_FAILED);
  perigee__arena_format(w->base, n, mode, buffer, first_epoch);
  for (int r = 0; r < n; r++) {
    member *m = &w->member[r];
    m->w = w;
    m->me = r;
    m->n = n;
    m->timeout_ns = PATIENCE_S * PERIGEE_NS_PER_SEC;
    assert_int_equal(perigee__fate_init(&m->fate, 42, "test", r, n, members), 0);
    assert_int_equal(perigee__arena_create_over(w->base, w->bytes, NULL, &m->fate, &m->arena), 0);
  }
  return w;
}

/* Take this path from now on; with what reading directly needs, when it does. Before the ranks start. */
static inline void world_path(world *w, perigee__arena_path path) {
  for (int r = 0; r < w->n; r++)
    perigee__reach_introduce(w->member[r].arena);
  for (int r = 0; r < w->n; r++) {
    perigee__arena *a = w->member[r].arena;
    a->path = path;
    bool cma = path == PERIGEE_ARENA_PATH_CMA || path == PERIGEE_ARENA_PATH_AUTO;
    a->cma = cma && perigee__reach_probe(a);
    assert_int_equal(a->cma, cma);
    perigee__arena_sift(a);
    if (a->mode == PERIGEE_ARENA_PARK)
      a->table.past_min = 1; /* else only tensors of many MiB */
  }
}

/* Symmetric memory of that many bytes for every rank. */
static inline void world_symmetric(world *w, size_t bytes) {
  size_t stride, total = perigee__segment_total(w->n, bytes, &stride);
  int fd;
  assert_int_equal(perigee__memfd_create("test", total, &fd), 0);
  for (int r = 0; r < w->n; r++)
    assert_int_equal(perigee__segment_create(w->member[r].arena->segments, fd, r, w->n, bytes, 1,
                                             &w->member[r].segment),
                     0);
  close(fd);
}

static inline void world_close(world *w) {
  for (int r = 0; r < w->n; r++) {
    if (w->member[r].segment != NULL)
      perigee__segment_drop(w->member[r].segment);
    perigee__arena_destroy(&w->member[r].arena);
    perigee__fate_fini(&w->member[r].fate);
  }
  munmap(w->base, w->bytes);
  free(w);
}

static inline void *rank_main(void *arg) {
  member *m = arg;
  m->w->fn(m);
  return NULL;
}

static inline void ranks_start(world *w, int from, int to, rank_fn fn) {
  w->fn = fn;
  for (int r = from; r < to; r++) {
    assert_int_equal(pthread_create(&w->member[r].thread, NULL, rank_main, &w->member[r]), 0);
    w->member[r].running = true;
  }
}

static inline void ranks_join(world *w) {
  int failures = 0;
  for (int r = 0; r < w->n; r++) {
    if (w->member[r].running)
      pthread_join(w->member[r].thread, NULL);
    w->member[r].running = false;
    failures += w->member[r].failures;
  }
  assert_int_equal(failures, 0);
}

/* All ranks as threads. */
static inline void ranks_run(world *w, rank_fn fn) {
  ranks_start(w, 0, w->n, fn);
  ranks_join(w);
}

/* All ranks as processes; each inherits the memory and uses its own member. */
static inline void processes_run(world *w, rank_fn fn) {
  pid_t pids[RANKS_MAX];
  int bad = 0;
  fflush(NULL);
  for (int r = 0; r < w->n; r++) {
    pids[r] = fork();
    assert_true(pids[r] >= 0);
    if (pids[r] == 0) {
      alarm(2 * PATIENCE_S);
      fn(&w->member[r]);
      _exit(w->member[r].failures > 0);
    }
  }
  for (int r = 0; r < w->n; r++) {
    int status = -1;
    assert_int_equal(waitpid(pids[r], &status, 0), pids[r]);
    bad += !(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  assert_int_equal(bad, 0);
}

/* Fill what every call has and run it. */
static inline int rank_call(member *m, perigee__coll_call *call) {
  call->seq = call->shown_seq = ++m->seq;
  call->timeout_ns = m->timeout_ns;
  call->deadline_ns = perigee__deadline_in(m->timeout_ns);
  if (call->ncontrib == 0)
    call->ncontrib = m->n;
  m->error.code = 0;
  return perigee__shm_run(m->arena, call, &m->error);
}

/* What the mesh does when a rank fails: the others hear of it. */
static inline void world_tell(const member *m) {
  for (int r = 0; r < m->n; r++)
    (void)perigee__fate_fail(&m->w->member[r].fate, &m->error);
}

static inline uint64_t fp_of(int op, int dtype, int redop, int root, uint64_t count) {
  perigee__fingerprint f = {.op = op, .dtype = dtype, .redop = redop, .root = root, .count = count};
  return perigee__fingerprint_pack(&f);
}

static inline int rank_barrier(member *m) {
  perigee__coll_call call = {.kind = PERIGEE_COLL_BARRIER,
                             .op = PERIGEE_OP_BARRIER,
                             .fp = fp_of(PERIGEE_OP_BARRIER, -1, -1, -1, 0)};
  return rank_call(m, &call);
}

#endif
