/*
 * Ranks as threads, for the tests of collectives over the mesh.
 *
 * A world is n meshes of this process; world_run starts one thread per rank. Checks in those threads count failures
 * (cmocka's assertions may only be used on the main thread); world_run asserts that there were none.
 * Every call has a deadline, so a test that hangs fails.
 */
#ifndef PERIGEE_COLL_NET_TESTING_H
#define PERIGEE_COLL_NET_TESTING_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "coll/coll.h"
#include "coll/fingerprint.h"
#include "coll/net.h"
#include "coll/tuning.h"

enum {
  RANKS_MAX = 8,
  CALL_SECONDS = 30
};

struct test_rank;

typedef struct test_world {
  int n;
  bool over_rings; /* messages even where the ranks could share an arena */
  perigee__mesh *meshes[RANKS_MAX];
  pthread_barrier_t barrier;
  atomic_int failures;
  void (*fn)(struct test_rank *rank);
  void *arg;
} test_world;

/* One rank's group of all ranks. */
typedef struct test_rank {
  test_world *world;
  int me, n;
  void *arg;
  perigee__fate fate;
  perigee__coll *coll;
  perigee__net_spare *spare; /* of calls without coll; or NULL */
  uint64_t seq;
  perigee_error error; /* of the last call */
} test_rank;

#define EXPECT(_rank, _cond, ...)                                                                  \
  do {                                                                                             \
    if (!(_cond) && atomic_fetch_add(&(_rank)->world->failures, 1) < 5) {                          \
      fprintf(stderr, "%s:%d: rank %d of %d: %s: ", __FILE__, __LINE__, (_rank)->me, (_rank)->n,   \
              #_cond);                                                                             \
      fprintf(stderr, __VA_ARGS__);                                                                \
      fputc('\n', stderr);                                                                         \
    }                                                                                              \
  } while (0)

static inline int64_t test_deadline(void) {
  return perigee__deadline_in(CALL_SECONDS * PERIGEE_NS_PER_SEC);
}

static inline void world_open(test_world *w, int n, perigee__transport transport) {
  memset(w, 0, sizeof(*w));
  w->n = n;
  if (n > 1)
    assert_int_equal(perigee__mesh_create_local(n, transport, w->meshes), 0);
  pthread_barrier_init(&w->barrier, NULL, (unsigned)n);
}

static void *destroy_mesh(void *arg) {
  perigee__mesh_destroy(arg, test_deadline());
  return NULL;
}

static inline void world_close(test_world *w) {
  pthread_t threads[RANKS_MAX]; /* side by side: each says goodbye to the others */
  for (int r = 0; w->n > 1 && r < w->n; r++)
    assert_int_equal(pthread_create(&threads[r], NULL, destroy_mesh, &w->meshes[r]), 0);
  for (int r = 0; w->n > 1 && r < w->n; r++)
    pthread_join(threads[r], NULL);
  pthread_barrier_destroy(&w->barrier);
}

/* Make the group number `group` of all ranks. */
static inline void rank_join(test_rank *r, uint64_t group) {
  int members[RANKS_MAX];
  for (int i = 0; i < r->n; i++)
    members[i] = i;
  r->seq = 0;
  perigee__mesh *mesh = r->world->meshes[r->me];
  EXPECT(r, perigee__fate_init(&r->fate, group, "test", r->me, r->n, members) == 0, "fate");
  if (mesh != NULL)
    EXPECT(r, perigee__mesh_attach(mesh, &r->fate) == 0, "attach");
  if (r->world->over_rings) {
    EXPECT(r, perigee__net_agree(mesh, &r->fate, perigee__tuning_get(), test_deadline()) == 0,
           "agree: %s", perigee_last_error()->message);
    return;
  }
  perigee__coll_params params = {.mesh = mesh, .fate = &r->fate, .deadline_ns = test_deadline()};
  int rc = perigee__coll_create(&params, &r->coll);
  EXPECT(r, rc == 0, "create: %s", perigee_last_error()->message);
}

static inline void rank_leave(test_rank *r) {
  perigee__coll_destroy(&r->coll);
  pthread_barrier_wait(&r->world->barrier); /* nobody leaves while another still works */
  if (r->world->meshes[r->me] != NULL)
    perigee__mesh_detach(r->world->meshes[r->me], &r->fate);
  perigee__fate_fini(&r->fate);
}

static inline void rank_meet(test_rank *r) { pthread_barrier_wait(&r->world->barrier); }

static void *rank_main(void *arg) {
  test_rank *r = arg;
  r->world->fn(r);
  return NULL;
}

static inline void world_run(test_world *w, void (*fn)(test_rank *rank), void *arg) {
  pthread_t threads[RANKS_MAX];
  test_rank *ranks = calloc((size_t)w->n, sizeof(*ranks));
  assert_non_null(ranks);
  w->fn = fn;
  for (int r = 0; r < w->n; r++) {
    ranks[r] = (test_rank){.world = w, .me = r, .n = w->n, .arg = arg};
    assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &ranks[r]), 0);
  }
  for (int r = 0; r < w->n; r++)
    pthread_join(threads[r], NULL);
  free(ranks);
  assert_int_equal(atomic_load(&w->failures), 0);
}

/* Complete and run a call: numbers, deadline, fingerprint of its arguments (as the layer above makes them). */
static inline int rank_call(test_rank *r, perigee__coll_call *call, uint64_t fp) {
  call->seq = call->shown_seq = ++r->seq;
  call->fp = fp;
  if (call->timeout_ns == 0)
    call->timeout_ns = CALL_SECONDS * PERIGEE_NS_PER_SEC;
  call->deadline_ns = perigee__deadline_in(call->timeout_ns);
  perigee__error_init(&r->error);
  if (r->world->over_rings)
    return perigee__net_run(r->world->meshes[r->me], &r->fate, perigee__tuning_get(), r->spare,
                            call, &r->error);
  return perigee__coll_run(r->coll, call, &r->error);
}

static inline uint64_t test_fp(perigee_op op, int dtype, int redop, int root, uint64_t count) {
  perigee__fingerprint f = {
      .op = (int)op, .dtype = dtype, .redop = redop, .root = root, .count = count};
  return perigee__fingerprint_pack(&f);
}

#endif
