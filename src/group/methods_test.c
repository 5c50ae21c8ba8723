/* Defends: the methods a C layer may have besides operations, and that makers who know fewer slots go on to work. */
#include "group/testing.h"

#include <stddef.h>

#include "group/group.h"
#include "group/work.h"

/* A layer that has every method; counts the calls and passes on, or answers as told. */
typedef struct teller {
  perigee_layer *layer;
  int splits, starts, ends, reconfigures;
  int ops_in_batch; /* operations between start and end */
  bool batching;
} teller;

static teller *last; /* of the last open */
static int answer_rank, answer_size;
static int fail_with;          /* code that start, end, shutdown and split give, or 0 */
static perigee_work *end_work; /* what end_coalescing gives, or NULL: passed on */
static const char *answer_name;
static bool in_place;     /* reconfigure does not make a group */
static unsigned withheld; /* methods `provides` denies, as bits */
/* of the last layer that was asked: close frees it */
static int shutdowns;
static int64_t shutdown_ns;

static int teller_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)backend;
  teller *self = calloc(1, sizeof(*self));
  REQUIRE(self != NULL);
  self->layer = info->layer;
  *self_p = last = self;
  return 0;
}
static void teller_close(void *arg) { free(arg); }
static int teller_submit(void *arg, const perigee_request *req, perigee_work **work_p) {
  teller *self = arg;
  self->ops_in_batch += self->batching;
  return perigee_layer_submit(self->layer, req, work_p);
}
static bool teller_provides(void *arg, int method) {
  (void)arg;
  return !(withheld >> method & 1);
}
static const char *teller_name(void *arg) {
  (void)arg;
  return answer_name;
}
static int teller_rank(void *arg) {
  (void)arg;
  return answer_rank < 0 ? perigee__fail(PERIGEE_EUNREACH, "no rank today") : answer_rank;
}
static int teller_size(void *arg) {
  (void)arg;
  return answer_size;
}
static int refused(void) { return perigee__fail(fail_with, "not today"); }
static int teller_split(void *arg, int color, int key, const char *name, perigee_group **group_p) {
  teller *self = arg;
  self->splits++;
  if (fail_with != 0)
    return refused();
  if (color == 99) {
    *group_p = NULL;
    return 0;
  }
  return perigee_layer_split(self->layer, color, key, name, group_p);
}
static int teller_shutdown(void *arg, int64_t timeout_ns) {
  teller *self = arg;
  shutdowns++;
  shutdown_ns = timeout_ns;
  return fail_with != 0 ? refused() : perigee_layer_shutdown(self->layer, timeout_ns);
}
static int teller_start(void *arg) {
  teller *self = arg;
  if (fail_with != 0)
    return refused();
  self->starts++;
  self->batching = true;
  return perigee_layer_start_coalescing(self->layer);
}
static int teller_end(void *arg, perigee_work **work_p) {
  teller *self = arg;
  self->ends++;
  self->batching = false;
  if (end_work == NULL)
    return perigee_layer_end_coalescing(self->layer, work_p);
  *work_p = perigee_work_ref(end_work);
  return 0;
}
static int teller_reconfigure(void *arg, const perigee_reconfigure_options *opts,
                              perigee_group **group_p) {
  teller *self = arg;
  self->reconfigures++;
  if (!in_place)
    return perigee_layer_reconfigure(self->layer, opts, group_p);
  *group_p = NULL;
  return 0;
}

static const perigee_backend_ops_v1 teller_ops = {.size = sizeof(perigee_backend_ops_v1),
                                                  .abi = 1,
                                                  .open = teller_open,
                                                  .close = teller_close,
                                                  .submit = teller_submit,
                                                  .provides = teller_provides,
                                                  .backend_name = teller_name,
                                                  .rank = teller_rank,
                                                  .group_size = teller_size,
                                                  .split_group = teller_split,
                                                  .shutdown = teller_shutdown,
                                                  .start_coalescing = teller_start,
                                                  .end_coalescing = teller_end,
                                                  .reconfigure = teller_reconfigure};

static perigee_group *open_teller(const char *stack) {
  answer_rank = 123;
  answer_size = 456;
  answer_name = "told";
  fail_with = 0;
  end_work = NULL;
  in_place = false;
  return open_alone(stack, 0, 1);
}

static int setup(void **state) {
  (void)state;
  withheld = 0;
  return perigee_backend_register("teller", "native", &teller_ops, NULL);
}

static void submit_one(perigee_group *group, perigee_tensor *t, perigee_work **work_p) {
  perigee_tensor *list[] = {t};
  const perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, list, 1);
  REQUIRE(perigee_group_submit(group, &req, work_p) == 0);
}

/* ---- attributes ---------------------------------------------------------------------------------- */

static void name_rank_and_size_are_the_layers(void **state) {
  (void)state;
  perigee_group *group = open_teller("teller");
  assert_string_equal(perigee_group_backend(group), "told(native)");
  assert_int_equal(perigee_group_rank(group), 123);
  assert_int_equal(perigee_group_size(group), 456);
  assert_int_equal(perigee_layer_rank(last->layer), 0);
  assert_int_equal(perigee_layer_size(last->layer), 1);
  perigee_tensor *t = f32_of(3, 2);
  assert_int_equal(perigee_broadcast(group, t, 123), PERIGEE_ERANGE); /* the real size counts */
  assert_int_equal(perigee_broadcast(group, t, 0), 0);
  answer_rank = -1;
  answer_size = 0;
  assert_int_equal(perigee_group_rank(group), PERIGEE_EUNREACH);
  assert_true(last_error_has("no rank today"));
  assert_int_equal(perigee_group_size(group), PERIGEE_ERANGE);
  perigee_tensor_unref(t);
  assert_int_equal(perigee_group_close(group), 0);
  assert_int_equal(perigee_group_rank(group), 0); /* nobody is left to ask */
  perigee_group_unref(group);
}

static void a_layer_above_sees_what_is_reported_below(void **state) {
  (void)state;
  perigee_group *group = open_teller("teller(teller)");
  assert_string_equal(perigee_group_backend(group), "told(told(native))");
  assert_string_equal(perigee_layer_below(last->layer), "told(native)");
  assert_int_equal(perigee_layer_rank(last->layer), 123);
  drop_group(group);
}

static void a_bad_name_fails_the_opening(void **state) {
  (void)state;
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = "teller";
  opts.rank = 0;
  opts.nranks = 1;
  answer_name = "two words";
  perigee_group *group = NULL;
  assert_int_equal(perigee_init(&opts, &group), PERIGEE_EINVAL);
  assert_true(last_error_has("backend_name says 'two words'"));
  assert_null(group);
}

static void withheld_and_unknown_slots_are_not_called(void **state) {
  (void)state;
  withheld = ~0u;
  perigee_group *group = open_teller("teller");
  assert_string_equal(perigee_group_backend(group), "teller(native)");
  assert_int_equal(perigee_group_rank(group), 0);
  perigee_work *work = NULL;
  assert_int_equal(perigee_group_coalesce_start(group, PERIGEE_TIMEOUT_DEFAULT), 0);
  assert_int_equal(perigee_group_coalesce_end(group, &work), 0);
  perigee_work_unref(work);
  assert_int_equal(last->starts + last->ends, 0);
  drop_group(group);
  /* A maker whose struct ends before the optional methods: what lies behind it is not read. */
  withheld = 0;
  perigee_backend_ops_v1 old = teller_ops;
  old.size = (uint32_t)offsetof(perigee_backend_ops_v1, provides);
  assert_int_equal(perigee_backend_register("older", "native", &old, NULL), 0);
  group = open_teller("older");
  assert_string_equal(perigee_group_backend(group), "older(native)");
  assert_int_equal(perigee_group_size(group), 1);
  drop_group(group);
  old.size = (uint32_t)offsetof(perigee_backend_ops_v1, submit);
  assert_int_equal(perigee_backend_register("tiny", "native", &old, NULL), PERIGEE_EINVAL);
}

static void names_of_methods(void **state) {
  (void)state;
  assert_string_equal(perigee_method_name(PERIGEE_METHOD_OPEN), "open");
  assert_string_equal(perigee_method_name(PERIGEE_METHOD_RECONFIGURE), "reconfigure");
  assert_null(perigee_method_name(-1));
  assert_null(perigee_method_name(PERIGEE_METHOD_COUNT));
}

/* ---- split, shutdown, reconfigure ---------------------------------------------------------------- */

static void split_goes_through_the_layer(void **state) {
  (void)state;
  perigee_group *group = open_teller("teller"), *part = NULL;
  teller *mine = last;
  assert_int_equal(perigee_group_split(group, 0, 0, NULL, &part), 0);
  assert_int_equal(mine->splits, 1);
  assert_string_equal(perigee_group_backend(part), "told(native)");
  drop_group(part);
  part = NULL;
  assert_int_equal(perigee_group_split(group, 99, 0, NULL, &part), PERIGEE_EINVAL);
  assert_true(last_error_has("layer 'told' made no group for color 99"));
  fail_with = PERIGEE_EUNREACH;
  assert_int_equal(perigee_group_split(group, 0, 0, NULL, &part), PERIGEE_EUNREACH);
  assert_null(part);
  drop_group(group);
}

static void shutdown_asks_the_layer_and_closes(void **state) {
  (void)state;
  perigee_group *group = open_teller("teller");
  shutdowns = 0;
  fail_with = PERIGEE_EUNREACH;
  assert_int_equal(perigee_group_shutdown(group, 5 * PERIGEE_NS_PER_SEC), PERIGEE_EUNREACH);
  assert_true(last_error_has("not today"));
  assert_true(perigee_group_is_closed(group));
  assert_int_equal(shutdowns, 1);
  assert_true(shutdown_ns == 5 * PERIGEE_NS_PER_SEC);
  assert_int_equal(perigee_group_shutdown(group, 0), 0); /* again: nothing to do */
  assert_int_equal(shutdowns, 1);
  perigee_group_unref(group);
  group = open_teller("teller");
  assert_int_equal(perigee_group_shutdown(group, 0), 0); /* passed on to the runtime */
  assert_int_equal(shutdowns, 2);
  perigee_group_unref(group);
}

static void shutdown_waits_for_what_is_pending(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t[8];
  perigee_work *works[8];
  for (int i = 0; i < 8; i++) {
    t[i] = f32_of(1000, 1);
    submit_one(group, t[i], &works[i]);
  }
  CHECK(perigee_group_shutdown(group, 0) == 0);
  CHECK(perigee_group_is_closed(group));
  for (int i = 0; i < 8; i++) {
    CHECK(perigee_work_get_status(works[i]) == PERIGEE_WORK_DONE);
    CHECK(f32_is(t[i], 3));
    perigee_work_unref(works[i]);
    perigee_tensor_unref(t[i]);
  }
}
static void shutdown_lets_operations_end(void **state) {
  (void)state;
  with_ranks(3, shutdown_waits_for_what_is_pending, NULL);
}

static void shutdown_gives_up_in_time(perigee_group *group, void *arg) {
  (void)arg;
  if (perigee_group_rank(group) == 1) {
    perigee__sleep_ns(300 * MS);
    return;
  }
  perigee_tensor *t = f32_of(1, 1);
  perigee_work *work;
  submit_one(group, t, &work);
  CHECK(perigee_group_shutdown(group, 50 * MS) == PERIGEE_ETIMEDOUT);
  CHECK(perigee_work_error(work) != NULL && perigee_work_error(work)->code == PERIGEE_ECLOSED);
  perigee_work_unref(work);
  perigee_tensor_unref(t);
}
static void shutdown_times_out(void **state) {
  (void)state;
  with_ranks(2, shutdown_gives_up_in_time, NULL);
}

static void reconfigure_makes_another_group(void **state) {
  (void)state;
  perigee_group *group = open_teller("teller"), *made = NULL;
  in_place = true;
  assert_int_equal(perigee_group_reconfigure(group, NULL, &made), 0);
  assert_null(made);
  assert_int_equal(last->reconfigures, 1);
  in_place = false;
  assert_int_equal(perigee_group_reconfigure(group, NULL, &made), 0);
  assert_non_null(made);
  assert_true(perigee_group_is_closed(group));
  assert_string_equal(perigee_group_backend(made), "told(native)"); /* by its registered name */
  drop_group(made);
  made = NULL;
  assert_int_equal(perigee_group_reconfigure(group, NULL, &made), 0); /* a closed one as well */
  drop_group(made);
  perigee_group_unref(group);
}

static void reconfigure_ranks(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  perigee_reconfigure_options opts;
  perigee_reconfigure_options_init(&opts);
  opts.timeout_ns = 7 * PERIGEE_NS_PER_SEC;
  opts.rank = 2 - me;
  opts.nranks = 3;
  perigee_group *at = group;
  for (int i = 0; i < 3; i++) { /* 2-me, me, 2-me */
    perigee_group *made = NULL;
    opts.rank = i % 2 == 0 ? 2 - me : me;
    REQUIRE(perigee_group_reconfigure(at, &opts, &made) == 0);
    if (at != group)
      perigee_group_unref(at);
    at = made;
    CHECK(perigee_group_rank(at) == opts.rank && perigee_group_timeout(at) == opts.timeout_ns);
    perigee_tensor *t = f32_of(2, (float)perigee_group_rank(at));
    CHECK(perigee_broadcast(at, t, 2) == 0 && f32_is(t, 2));
    perigee_tensor_unref(t);
  }
  drop_group(at);
}
static void reconfigure_meets_anew(void **state) {
  (void)state;
  with_ranks(3, reconfigure_ranks, NULL);
}

/* ---- coalescing ---------------------------------------------------------------------------------- */

static void a_batch_goes_through_the_layer(void **state) {
  (void)state;
  perigee_group *group = open_teller("teller");
  perigee_tensor *t = f32_of(2, 3);
  perigee_work *part, *work = NULL;
  assert_int_equal(perigee_group_coalesce_start(group, PERIGEE_TIMEOUT_DEFAULT), 0);
  assert_true(perigee_group_is_coalescing(group));
  assert_int_equal(perigee_group_coalesce_start(group, PERIGEE_TIMEOUT_DEFAULT), PERIGEE_ESTATE);
  submit_one(group, t, &part);
  assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), 0); /* is the second part */
  assert_int_equal(last->starts, 0);
  assert_int_equal(perigee_work_wait(part, PERIGEE_TIMEOUT_NONE), PERIGEE_EDEADLK);
  assert_int_equal(perigee_broadcast(group, t, 4), PERIGEE_ERANGE); /* refused at once, no part */
  end_work = NULL;
  assert_int_equal(perigee_future_create(NULL, NULL, PERIGEE_NEVER, &end_work), 0);
  assert_int_equal(perigee_group_coalesce_end(group, &work), 0);
  assert_false(perigee_group_is_coalescing(group));
  assert_int_equal(last->starts * 100 + last->ops_in_batch * 10 + last->ends, 121);
  assert_int_equal(perigee_work_wait(part, PERIGEE_TIMEOUT_NONE), 0);
  assert_int_equal(perigee_work_wait(work, 10 * MS), PERIGEE_EAGAIN); /* the layer's work is open */
  assert_true(perigee_future_set_result(end_work));
  assert_int_equal(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE), 0);
  assert_int_equal(perigee_group_coalesce_end(group, &work), PERIGEE_ESTATE);
  perigee_work_unref(end_work);
  perigee_work_unref(part);
  perigee_work_unref(work);
  perigee_tensor_unref(t);
  drop_group(group);
}

static void a_start_that_fails_fails_the_batch(void **state) {
  (void)state;
  perigee_group *group = open_teller("teller");
  perigee_tensor *t = f32_of(2, 3);
  perigee_work *part, *work = NULL;
  assert_int_equal(perigee_group_coalesce_start(group, PERIGEE_TIMEOUT_DEFAULT), 0);
  submit_one(group, t, &part);
  fail_with = PERIGEE_EUNREACH;
  assert_int_equal(perigee_group_coalesce_end(group, &work), 0);
  assert_int_equal(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE), PERIGEE_EUNREACH);
  assert_true(error_has(perigee_work_error(work), "operation 1 of 1 coalesced, allreduce: "));
  assert_true(error_has(perigee_work_error(work), "start_coalescing: not today"));
  assert_int_equal(last->ends, 0);
  assert_int_equal(perigee_group_seq(group), 0);
  perigee_work_unref(part);
  perigee_work_unref(work);
  perigee_tensor_unref(t);
  drop_group(group);
}

static void *call_from_outside(void *arg) {
  perigee_tensor *t = f32_of(2, 3);
  CHECK(!perigee_group_is_coalescing(arg));
  CHECK(perigee_allreduce(arg, t, PERIGEE_REDOP_SUM) == 0);
  CHECK(perigee_group_seq(arg) == 1); /* it ran */
  perigee_tensor_unref(t);
  return NULL;
}

static void a_batch_is_its_threads_alone(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1);
  perigee_tensor *t = f32_of(2, 3);
  perigee_work *part;
  pthread_t thread;
  assert_int_equal(perigee_group_coalesce_start(group, PERIGEE_TIMEOUT_DEFAULT), 0);
  submit_one(group, t, &part);
  assert_int_equal(pthread_create(&thread, NULL, call_from_outside, group), 0);
  assert_int_equal(pthread_join(thread, NULL), 0);
  assert_int_equal(perigee_group_coalesce_cancel(group), 0);
  assert_int_equal(perigee_group_coalesce_cancel(group), PERIGEE_ESTATE);
  assert_int_equal(perigee_work_error(part)->code, PERIGEE_ECANCELED);
  assert_int_equal(perigee_group_seq(group), 1);
  perigee_work_unref(part);
  perigee_tensor_unref(t);
  drop_group(group);
  assert_no_failures();
}

enum {
  PARTS = 50
};

/* All kinds in one batch, waited for by two threads; the next batch while the first is under way. */
static void *wait_main(void *arg) {
  CHECK(perigee_work_wait(arg, PERIGEE_TIMEOUT_NONE) == 0);
  return NULL;
}
static void batches(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  perigee_tensor *t[2][PARTS];
  perigee_work *works[2];
  for (int b = 0; b < 2; b++) {
    REQUIRE(perigee_group_coalesce_start(group, PERIGEE_TIMEOUT_DEFAULT) == 0);
    for (int i = 0; i < PARTS; i++) {
      t[b][i] = f32_of(100, i % 3 == 2 ? (float)me : 1);
      CHECK((i % 3 == 0   ? perigee_allreduce(group, t[b][i], PERIGEE_REDOP_SUM)
             : i % 3 == 1 ? perigee_send(group, t[b][i], (me + 1) % n, i)
                          : perigee_recv(group, t[b][i], (me + n - 1) % n, i - 1)) == 0);
    }
    /* 50 parts: the last send has no receive in this batch */
    perigee_tensor *rest = f32_of(100, 0);
    CHECK(perigee_recv(group, rest, (me + n - 1) % n, PARTS - 1) == 0);
    REQUIRE(perigee_group_coalesce_end(group, &works[b]) == 0);
    perigee_tensor_unref(rest); /* the batch keeps it */
  }
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, wait_main, works[1]) == 0);
  for (int b = 0; b < 2; b++) {
    CHECK(perigee_work_wait(works[b], PERIGEE_TIMEOUT_NONE) == 0);
    for (int i = 0; i < PARTS; i++)
      CHECK(f32_is(t[b][i], i % 3 == 0 ? (float)n : 1));
  }
  REQUIRE(pthread_join(thread, NULL) == 0);
  for (int b = 0; b < 2; b++) {
    perigee_work_unref(works[b]);
    for (int i = 0; i < PARTS; i++)
      perigee_tensor_unref(t[b][i]);
  }
}
static void ranks_coalesce(void **state) {
  (void)state;
  with_ranks(3, batches, NULL);
}

static void abort_batch(perigee_group *group, void *arg) {
  (void)arg;
  perigee_work *work;
  perigee_tensor *t = f32_of(1, 0);
  if (perigee_group_rank(group) == 0) {
    REQUIRE(perigee_group_coalesce_start(group, PERIGEE_TIMEOUT_DEFAULT) == 0);
    CHECK(perigee_recv(group, t, 1, 0) == 0);
    CHECK(perigee_recv(group, t, 1, 1) == 0);
    REQUIRE(perigee_group_coalesce_end(group, &work) == 0);
    CHECK(perigee_work_wait(work, 20 * MS) == PERIGEE_EAGAIN);
    CHECK(perigee_work_abort(work, "had enough") == 0);
    CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) < 0);
    CHECK(error_has(perigee_work_error(work), "operation 1 of 2 coalesced, recv"));
    perigee_work_unref(work);
  } else {
    CHECK(perigee_recv(group, t, 0, 0) < 0); /* the group was aborted with it */
  }
  perigee_tensor_unref(t);
}
static void a_batch_is_aborted(void **state) {
  (void)state;
  with_ranks(2, abort_batch, NULL);
}

/* ---- shrink -------------------------------------------------------------------------------------- */

/* The mesh of the rank that leaves is gone before the others open descriptors: libuv closes its own where TSan does not see it. */
static _Atomic bool left;

static void shrink_without_rank_1(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  if (me == 1) {
    CHECK(perigee_group_close(group) == 0);
    atomic_store(&left, true);
    return;
  }
  while (!atomic_load(&left))
    perigee__sleep_ns(MS);
  perigee_group *alive = NULL;
  REQUIRE(perigee_group_shrink(group, 20 * PERIGEE_NS_PER_SEC, "left", &alive) == 0);
  CHECK(perigee_group_size(alive) == 3 && perigee_group_rank(alive) == (me == 0 ? 0 : me - 1));
  CHECK(perigee_group_to_world(alive, 1) == 2);
  CHECK(strstr(perigee_group_name(alive), "/left1.1") != NULL);
  perigee_tensor *t = f32_of(4, 1);
  CHECK(perigee_allreduce(alive, t, PERIGEE_REDOP_SUM) == 0 && f32_is(t, 3));
  perigee_tensor_unref(t);
  drop_group(alive);
}
static void who_has_left_is_left_out(void **state) {
  (void)state;
  with_ranks(4, shrink_without_rank_1, NULL);
}

static void shrink_alone(void **state) {
  (void)state;
  perigee_group *group = open_alone("native", 0, 1), *alive = NULL;
  assert_int_equal(perigee_group_shrink(group, 0, NULL, &alive), 0);
  assert_int_equal(perigee_group_size(alive), 1);
  drop_group(alive);
  drop_group(group);
  group = open_alone("fake", 1, 4);
  assert_int_equal(perigee_group_shrink(group, 0, NULL, &alive), PERIGEE_ENOTSUP);
  drop_group(group);
}

int main(void) {
  program_deadline(100);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(name_rank_and_size_are_the_layers, setup),
      cmocka_unit_test_setup(a_layer_above_sees_what_is_reported_below, setup),
      cmocka_unit_test_setup(a_bad_name_fails_the_opening, setup),
      cmocka_unit_test_setup(withheld_and_unknown_slots_are_not_called, setup),
      cmocka_unit_test(names_of_methods),
      cmocka_unit_test_setup(split_goes_through_the_layer, setup),
      cmocka_unit_test_setup(shutdown_asks_the_layer_and_closes, setup),
      cmocka_unit_test(shutdown_lets_operations_end),
      cmocka_unit_test(shutdown_times_out),
      cmocka_unit_test_setup(reconfigure_makes_another_group, setup),
      cmocka_unit_test(reconfigure_meets_anew),
      cmocka_unit_test_setup(a_batch_goes_through_the_layer, setup),
      cmocka_unit_test_setup(a_start_that_fails_fails_the_batch, setup),
      cmocka_unit_test(a_batch_is_its_threads_alone),
      cmocka_unit_test(ranks_coalesce),
      cmocka_unit_test(a_batch_is_aborted),
      cmocka_unit_test(who_has_left_is_left_out),
      cmocka_unit_test(shrink_alone),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
