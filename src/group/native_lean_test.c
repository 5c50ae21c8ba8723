/*
 * Defends: a synchronous operation that no layer handles allocates nothing and frees nothing, here or below. Counted by standing in for
 * malloc in the whole program.
 */
#include "group/testing.h"

/* ---- counting ---------------------------------------------------------------------------------- */

/* volatile: the compiler knows that malloc changes no variable of a program. */
static _Thread_local volatile bool counting;
static _Thread_local volatile long counted;

#ifndef SANITIZED /* whose own malloc this would be */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *old);

static void count(bool it) {
  if (counting && it)
    counted = counted + 1;
}

void *malloc(size_t size) {
  count(true);
  return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
  count(true);
  return __libc_calloc(n, size);
}
void *realloc(void *old, size_t size) {
  count(true);
  return __libc_realloc(old, size);
}
void *aligned_alloc(size_t align, size_t size) {
  count(true);
  return __libc_memalign(align, size);
}
void free(void *old) {
  count(old != NULL);
  __libc_free(old);
}
#endif

/* ---- operations -------------------------------------------------------------------------------- */

enum {
  NUMEL = 240 /* of one rank's block: too much for a line */
};

typedef struct buffers {
  perigee_tensor *one, *all, *list[RANKS_MAX], *more[RANKS_MAX];
} buffers;

static void message(perigee_group *group, perigee_tensor *t) {
  int me = perigee_group_rank(group);
  if (me == 0)
    CHECK(perigee_send(group, t, 1, 3) == 0);
  else if (me == 1)
    CHECK(perigee_recv(group, t, 0, 3) == 0);
}

/* Works of messages come from spare ones; a window of them is in flight. */
static void window(perigee_group *group, perigee_tensor *t) {
  enum {
    WIDTH = 16
  };
  perigee_work *works[WIDTH];
  int me = perigee_group_rank(group);
  perigee_request req = me == 0 ? send_of(&t, 1, 4) : recv_of(&t, 0, 4);
  for (int i = 0; me <= 1 && i < WIDTH; i++)
    CHECK(perigee_group_submit(group, &req, &works[i]) == 0);
  for (int i = 0; me <= 1 && i < WIDTH; i++) {
    CHECK(perigee_work_wait(works[i], PERIGEE_TIMEOUT_NONE) == 0);
    perigee_work_unref(works[i]);
  }
}

static perigee_request request_of(int op, buffers *b, bool root, int n) {
  uint32_t many = root ? (uint32_t)n : 0;
  switch (op) {
  case PERIGEE_OP_ALLREDUCE:
  case PERIGEE_OP_BROADCAST:
  case PERIGEE_OP_REDUCE:
    return request_inplace(op, &b->one, 1);
  case PERIGEE_OP_ALLGATHER:
    return request_out_in(op, b->list, (uint32_t)n, 1, &b->one, 1, 0);
  case PERIGEE_OP_GATHER:
    return request_out_in(op, b->list, many, root, &b->one, 1, 0);
  case PERIGEE_OP_SCATTER:
    return request_out_in(op, &b->one, 1, 0, b->list, many, root);
  case PERIGEE_OP_REDUCE_SCATTER:
    return request_out_in(op, &b->one, 1, 0, b->list, (uint32_t)n, 1);
  case PERIGEE_OP_ALLTOALL:
    return request_out_in(op, b->list, (uint32_t)n, 0, b->more, (uint32_t)n, 0);
  case PERIGEE_OP_ALLGATHER_INTO_TENSOR:
    return request_out_in(op, &b->all, 1, 0, &b->one, 1, 0);
  case PERIGEE_OP_REDUCE_SCATTER_TENSOR:
    return request_out_in(op, &b->one, 1, 0, &b->all, 1, 0);
  default: {
    perigee_request req;
    perigee_request_init(&req, op);
    return req;
  }
  }
}

static const int ops[] = {
    PERIGEE_OP_ALLREDUCE,
    PERIGEE_OP_BROADCAST,
    PERIGEE_OP_REDUCE,
    PERIGEE_OP_ALLGATHER,
    PERIGEE_OP_GATHER,
    PERIGEE_OP_SCATTER,
    PERIGEE_OP_REDUCE_SCATTER,
    PERIGEE_OP_ALLTOALL,
    PERIGEE_OP_ALLGATHER_INTO_TENSOR,
    PERIGEE_OP_REDUCE_SCATTER_TENSOR,
    PERIGEE_OP_BARRIER,
};

static void all_ops(perigee_group *group, buffers *b, bool watched) {
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  for (size_t i = 0; i < PERIGEE_COUNT(ops); i++) {
    perigee_request req = request_of(ops[i], b, me == 0, n);
    counted = 0;
    counting = watched;
    int rc = perigee_group_run(group, &req);
    counting = false;
    CHECK(rc == 0);
    if (counted != 0)
      fprintf(stderr, "%s: %ld\n", perigee_op_name(ops[i]), counted);
    CHECK(counted == 0);
  }
  counted = 0;
  counting = watched;
  if (n > 1)
    message(group, b->one);
  counting = false;
  /* A message that is there before its receive is kept in memory of its own. */
  CHECK(me == 1 ? counted <= 2 : counted == 0);
  CHECK(perigee_barrier(group) == 0); /* before a window comes that nobody has asked for yet */
  counted = 0;
  counting = watched && me == 0;
  if (n > 1)
    window(group, b->one);
  counting = false;
  CHECK(counted == 0);
}

static void lean(perigee_group *group, void *arg) {
  int64_t numel = *(int64_t *)arg;
  int n = perigee_group_size(group);
  buffers b = {.one = f32_of(numel, 0), .all = f32_of(numel * n, 0)};
  for (int r = 0; r < n; r++) {
    b.list[r] = f32_of(numel, 0);
    b.more[r] = f32_of(numel, 0);
  }
  for (int i = 0; i < 4; i++) /* what is made once is made here */
    all_ops(group, &b, false);
  for (int i = 0; i < 20; i++)
    all_ops(group, &b, true);
  perigee_tensor_unref(b.one);
  perigee_tensor_unref(b.all);
  for (int r = 0; r < n; r++) {
    perigee_tensor_unref(b.list[r]);
    perigee_tensor_unref(b.more[r]);
  }
}

static void test_lean(void **state) {
  (void)state;
  static const int64_t lengths[] = {2, NUMEL, 60000};
  for (size_t i = 0; i < PERIGEE_COUNT(lengths); i++)
    for (int n = 1; n <= 4; n++) {
      int64_t numel = lengths[i];
      with_ranks(n, lean, &numel);
    }
}

/* The counter counts. */
static void test_counter(void **state) {
  (void)state;
#ifndef SANITIZED
  counted = 0;
  counting = true;
  void *some = malloc(10);
  free(some);
  counting = false;
  assert_int_equal(counted, 2);
#endif
}

int main(void) {
  program_deadline(100);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_counter), cmocka_unit_test(test_lean)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
