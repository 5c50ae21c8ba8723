/* Defends: messages meet by peer and tag in the order sent; what goes wrong with one of them concerns that one alone. */
#include "group/testing.h"

#include "group/work.h"

static int finish(perigee_work *work) {
  int rc = perigee_work_wait(work, PERIGEE_TIMEOUT_NONE);
  perigee_work_unref(work);
  return rc;
}

/* ---- meeting ----------------------------------------------------------------------------------- */

static const int64_t sizes[] = {0, 1, 1000, 300000};

static void all_pairs(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  for (int from = 0; from < n; from++)
    for (int to = 0; to < n; to++)
      for (size_t s = 0; s < PERIGEE_COUNT(sizes); s++) {
        if (from == to || (me != from && me != to))
          continue;
        perigee_tensor *t = f32_of(sizes[s], me == from ? (float)(from * 10 + to) : -1);
        if (me == from)
          CHECK(perigee_send(group, t, to, 3) == 0);
        else
          CHECK(perigee_recv(group, t, from, 3) == 0);
        CHECK(f32_is(t, (float)(from * 10 + to)));
        perigee_tensor_unref(t);
      }
}
static void test_all_pairs(void **state) {
  (void)state;
  for (int n = 2; n <= 5; n++)
    with_ranks(n, all_pairs, NULL);
}
static void test_all_pairs_by_tcp(void **state) {
  (void)state;
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(3, all_pairs, NULL);
  unsetenv("PERIGEE_TRANSPORT");
}

/* Everybody sends to everybody at once, works waited for in the reverse order of their start. */
static void all_at_once(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    TAGS = 5
  };
  int me = perigee_group_rank(group), n = perigee_group_size(group), count = 0;
  perigee_work *works[2 * TAGS * RANKS_MAX];
  perigee_tensor *tensors[2 * TAGS * RANKS_MAX];
  for (int peer = 0; peer < n; peer++)
    for (int tag = 0; tag < TAGS && peer != me; tag++) {
      perigee_request req;
      int64_t numel = tag == 2 ? 200000 : 50;
      tensors[count] = f32_of(numel, (float)(me * 100 + tag));
      req = send_of(&tensors[count], peer, tag);
      works[count] = submit(group, &req);
      count++;
      /* received in the reverse order of tags */
      int other = TAGS - 1 - tag;
      tensors[count] = f32_of(other == 2 ? 200000 : 50, -1);
      req = recv_of(&tensors[count], peer, other);
      works[count] = submit(group, &req);
      count++;
    }
  for (int i = count - 1; i >= 0; i--) {
    bool received = perigee_work_op(works[i]) == PERIGEE_OP_RECV;
    CHECK(perigee_work_wait(works[i], PERIGEE_TIMEOUT_NONE) == 0);
    int source = perigee_work_source_rank(works[i]), tag = TAGS - 1 - i / 2 % TAGS;
    if (received) {
      CHECK(source >= 0 && source != me);
      CHECK(f32_is(tensors[i], (float)(source * 100 + tag)));
      CHECK(perigee_work_outputs(works[i]).v[0] == tensors[i]);
    } else {
      CHECK(source == -1);
    }
    perigee_work_unref(works[i]);
    perigee_tensor_unref(tensors[i]);
  }
}
static void test_all_at_once(void **state) { (void)state, with_ranks(4, all_at_once, NULL); }

/* A work that is kept stays what it was, however many come and go after it; some end at once, some do not. */
static void kept_works(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    ROUNDS = 400,
    EVERY = 7
  };
  int me = perigee_group_rank(group), n_kept = 0;
  perigee_work *kept[ROUNDS];
  perigee_tensor *tensors[ROUNDS];
  for (int i = 0; i < ROUNDS; i++) {
    perigee_tensor *t = f32_of(2, me == 0 ? (float)i : -1);
    perigee_request req = me == 0 ? send_of(&t, 1, i % 3) : recv_of(&t, 0, i % 3);
    perigee_work *work = submit(group, &req);
    if (i % EVERY == 0) {
      kept[n_kept] = work;
      tensors[n_kept++] = t;
      continue;
    }
    perigee_tensor_unref(t);
    CHECK(finish(work) == 0);
  }
  for (int k = 0; k < n_kept; k++) {
    CHECK(perigee_work_wait(kept[k], PERIGEE_TIMEOUT_NONE) == 0);
    CHECK(perigee_work_seq(kept[k]) == (uint64_t)(k * EVERY + 1));
    CHECK(perigee_work_source_rank(kept[k]) == (me == 0 ? -1 : 0));
    CHECK(perigee_work_finished_ns(kept[k]) >= perigee_work_started_ns(kept[k]));
    CHECK(f32_is(tensors[k], (float)(k * EVERY)));
    perigee_tensor_unref(tensors[k]); /* a receive shows it as long as it lives */
    CHECK(perigee_work_outputs(kept[k]).n == (me == 0 ? 0U : 1U));
    if (me == 1)
      CHECK(f32_is(perigee_work_outputs(kept[k]).v[0], (float)(k * EVERY)));
  }
  CHECK(perigee_barrier(group) == 0);
  for (int k = 0; k < n_kept; k++)
    perigee_work_unref(kept[k]);
}

static void test_kept_works(void **state) { (void)state, with_ranks(2, kept_works, NULL); }

static void same_tag_in_order(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    MANY = 300
  };
  perigee_tensor *t = f32_of(4, 0);
  for (int i = 0; i < MANY; i++)
    if (perigee_group_rank(group) == 0) {
      perigee_tensor *mine = f32_of(4, (float)i);
      perigee_request req = send_of(&mine, 1, 0);
      perigee_work_unref(submit(group, &req)); /* nobody keeps it: it pins its tensor itself */
      perigee_tensor_unref(mine);
    } else {
      CHECK(perigee_recv(group, t, 0, 0) == 0);
      CHECK(f32_is(t, (float)i));
    }
  CHECK(perigee_barrier(group) == 0);
  perigee_tensor_unref(t);
}
static void test_same_tag_in_order(void **state) {
  (void)state, with_ranks(2, same_tag_in_order, NULL);
}

static void any_source(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  perigee_tensor *t = f32_of(3, (float)me);
  for (int round = 0; round < 20; round++) {
    if (me != 0) {
      CHECK(perigee_send(group, t, 0, 9) == 0);
      continue;
    }
    unsigned seen = 0;
    for (int i = 1; i < n; i++) {
      perigee_request req = recv_of(&t, -1, 9);
      if (i == 1 && round % 2) { /* the short way: who it was is in the tensor alone */
        CHECK(perigee_group_run(group, &req) == 0);
      } else {
        perigee_work *work = submit(group, &req);
        CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0);
        CHECK(f32_is(t, (float)perigee_work_source_rank(work)));
        perigee_work_unref(work);
      }
      seen |= 1u << (int)f32_at(t, 0);
    }
    if (round == 19)
      CHECK(seen != 0);
  }
  CHECK(perigee_barrier(group) == 0);
  perigee_tensor_unref(t);
}
static void test_any_source(void **state) { (void)state, with_ranks(4, any_source, NULL); }

/* Ranks of a subgroup: peers and sources are its own numbers. */
static void in_subgroup(perigee_group *group, void *arg) {
  (void)arg;
  perigee_group *child = NULL;
  int ranks[] = {3, 1};
  CHECK(perigee_group_subgroup(group, ranks, 2, NULL, &child) == 0);
  if (child == NULL)
    return;
  perigee_tensor *t = f32_of(1, (float)perigee_group_rank(child));
  if (perigee_group_rank(child) == 0) {
    CHECK(perigee_send(child, t, 1, 0) == 0);
  } else {
    perigee_request req = recv_of(&t, -1, 0);
    perigee_work *work = submit(child, &req);
    CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0);
    CHECK(perigee_work_source_rank(work) == 0);
    perigee_work_unref(work);
  }
  CHECK(f32_is(t, 0));
  perigee_tensor_unref(t);
  drop_group(child);
}
static void test_in_subgroup(void **state) { (void)state, with_ranks(4, in_subgroup, NULL); }

/* ---- what goes wrong --------------------------------------------------------------------------- */

static void mismatches(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *f3 = f32_of(3, 1), *f5 = f32_of(5, 2), *i3 = tensor_of(PERIGEE_I32, 3);
  int me = perigee_group_rank(group);
  perigee_tensor *sent[] = {f3, f5, f3, f3}, *wanted[] = {i3, f3, f5, f3};
  for (int i = 0; i < 4; i++) {
    if (me == 0) {
      CHECK(perigee_send(group, sent[i], 1, i) == 0);
      continue;
    }
    perigee_request req = recv_of(&wanted[i], i == 2 ? -1 : 0, i);
    int rc = i == 1 ? finish(submit(group, &req)) : perigee_group_run(group, &req);
    CHECK(rc == (i == 3 ? 0 : PERIGEE_EMISMATCH));
    static const char *const texts[] = {"rank 0 sent f32[3], this rank receives i32[3]",
                                        "rank 0 sent f32[5], this rank receives f32[3]",
                                        "rank 0 sent f32[3], this rank receives f32[5]"};
    if (i < 3) {
      CHECK(last_error_has(texts[i]));
      CHECK(perigee_last_error()->nranks == 1 && perigee_last_error()->ranks[0] == 0);
      CHECK(perigee_last_error()->rank == 1);
    }
  }
  CHECK(perigee_barrier(group) == 0); /* the group lives on */
  CHECK(perigee_group_failed(group, NULL) == 0);
  perigee_tensor_unref(f3);
  perigee_tensor_unref(f5);
  perigee_tensor_unref(i3);
}
static void test_mismatches(void **state) { (void)state, with_ranks(2, mismatches, NULL); }

static void late_ones(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = f32_of(2, (float)perigee_group_rank(group) + 5);
  if (perigee_group_rank(group) == 0) {
    perigee_request req = recv_of(&t, 1, 0);
    req.timeout_ns = 60 * MS;
    int64_t start = perigee__now_ns();
    CHECK(perigee_group_run(group, &req) == PERIGEE_ETIMEDOUT);
    CHECK(ms_since(start) >= 60 && ms_since(start) < 60 + LATE_MS);
    CHECK(last_error_has("timed out after 0.1 s, missing rank 1"));
    CHECK(perigee_last_error()->nranks == 1 && perigee_last_error()->ranks[0] == 1);
    CHECK(perigee_last_error()->op == PERIGEE_OP_RECV && perigee_last_error()->seq == 1);
    start = perigee__now_ns();
    perigee_work *work = submit(group, &req);
    CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == PERIGEE_ETIMEDOUT);
    CHECK(ms_since(start) >= 60 && ms_since(start) < 60 + LATE_MS);
    CHECK(perigee_work_get_status(work) == PERIGEE_WORK_TIMEDOUT);
    CHECK(last_error_has("missing rank 1"));
    perigee_work_unref(work);
    req = recv_of(&t, -1, 0);
    req.timeout_ns = 60 * MS;
    start = perigee__now_ns();
    work = submit(group, &req); /* nobody waits: the deadline service ends it */
    while (!perigee_work_is_completed(work) && ms_since(start) < 3000)
      perigee__sleep_ns(MS);
    CHECK(ms_since(start) >= 60 && ms_since(start) < 60 + LATE_MS);
    CHECK(error_has(perigee_work_error(work), "no rank has sent"));
    perigee_work_unref(work);
    CHECK(f32_is(t, 5));
  }
  CHECK(perigee_barrier(group) == 0);
  /* What was taken back takes nothing away. */
  if (perigee_group_rank(group) == 1) {
    CHECK(perigee_send(group, t, 0, 0) == 0);
  } else {
    CHECK(perigee_recv(group, t, 1, 0) == 0);
    CHECK(f32_is(t, 6));
  }
  perigee_tensor_unref(t);
}
static void test_timeouts_leave_the_group_alone(void **state) {
  (void)state, with_ranks(2, late_ones, NULL);
}

/* A large send that nobody takes, and one that is taken back while half of it is on its way. */
static void send_times_out(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    LARGE = 2000000
  };
  perigee_tensor *t = f32_of(LARGE, 3), *small = f32_of(1, 4);
  if (perigee_group_rank(group) == 0) {
    perigee_request req = send_of(&t, 1, 7);
    req.timeout_ns = 80 * MS;
    CHECK(perigee_group_run(group, &req) == PERIGEE_ETIMEDOUT);
    CHECK(last_error_has("missing rank 1"));
    CHECK(perigee_send(group, small, 1, 8) == 0);
    CHECK(perigee_send(group, small, 1, 7) == 0);
  } else {
    perigee_tensor *got = f32_of(1, 0);
    CHECK(perigee_recv(group, got, 0, 8) == 0);
    CHECK(perigee_recv(group, got, 0, 7) == 0); /* the small one: the large one was taken back */
    CHECK(f32_is(got, 4));
    perigee_tensor_unref(got);
  }
  CHECK(perigee_barrier(group) == 0);
  perigee_tensor_unref(t);
  perigee_tensor_unref(small);
}
static void test_send_times_out(void **state) { (void)state, with_ranks(2, send_times_out, NULL); }

/* ---- waiting for works ------------------------------------------------------------------------- */

typedef struct waiter {
  perigee_work *work;
  _Atomic uint32_t interrupt;
  _Atomic int out;
} waiter;

static void *interruptible(void *arg) {
  waiter *self = arg;
  int rc = perigee_work_wait_interruptible(self->work, PERIGEE_TIMEOUT_NONE,
                                           (const uint32_t *)(void *)&self->interrupt);
  CHECK(rc == 1);
  atomic_store(&self->out, 1);
  CHECK(perigee_work_wait(self->work, PERIGEE_TIMEOUT_NONE) == 0);
  return NULL;
}

static void waits(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = f32_of(1, (float)perigee_group_rank(group));
  if (perigee_group_rank(group) == 0) {
    perigee_request req = recv_of(&t, 1, 0);
    perigee_work *work = submit(group, &req);
    int64_t start = perigee__now_ns();
    CHECK(perigee_work_wait(work, 30 * MS) == PERIGEE_EAGAIN);
    CHECK(ms_since(start) >= 30 && ms_since(start) < 30 + LATE_MS);
    CHECK(perigee_work_get_status(work) == PERIGEE_WORK_PENDING);
    enum {
      WAITERS = 4
    };
    pthread_t threads[WAITERS];
    waiter all[WAITERS];
    memset(all, 0, sizeof(all));
    for (int i = 0; i < WAITERS; i++) {
      all[i].work = work;
      REQUIRE(pthread_create(&threads[i], NULL, interruptible, &all[i]) == 0);
    }
    perigee__sleep_ns(20 * MS);
    start = perigee__now_ns();
    for (int i = 0; i < WAITERS; i++) {
      CHECK(atomic_load(&all[i].out) == 0);
      atomic_store(&all[i].interrupt, 1);
    }
    perigee_work_interrupt(work);
    for (int i = 0; i < WAITERS; i++)
      while (atomic_load(&all[i].out) == 0 && ms_since(start) < 2000)
        perigee__sleep_ns(100000);
    CHECK(ms_since(start) < LATE_MS);
    perigee_tensor *go = f32_of(1, 0);
    CHECK(perigee_send(group, go, 1, 1) == 0);
    perigee_tensor_unref(go);
    for (int i = 0; i < WAITERS; i++)
      pthread_join(threads[i], NULL);
    CHECK(f32_is(t, 1));
    perigee_work_unref(work);
  } else {
    perigee_tensor *go = f32_of(1, 1);
    CHECK(perigee_recv(group, go, 0, 1) == 0);
    perigee_tensor_unref(go);
    CHECK(perigee_send(group, t, 0, 0) == 0);
  }
  perigee_tensor_unref(t);
}
static void test_waits_and_interrupts(void **state) { (void)state, with_ranks(2, waits, NULL); }

/* A future over a message: waits drive the message, and the future's own end comes out of it. */
static void copy_end(perigee_work *work, void *arg) {
  (void)work;
  perigee_future_set_result(arg);
}
static void *end_soon(void *arg) {
  perigee__sleep_ns(50 * MS);
  CHECK(perigee_future_set_result(arg));
  return NULL;
}

static void over_a_message(perigee_group *group, void *arg) {
  (void)arg;
  perigee_tensor *t = f32_of(1, 1);
  if (perigee_group_rank(group) == 0) {
    perigee_request req = recv_of(&t, 1, 0);
    perigee_work *work = submit(group, &req), *above, *early;
    CHECK(perigee_future_create(work, NULL, PERIGEE_NEVER, &early) == 0);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, end_soon, early) == 0);
    int64_t start = perigee__now_ns();
    CHECK(perigee_work_wait(early, PERIGEE_TIMEOUT_NONE) == 0);
    CHECK(ms_since(start) < 50 + LATE_MS);
    pthread_join(thread, NULL);
    CHECK(!perigee_work_is_completed(work));
    CHECK(perigee_future_create(work, NULL, PERIGEE_NEVER, &above) == 0);
    CHECK(perigee_work_on_done(work, copy_end, above) == 0);
    CHECK(perigee_send(group, t, 1, 1) == 0);
    CHECK(perigee_work_wait(above, PERIGEE_TIMEOUT_NONE) == 0);
    perigee_work_unref(above);
    perigee_work_unref(early);
    perigee_work_unref(work);
  } else {
    CHECK(perigee_recv(group, t, 0, 1) == 0);
    CHECK(perigee_send(group, t, 0, 0) == 0);
  }
  perigee_tensor_unref(t);
}
static void test_futures_over_messages(void **state) {
  (void)state, with_ranks(2, over_a_message, NULL);
}

/* ---- many threads ------------------------------------------------------------------------------- */

typedef struct lane {
  perigee_group *group;
  int tag;
} lane;

static void *ping_pong(void *arg) {
  lane *self = arg;
  int me = perigee_group_rank(self->group);
  perigee_tensor *t = f32_of(16, 0);
  for (int i = 0; i < 100; i++) {
    for (int j = 0; me == 0 && j < 16; j++)
      ((float *)perigee_tensor_data(t))[j] = (float)(i + self->tag);
    perigee_request send = send_of(&t, 1 - me, self->tag), recv = recv_of(&t, 1 - me, self->tag);
    for (int step = 0; step < 2; step++) {
      const perigee_request *req = (step == 0) == (me == 0) ? &send : &recv;
      if (i % 2)
        CHECK(perigee_group_run(self->group, req) == 0);
      else
        CHECK(finish(submit(self->group, req)) == 0);
    }
    CHECK(f32_is(t, (float)(i + self->tag)));
  }
  perigee_tensor_unref(t);
  return NULL;
}

static void lanes(perigee_group *group, void *arg) {
  (void)arg;
  enum {
    LANES = 4
  };
  pthread_t threads[LANES];
  lane all[LANES];
  for (int i = 0; i < LANES; i++) {
    all[i] = (lane){group, i};
    REQUIRE(pthread_create(&threads[i], NULL, ping_pong, &all[i]) == 0);
  }
  for (int i = 0; i < LANES; i++)
    pthread_join(threads[i], NULL);
}
static void test_threads_with_their_own_tags(void **state) {
  (void)state, with_ranks(2, lanes, NULL);
}

static void test_one_rank_has_nobody(void **state) {
  (void)state;
  perigee_group *group = open_alone(NULL, 0, 1);
  perigee_tensor *t = f32_of(1, 1);
  perigee_request req = recv_of(&t, -1, 0);
  perigee_work *work = NULL;
  assert_int_equal(perigee_group_run(group, &req), PERIGEE_EINVAL);
  assert_true(last_error_has("there is no other rank in this group"));
  assert_int_equal(perigee_group_submit(group, &req, &work), PERIGEE_EINVAL);
  assert_null(work);
  assert_int_equal(perigee_group_seq(group), 0); /* messages have numbers of their own */
  drop_group(group);
  perigee_tensor_unref(t);
}

int main(void) {
  program_deadline(100);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_all_pairs),
      cmocka_unit_test(test_all_pairs_by_tcp),
      cmocka_unit_test(test_all_at_once),
      cmocka_unit_test(test_kept_works),
      cmocka_unit_test(test_same_tag_in_order),
      cmocka_unit_test(test_any_source),
      cmocka_unit_test(test_in_subgroup),
      cmocka_unit_test(test_mismatches),
      cmocka_unit_test(test_timeouts_leave_the_group_alone),
      cmocka_unit_test(test_send_times_out),
      cmocka_unit_test(test_waits_and_interrupts),
      cmocka_unit_test(test_futures_over_messages),
      cmocka_unit_test(test_threads_with_their_own_tags),
      cmocka_unit_test(test_one_rank_has_nobody),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
