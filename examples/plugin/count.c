/*
 * count: a layer that counts the operations that pass through it, their bytes and their time, and prints them when its group closes.
 *
 *   cc -shared -fPIC $(pkg-config --cflags perigee) count.c -o perigee_count.so
 *   PERIGEE_BACKEND_PATH=$PWD PERIGEE_BACKEND='count(native)' perigee run -n 2 script.lua
 *
 *   count: allreduce on world (rank 0): 3 calls, 4800 bytes, 21.5 us each
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <perigee/perigee.h>

/* Operations of one layer end on any thread, several at a time. */
typedef struct tally {
  _Atomic long long calls, bytes, ns;
} tally;

/* One layer of one group. A work in flight holds a reference: it may end after the group has closed. */
typedef struct counter {
  _Atomic int refs;
  perigee_layer *layer; /* what stands below: operations go there */
  int rank;
  char group[64];
  tally of[PERIGEE_OP_COUNT];
} counter;

static void counter_unref(counter *c) {
  if (atomic_fetch_sub(&c->refs, 1) == 1)
    free(c);
}

static int count_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)backend;
  counter *c = calloc(1, sizeof(*c));
  if (c == NULL)
    return perigee_error_fail(PERIGEE_ENOMEM, "no memory to count");
  atomic_init(&c->refs, 1);
  c->layer = info->layer;
  c->rank = info->rank;
  snprintf(c->group, sizeof(c->group), "%s", info->group_name);
  *self_p = c;
  return 0;
}

static void count_close(void *self) {
  counter *c = self;
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    long long calls = atomic_load(&c->of[op].calls);
    if (calls > 0)
      printf("count: %s on %s (rank %d): %lld calls, %lld bytes, %.1f us each\n",
             perigee_op_name(op), c->group, c->rank, calls,
             (long long)atomic_load(&c->of[op].bytes),
             (double)atomic_load(&c->of[op].ns) / (double)calls / 1e3);
  }
  fflush(stdout);
  counter_unref(c);
}

static long long bytes_of(const perigee_tensors *tensors) {
  long long bytes = 0;
  for (uint32_t i = 0; i < tensors->n; i++)
    bytes += (long long)perigee_tensor_nbytes(tensors->v[i]);
  return bytes;
}

static void count(counter *c, int op, long long bytes, long long ns) {
  atomic_fetch_add(&c->of[op].calls, 1);
  atomic_fetch_add(&c->of[op].bytes, bytes);
  atomic_fetch_add(&c->of[op].ns, ns);
}

/* An asynchronous operation has ended, on whatever thread. Its tensors are alive until it has. */
static void count_done(perigee_work *work, void *arg) {
  counter *c = arg;
  perigee_tensors outputs = perigee_work_outputs(work);
  count(c, perigee_work_op(work), bytes_of(&outputs),
        perigee_work_finished_ns(work) - perigee_work_started_ns(work));
  counter_unref(c);
}

static int count_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  counter *c = self;
  int rc = perigee_layer_submit(c->layer, req, work_p);
  if (rc < 0)
    return rc;
  atomic_fetch_add(&c->refs, 1);
  if (perigee_work_on_done(*work_p, count_done, c) < 0)
    counter_unref(c); /* no memory: not counted */
  return 0;
}

/* A synchronous one, which needs no work: to its end on the calling thread. */
static int count_run(void *self, const perigee_request *req, perigee_error *error_p) {
  counter *c = self;
  struct timespec from, to;
  clock_gettime(CLOCK_MONOTONIC, &from);
  int rc = perigee_layer_run(c->layer, req);
  if (rc < 0) {
    *error_p = *perigee_last_error();
    return rc;
  }
  clock_gettime(CLOCK_MONOTONIC, &to);
  const perigee_op_info *row = perigee_op_get(req->op);
  count(c, req->op, bytes_of(row->out != PERIGEE_FORM_NONE ? &req->out : &req->in),
        (to.tv_sec - from.tv_sec) * 1000000000LL + (to.tv_nsec - from.tv_nsec));
  return 0;
}

static const perigee_backend_ops_v1 ops = {
    .size = sizeof(ops),
    .abi = PERIGEE_BACKEND_ABI,
    .open = count_open,
    .close = count_close,
    .submit = count_submit,
    .run = count_run,
};

PERIGEE_PLUGIN(.default_inner = "native", .ops = &ops);
