/* Defends: a failure reaches everything that is pending, on every rank, with the cause; ends are orderly and leave nothing. */
#include "group/testing.h"

#include <dirent.h>

#include "group/closing.h"
#include "group/work.h"

static perigee_request bare(int op) {
  perigee_request req;
  perigee_request_init(&req, op);
  return req;
}
static bool blames(const perigee_error *error, int count, int first) {
  return error->nranks == count && error->ranks[0] == first;
}
/* Until the group has failed here. */
static int failed_within(perigee_group *group, double ms, perigee_error *error) {
  int64_t start = perigee__now_ns();
  while (perigee_group_failed(group, error) == 0 && ms_since(start) < ms)
    perigee__sleep_ns(200000);
  return perigee_group_failed(group, error);
}

/* ---- looking ----------------------------------------------------------------------------------- */

static void looks(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_error error;
  CHECK(perigee_group_size(group) == 3);
  CHECK(strcmp(perigee_group_name(group), "world") == 0);
  CHECK(strcmp(perigee_group_backend(group), "native") == 0);
  CHECK(strcmp(perigee_group_transport(group), "shm") == 0);
  CHECK(perigee_group_store(group) != NULL);
  CHECK(perigee_group_to_world(group, me) == me && perigee_group_to_world(group, 3) == -1);
  CHECK(perigee_group_from_world(group, 2) == 2 && perigee_group_from_world(group, 9) == -1);
  CHECK(!perigee_group_is_closed(group));
  CHECK(perigee_group_failed(group, &error) == 0);
  CHECK(perigee_group_timeout(group) == 20 * PERIGEE_NS_PER_SEC);
  CHECK(perigee_group_set_timeout(group, 0) == PERIGEE_ERANGE);
  CHECK(perigee_group_set_timeout(group, 5 * PERIGEE_NS_PER_SEC) == 0);
  CHECK(perigee_group_timeout(group) == 5 * PERIGEE_NS_PER_SEC);
  CHECK(perigee_group_seq(group) == 0);
  CHECK(perigee_barrier(group) == 0);
  CHECK(perigee_group_seq(group) == 1);
  perigee_tensor *t = f32_of(1, (float)me);
  if (me < 2)
    CHECK(me == 0 ? perigee_send(group, t, 1, 0) == 0 : perigee_recv(group, t, 0, 0) == 0);
  CHECK(perigee_group_seq(group) == 1); /* the same on all ranks, whatever messages went */
  perigee_tensor_unref(t);
  CHECK(perigee_group_close(group) == 0);
  CHECK(perigee_group_close(group) == 0);
  CHECK(perigee_group_is_closed(group));
  CHECK(perigee_group_failed(group, &error) == PERIGEE_ECLOSED);
  CHECK(error_has(&error, "closed") && error.rank == me);
  CHECK(strcmp(perigee_group_transport(group), "") == 0);
  CHECK(strcmp(perigee_group_backend(group), "native") == 0);
  CHECK(perigee_barrier(group) == PERIGEE_ECLOSED);
  CHECK(perigee_group_abort(group, "late") == PERIGEE_ECLOSED);
  CHECK(perigee_group_set_timeout(group, 1) == PERIGEE_ECLOSED);
  perigee_group *child;
  CHECK(perigee_group_split(group, 0, 0, NULL, &child) == PERIGEE_ECLOSED);
}
static void test_looking(void **state) { (void)state, with_ranks(3, looks, NULL); }

/* ---- time -------------------------------------------------------------------------------------- */

static void missing(perigee_group *group, void *arg) {
  bool async = *(bool *)arg;
  int me = perigee_group_rank(group);
  perigee_error error;
  perigee_tensor *t = f32_of(4, 1);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  if (me >= 2) { /* 2 and 3 do not come */
    CHECK(failed_within(group, 3000, &error) == PERIGEE_ETIMEDOUT);
    CHECK(error.seq == 1 && blames(&error, 2, 2));
    CHECK(perigee_group_run(group, &req) == PERIGEE_EABORTED ||
          perigee_last_error()->code == PERIGEE_ETIMEDOUT);
    CHECK(last_error_has("timed out after 0.2 s") && last_error_has("2,3"));
  } else {
    req.timeout_ns = 200 * MS;
    int64_t start = perigee__now_ns();
    int rc;
    if (async) {
      perigee_work *work = submit(group, &req);
      rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
      CHECK(perigee_work_get_status(work) == PERIGEE_WORK_TIMEDOUT);
      perigee_work_unref(work);
    } else {
      rc = perigee_group_run(group, &req);
    }
    CHECK(ms_since(start) >= 150 && ms_since(start) < 200 + LATE_MS);
    CHECK(rc == PERIGEE_ETIMEDOUT);
    CHECK(last_error_has("timed out after 0.2 s") && last_error_has("2,3"));
    CHECK(blames(perigee_last_error(), 2, 2) && perigee_last_error()->ranks[1] == 3);
    CHECK(perigee_last_error()->seq == 1 && perigee_last_error()->op == PERIGEE_OP_ALLREDUCE);
    CHECK(perigee_group_run(group, &req) == PERIGEE_EABORTED);
    CHECK(last_error_has("the group has failed") && perigee_last_error()->seq == 2);
    perigee_work *work = NULL;
    CHECK(perigee_group_submit(group, &req, &work) == PERIGEE_EABORTED && work == NULL);
  }
  perigee_tensor_unref(t);
}
static void test_timeout_names_the_missing(void **state) {
  (void)state;
  for (int async = 0; async < 2; async++) {
    bool flag = async;
    with_ranks(4, missing, &flag);
  }
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(4, missing, &(bool){false});
  unsetenv("PERIGEE_TRANSPORT");
}

static void monitored(perigee_group *group, void *arg) {
  bool all = *(bool *)arg;
  int me = perigee_group_rank(group);
  perigee_error error;
  if (me == 1 || me == 3) {
    CHECK(failed_within(group, 3000, &error) == PERIGEE_ETIMEDOUT);
    return;
  }
  if (me == 2) { /* not the first to say so */
    perigee_request req = bare(PERIGEE_OP_MONITORED_BARRIER);
    CHECK(perigee_group_run(group, &req) == PERIGEE_ETIMEDOUT);
    return;
  }
  perigee_request req = bare(PERIGEE_OP_MONITORED_BARRIER);
  req.timeout_ns = 300 * MS;
  req.wait_all_ranks = all;
  CHECK(perigee_group_run(group, &req) == PERIGEE_ETIMEDOUT);
  CHECK(last_error_has(all ? "rank(s) 1, 3 failed to pass monitored_barrier in 0.3 s"
                           : "rank(s) 1 failed to pass monitored_barrier in 0.3 s"));
  CHECK(blames(perigee_last_error(), all ? 2 : 1, 1));
}
static void test_monitored_barrier(void **state) {
  (void)state;
  for (int all = 0; all < 2; all++) {
    bool flag = all;
    with_ranks(4, monitored, &flag);
  }
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(4, monitored, &(bool){true});
  unsetenv("PERIGEE_TRANSPORT");
}

/* ---- abort ------------------------------------------------------------------------------------- */

enum {
  PENDING_WORKS = 6
};

typedef struct abort_how {
  bool by_work;
  pthread_barrier_t submitted;
} abort_how;

static void aborted(perigee_group *group, void *arg) {
  abort_how *how = arg;
  int me = perigee_group_rank(group);
  perigee_tensor *t[PENDING_WORKS];
  perigee_work *works[PENDING_WORKS];
  for (int i = 0; i < PENDING_WORKS; i++) {
    t[i] = f32_of(2, 1);
    perigee_request req =
        i % 2 ? recv_of(&t[i], (me + 1) % 3, 0) : request_inplace(PERIGEE_OP_ALLREDUCE, &t[i], 1);
    works[i] = me == 2 && i % 2 == 0 ? NULL : submit(group, &req); /* rank 2 joins no collective */
  }
  pthread_barrier_wait(&how->submitted);
  int64_t start = perigee__now_ns();
  if (me == 2) {
    perigee__sleep_ns(50 * MS);
    start = perigee__now_ns();
    if (how->by_work)
      CHECK(perigee_work_abort(works[1], "had enough") == 0);
    else
      CHECK(perigee_group_abort(group, "had enough") == 0);
  }
  for (int i = 0; i < PENDING_WORKS; i++) {
    if (works[i] == NULL)
      continue;
    CHECK(perigee_work_wait(works[i], PERIGEE_TIMEOUT_NONE) == PERIGEE_EABORTED);
    CHECK(perigee_work_get_status(works[i]) == PERIGEE_WORK_ABORTED);
    CHECK(error_has(perigee_work_error(works[i]), "had enough"));
    perigee_work_unref(works[i]);
    perigee_tensor_unref(t[i]);
  }
  CHECK(ms_since(start) < 50 + LATE_MS);
  for (int i = 0; me == 2 && i < PENDING_WORKS; i += 2)
    perigee_tensor_unref(t[i]);
  CHECK(perigee_barrier(group) == PERIGEE_EABORTED);
  CHECK(last_error_has("had enough"));
  perigee_error error;
  CHECK(perigee_group_failed(group, &error) == PERIGEE_EABORTED && error_has(&error, "had enough"));
  CHECK(perigee_group_abort(group, "again") == 0); /* changes nothing */
  CHECK(perigee_group_failed(group, &error) == PERIGEE_EABORTED && error_has(&error, "had enough"));
}
static void test_abort_reaches_all_ranks(void **state) {
  (void)state;
  abort_how how = {.by_work = false};
  pthread_barrier_init(&how.submitted, NULL, 3);
  with_ranks(3, aborted, &how);
  how.by_work = true;
  with_ranks(3, aborted, &how);
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(3, aborted, &how);
  unsetenv("PERIGEE_TRANSPORT");
  pthread_barrier_destroy(&how.submitted);
}

/* One group's end is not another's. */
static void abort_one_of_two(perigee_group *group, void *arg) {
  (void)arg;
  perigee_group *child;
  CHECK(perigee_group_split(group, 0, 0, NULL, &child) == 0);
  if (perigee_group_rank(group) == 0)
    CHECK(perigee_group_abort(child, "this one only") == 0);
  perigee_error error;
  CHECK(failed_within(child, 2000, &error) == PERIGEE_EABORTED);
  CHECK(perigee_barrier(group) == 0);
  CHECK(perigee_group_failed(group, NULL) == 0);
  drop_group(child);
}
static void test_groups_fail_alone(void **state) {
  (void)state, with_ranks(3, abort_one_of_two, NULL);
}

/* ---- different calls --------------------------------------------------------------------------- */

typedef struct pair {
  const char *what, *text[2]; /* of the calls of rank 0 and of the others */
  void (*make)(perigee_request *req, int me, perigee_tensor **t);
} pair;

/* t: f32[6], i32[6], f32[4], f32[6], f32[3] */
static void pair_op(perigee_request *req, int me, perigee_tensor **t) {
  *req = request_inplace(me == 0 ? PERIGEE_OP_ALLREDUCE : PERIGEE_OP_BROADCAST, t, 1);
}
static void pair_dtype(perigee_request *req, int me, perigee_tensor **t) {
  *req = request_inplace(PERIGEE_OP_ALLREDUCE, me == 0 ? &t[0] : &t[1], 1);
}
static void pair_size(perigee_request *req, int me, perigee_tensor **t) {
  *req = request_inplace(PERIGEE_OP_ALLREDUCE, me == 0 ? &t[0] : &t[2], 1);
}
static void pair_redop(perigee_request *req, int me, perigee_tensor **t) {
  *req = request_inplace(PERIGEE_OP_REDUCE, t, 1);
  req->redop.kind = me == 0 ? PERIGEE_REDOP_SUM : PERIGEE_REDOP_MAX;
}
static void pair_root(perigee_request *req, int me, perigee_tensor **t) {
  *req = request_inplace(PERIGEE_OP_BROADCAST, t, 1);
  req->root = me == 0 ? 0 : 1;
}
static void pair_list(perigee_request *req, int me, perigee_tensor **t) {
  static _Thread_local perigee_tensor *two[2];
  two[0] = t[0];
  two[1] = t[3];
  *req = request_inplace(PERIGEE_OP_ALLREDUCE, two, me == 0 ? 1 : 2);
}
static void pair_coalesced(perigee_request *req, int me, perigee_tensor **t) {
  static _Thread_local perigee_tensor *two[2];
  two[0] = me == 0 ? t[0] : t[2];
  two[1] = me == 0 ? t[2] : t[0];
  *req = request_inplace(PERIGEE_OP_ALLREDUCE_COALESCED, two, 2);
}
static void pair_barrier(perigee_request *req, int me, perigee_tensor **t) {
  if (me == 0)
    perigee_request_init(req, PERIGEE_OP_BARRIER);
  else
    *req = request_inplace(PERIGEE_OP_REDUCE, t, 1);
}
static void pair_into(perigee_request *req, int me, perigee_tensor **t) {
  static _Thread_local perigee_tensor *in;
  REQUIRE(perigee_tensor_narrow(t[0], 0, 0, me == 0 ? 2 : 1, &in) == 0);
  *req = request_out_in(PERIGEE_OP_ALLGATHER_INTO_TENSOR, me == 0 ? &t[0] : &t[4], 1, 0, &in, 1, 0);
}

static const pair pairs[] = {
    {"operation", {"allreduce f32[6] sum", "broadcast f32[6] root 0"}, pair_op},
    {"dtype", {"allreduce f32[6] sum", "allreduce i32[6] sum"}, pair_dtype},
    {"size", {"allreduce f32[6] sum", "allreduce f32[4] sum"}, pair_size},
    {"reduce op", {"reduce f32[6] sum root 0", "reduce f32[6] max root 0"}, pair_redop},
    {"root", {"broadcast f32[6] root 0", "broadcast f32[6] root 1"}, pair_root},
    {"length of the list", {"allreduce f32[6] sum", "allreduce f32[#"}, pair_list},
    {"order of the list",
     {"allreduce_coalesced f32[#", "allreduce_coalesced f32[#"},
     pair_coalesced},
    {"barrier", {"barrier", "reduce f32[6] sum root 0"}, pair_barrier},
    {"size of an input",
     {"allgather_into_tensor f32[2]", "allgather_into_tensor f32[1]"},
     pair_into},
};

static void differ(perigee_group *group, void *arg) {
  const pair *p = arg;
  int me = perigee_group_rank(group);
  perigee_tensor *t[] = {f32_of(6, 1), tensor_of(PERIGEE_I32, 6), f32_of(4, 1), f32_of(6, 1),
                         f32_of(3, 1)};
  perigee_request req;
  p->make(&req, me, t);
  int rc = perigee_group_run(group, &req), late = 0;
  if (rc == 0 && (perigee_op_get(req.op)->opts &
                  PERIGEE_OPT_ROOT)) { /* it needed nothing of the others: the next one tells */
    late = 1;
    rc = perigee_barrier(group);
  }
  const perigee_error *error = perigee_last_error();
  if ((rc != PERIGEE_EMISMATCH && (!late || rc != PERIGEE_EABORTED)) ||
      strstr(error->message, p->text[0]) == NULL || strstr(error->message, p->text[1]) == NULL) {
    fprintf(stderr, "rank %d, %s: %d '%s'\n", me, p->what, rc, error->message);
    note_failure(__FILE__, __LINE__, "EMISMATCH that names both sides");
  }
  CHECK(error->nranks > 0 && error->seq == (uint64_t)(1 + late));
  /* Of a failure that another rank saw in its call of this number it is told as of its own. */
  rc = perigee_barrier(group);
  CHECK(rc == PERIGEE_EABORTED || rc == PERIGEE_EMISMATCH);
  if (p->make == pair_into)
    perigee_tensor_unref(req.in.v[0]);
  for (size_t i = 0; i < PERIGEE_COUNT(t); i++)
    perigee_tensor_unref(t[i]);
}

static void test_different_calls(void **state) {
  (void)state;
  for (size_t i = 0; i < PERIGEE_COUNT(pairs); i++) {
    pair p = pairs[i];
    with_ranks(3, differ, &p);
    setenv("PERIGEE_TRANSPORT", "tcp", 1);
    with_ranks(3, differ, &p);
    unsetenv("PERIGEE_TRANSPORT");
  }
}

/* ---- ends -------------------------------------------------------------------------------------- */

static void close_while_pending(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_tensor *t[] = {f32_of(2, 1), f32_of(2, 1)};
  perigee_request reqs[] = {request_inplace(PERIGEE_OP_ALLREDUCE, &t[0], 1),
                            recv_of(&t[1], me == 0 ? 1 : 0, 0)};
  perigee_work *works[2];
  for (int i = 0; i < 2; i++) /* rank 2 does not come to the collective */
    works[i] = me == 2 && i == 0 ? NULL : submit(group, &reqs[i]);
  if (me == 0) {
    perigee__sleep_ns(50 * MS);
    int64_t start = perigee__now_ns();
    CHECK(perigee_group_close(group) == 0);
    CHECK(ms_since(start) < 2000 + LATE_MS);
    for (int i = 0; i < 2; i++) {
      CHECK(perigee_work_is_completed(works[i]));
      CHECK(perigee_work_wait(works[i], 0) == PERIGEE_ECLOSED);
    }
  } else { /* a message from rank 0 will not come */
    CHECK(perigee_work_wait(works[1], 5 * PERIGEE_NS_PER_SEC) == PERIGEE_EPEERCLOSED);
  }
  if (me == 2) /* now nobody is left whom rank 1 could wait for */
    CHECK(perigee_group_close(group) == 0);
  if (me == 1)
    CHECK(perigee_work_wait(works[0], 5 * PERIGEE_NS_PER_SEC) == PERIGEE_EPEERCLOSED);
  for (int i = 0; i < 2; i++) {
    perigee_work_unref(works[i]);
    perigee_tensor_unref(t[i]);
  }
}
static void test_close_with_pending_works(void **state) {
  (void)state;
  with_ranks(3, close_while_pending, NULL);
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(3, close_while_pending, NULL);
  unsetenv("PERIGEE_TRANSPORT");
}

/* Threads that wait for works of a group that another thread closes. */
static void *wait_for_end(void *arg) {
  int rc = perigee_work_wait(arg, PERIGEE_TIMEOUT_NONE);
  CHECK(rc == PERIGEE_ECLOSED || rc == PERIGEE_EPEERCLOSED || rc == PERIGEE_EABORTED);
  perigee_work_unref(arg);
  return NULL;
}

static void close_under_waiters(perigee_group *group, void *arg) {
  enum {
    WAITERS = 6
  };
  int me = perigee_group_rank(group);
  pthread_t threads[WAITERS];
  perigee_tensor *t[WAITERS];
  for (int i = 0; i < WAITERS; i++) {
    t[i] = f32_of(1, 1);
    perigee_request req = i % 2 && me == 0 ? request_inplace(PERIGEE_OP_ALLREDUCE, &t[i], 1)
                                           : recv_of(&t[i], 1 - me, 0);
    REQUIRE(pthread_create(&threads[i], NULL, wait_for_end, submit(group, &req)) == 0);
  }
  pthread_barrier_wait(arg);
  perigee__sleep_ns((me + 1) * 2 * MS);
  CHECK(perigee_group_close(group) == 0);
  for (int i = 0; i < WAITERS; i++) {
    pthread_join(threads[i], NULL);
    perigee_tensor_unref(t[i]);
  }
}
static void test_close_under_waiters(void **state) {
  (void)state;
  pthread_barrier_t submitted;
  pthread_barrier_init(&submitted, NULL, 2);
  for (int i = 0; i < 15; i++)
    with_ranks(2, close_under_waiters, &submitted);
  pthread_barrier_destroy(&submitted);
}

static void close_it(perigee_work *work, void *arg) {
  (void)work;
  CHECK(perigee_group_close(arg) == 0);
}
static void closes_in_callback(perigee_group *group, void *arg) {
  (void)arg;
  perigee_request req = bare(PERIGEE_OP_BARRIER);
  perigee_work *work = submit(group, &req);
  CHECK(perigee_work_on_done(work, close_it, group) == 0);
  int rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
  CHECK(rc == 0);
  perigee_work_unref(work);
  int64_t start = perigee__now_ns();
  while (!perigee_group_is_closed(group) && ms_since(start) < 3000)
    perigee__sleep_ns(MS);
  CHECK(perigee_group_is_closed(group));
}
static void test_close_from_a_callback(void **state) {
  (void)state, with_ranks(2, closes_in_callback, NULL);
}

/* What a rank has sent before it closes arrives. */
static void last_words(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    COUNT = 200000
  };
  perigee_tensor *t = f32_of(COUNT, (float)perigee_group_rank(group));
  if (perigee_group_rank(group) == 0) {
    CHECK(perigee_send(group, t, 1, 0) == 0);
    perigee_tensor *small = f32_of(3, 8);
    CHECK(perigee_send(group, small, 1, 1) == 0);
    perigee_tensor_unref(small);
    CHECK(perigee_group_close(group) == 0);
  } else {
    CHECK(perigee_recv(group, t, 0, 0) == 0);
    CHECK(f32_is(t, 0));
    perigee__sleep_ns(30 * MS);
    perigee_tensor *small = f32_of(3, 1);
    CHECK(perigee_recv(group, small, 0, 1) == 0);
    CHECK(f32_is(small, 8));
    CHECK(perigee_recv(group, small, 0, 2) == PERIGEE_EPEERCLOSED);
    perigee_tensor_unref(small);
  }
  perigee_tensor_unref(t);
}
static void test_last_words_arrive(void **state) {
  (void)state;
  with_ranks(2, last_words, NULL);
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(2, last_words, NULL);
  unsetenv("PERIGEE_TRANSPORT");
}

/* ---- nothing is left --------------------------------------------------------------------------- */

static int entries_of(const char *path) {
  DIR *dir = opendir(path);
  REQUIRE(dir != NULL);
  int n = 0;
  while (readdir(dir) != NULL)
    n++;
  closedir(dir);
  return n;
}

static void busy_once(perigee_group *group, void *arg) {
  (void)arg;
  perigee_request req = bare(PERIGEE_OP_BARRIER);
  perigee_work *work = submit(group, &req);
  req.timeout_ns = PERIGEE_NS_PER_SEC;
  CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0);
  perigee_work_unref(work);
}

static void settle(int fds, int threads) {
  assert_true(perigee__closing_wait(perigee__deadline_in(5 * PERIGEE_NS_PER_SEC)));
  int64_t start = perigee__now_ns();
  while ((entries_of("/proc/self/fd") > fds || entries_of("/proc/self/task") > threads) &&
         ms_since(start) < 5000)
    perigee__sleep_ns(MS);
  if (entries_of("/proc/self/fd") != fds || entries_of("/proc/self/task") != threads)
    fail_msg("%d descriptors and %d threads are left", entries_of("/proc/self/fd") - fds,
             entries_of("/proc/self/task") - threads);
}

static void test_dropped_without_close(void **state) {
  (void)state;
  with_ranks(2, busy_once, NULL); /* what stays for the life of the process comes into being */
  perigee__sleep_ns(50 * MS);
  int fds = entries_of("/proc/self/fd"), threads = entries_of("/proc/self/task");
  for (int i = 0; i < 5; i++) {
    perigee_group *groups[RANKS_MAX];
    open_local(3, NULL, groups);
    on_ranks(3, groups, busy_once, NULL);
    for (int r = 0; r < 3; r++)
      perigee_group_unref(groups[r]);
    assert_true(perigee__closing_wait(perigee__deadline_in(5 * PERIGEE_NS_PER_SEC)));
  }
  settle(fds, threads);
  for (int i = 0; i < 3; i++) {
    with_ranks(2, busy_once, NULL);
    with_ranks(3, close_while_pending, NULL);
  }
  settle(fds, threads);
  assert_no_failures();
}

/* Whoever is inside a call when its group is closed comes out. */
static void *block_in(void *arg) {
  perigee_group *group = arg;
  int rc = perigee_barrier(group);
  CHECK(rc == PERIGEE_ECLOSED || rc == PERIGEE_EPEERCLOSED || rc == PERIGEE_EABORTED);
  return NULL;
}
static void close_under_a_call(perigee_group *group, void *arg) {
  (void)arg;
  if (perigee_group_rank(group) == 0) {
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, block_in, group) == 0);
    perigee__sleep_ns(20 * MS);
    int64_t start = perigee__now_ns();
    CHECK(perigee_group_close(group) == 0);
    CHECK(ms_since(start) < LATE_MS);
    pthread_join(thread, NULL);
  }
}
static void test_close_under_a_call(void **state) {
  (void)state, with_ranks(2, close_under_a_call, NULL);
}

int main(void) {
  program_deadline(115);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_looking),
      cmocka_unit_test(test_timeout_names_the_missing),
      cmocka_unit_test(test_monitored_barrier),
      cmocka_unit_test(test_abort_reaches_all_ranks),
      cmocka_unit_test(test_groups_fail_alone),
      cmocka_unit_test(test_different_calls),
      cmocka_unit_test(test_close_with_pending_works),
      cmocka_unit_test(test_close_under_waiters),
      cmocka_unit_test(test_close_under_a_call),
      cmocka_unit_test(test_close_from_a_callback),
      cmocka_unit_test(test_last_words_arrive),
      cmocka_unit_test(test_dropped_without_close),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
