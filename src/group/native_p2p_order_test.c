/* Defends: whichever way messages go, small in slots, through the ring, announced, they arrive whole and in the order of their tag; what
 * was posted moves while nobody waits for it. */
#include "group/testing.h"

#include "group/work.h"

static void finish(perigee_work *work) {
  CHECK(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE) == 0);
  perigee_work_unref(work);
}

/* ---- order ------------------------------------------------------------------------------------- */

enum {
  TAGS = 3,
  MANY = 400
};

/* Elements of message i: mostly a few, now and then more than a slot, than the ring may have left, than goes without asking. */
static int64_t numel_of(int i) {
  static const int64_t some[] = {1, 2, 6, 7, 0, 100, 1023, 1024, 1025, 3, 4095, 4097, 2, 20000};
  return some[(size_t)(i * 7 + i / 5) % PERIGEE_COUNT(some)];
}

/* Rank 1 takes them tag by tag: all but those of the first tag come unexpected, those of one tag stay in order. late: it starts when all
 * that can be sent has been. */
static void mixed(perigee_group *group, bool late) {
  perigee_work *works[MANY];
  int me = perigee_group_rank(group);
  if (me == 0) {
    for (int i = 0; i < MANY; i++) {
      perigee_tensor *t = f32_of(numel_of(i), (float)i);
      perigee_request req = send_of(&t, 1, i % TAGS);
      works[i] = submit(group, &req);
      perigee_tensor_unref(t);
    }
    if (late)
      CHECK(perigee_barrier(group) == 0);
    for (int i = 0; i < MANY; i++)
      finish(works[i]);
    return;
  }
  if (late)
    CHECK(perigee_barrier(group) == 0);
  for (int tag = 0; tag < TAGS; tag++)
    for (int i = tag; i < MANY; i += TAGS) {
      perigee_tensor *t = f32_of(numel_of(i), -1);
      perigee_request req = recv_of(&t, i % 4 == 0 ? -1 : 0, tag);
      if (i % 2)
        CHECK(perigee_group_run(group, &req) == 0);
      else
        finish(submit(group, &req));
      CHECK(f32_is(t, (float)i));
      perigee_tensor_unref(t);
    }
}
static void mixed_fn(perigee_group *group, void *arg) {
  mixed(group, *(const bool *)arg);
  CHECK(perigee_barrier(group) == 0);
}
static void test_mixed_sizes_in_order(void **state) {
  (void)state;
  for (int late = 0; late < 2; late++) {
    bool arg = late;
    with_ranks(2, mixed_fn, &arg);
  }
}

/* ---- several groups at once -------------------------------------------------------------------- */

enum {
  LANES = 4,
  WINDOWS = 20,
  WIDTH = 16
};

/* Windows of works, in turn in both directions. */
static void *windows(void *arg) {
  perigee_group *group = arg;
  int me = perigee_group_rank(group);
  for (int w = 0; w < WINDOWS; w++) {
    perigee_work *works[WIDTH];
    perigee_tensor *tensors[WIDTH];
    for (int i = 0; i < WIDTH; i++) {
      bool sends = (w % 2) == me;
      tensors[i] = f32_of(numel_of(w + i), sends ? (float)(w * WIDTH + i) : -1);
      perigee_request req =
          sends ? send_of(&tensors[i], 1 - me, 0) : recv_of(&tensors[i], 1 - me, 0);
      works[i] = submit(group, &req);
    }
    for (int i = 0; i < WIDTH; i++) {
      finish(works[i]);
      CHECK(f32_is(tensors[i], (float)(w * WIDTH + i)));
      perigee_tensor_unref(tensors[i]);
    }
  }
  return NULL;
}

static void groups_of_threads(perigee_group *group, void *arg) {
  (void)arg;
  static const int ranks[] = {0, 1};
  perigee_group *groups[LANES] = {group};
  pthread_t threads[LANES];
  for (int i = 1; i < LANES; i++)
    REQUIRE(perigee_group_subgroup(group, ranks, 2, NULL, &groups[i]) == 0);
  for (int i = 0; i < LANES; i++)
    REQUIRE(pthread_create(&threads[i], NULL, windows, groups[i]) == 0);
  for (int i = 0; i < LANES; i++)
    pthread_join(threads[i], NULL);
  for (int i = 1; i < LANES; i++)
    drop_group(groups[i]);
}
static void test_threads_with_their_own_groups(void **state) {
  (void)state, with_ranks(2, groups_of_threads, NULL);
}

/* ---- nobody waits ------------------------------------------------------------------------------ */

/* Both ranks only post and look: a message that has to be asked for still comes, although the I/O thread is told of each post. */
static void posts_alone(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group);
  int64_t until = perigee__deadline_in(15 * PERIGEE_NS_PER_SEC);
  perigee_tensor *large = f32_of(500000, me == 0 ? 3 : -1), *small = f32_of(1, 1);
  perigee_request req = me == 0 ? send_of(&large, 1, 1) : recv_of(&large, 0, 1);
  perigee_work *work = submit(group, &req);
  perigee_request noise = send_of(&small, 1 - me, 2), answer = recv_of(&small, 1 - me, 2);
  int posted = 0;
  while (perigee_work_get_status(work) == PERIGEE_WORK_PENDING && !perigee__passed(until)) {
    if (posted < 3000) /* within the credit */
      perigee_work_unref(submit(group, &noise)), posted++;
    usleep(100);
  }
  CHECK(perigee_work_get_status(work) == PERIGEE_WORK_DONE);
  finish(work);
  CHECK(f32_is(large, 3));
  int64_t theirs = 0;
  perigee_tensor *count = tensor_of(PERIGEE_I64, 1);
  *(int64_t *)perigee_tensor_data(count) = posted;
  for (int turn = 0; turn < 2; turn++) {
    if (turn == me) {
      CHECK(perigee_send(group, count, 1 - me, 3) == 0);
    } else {
      perigee_tensor *other = tensor_of(PERIGEE_I64, 1);
      CHECK(perigee_recv(group, other, 1 - me, 3) == 0);
      theirs = *(int64_t *)perigee_tensor_data(other);
      perigee_tensor_unref(other);
    }
  }
  for (int64_t i = 0; i < theirs; i++)
    CHECK(perigee_group_run(group, &answer) == 0);
  perigee_tensor_unref(count);
  perigee_tensor_unref(large);
  perigee_tensor_unref(small);
}
static void test_posts_alone(void **state) {
  (void)state;
  with_ranks(2, posts_alone, NULL);
  setenv("PERIGEE_TRANSPORT", "tcp", 1);
  with_ranks(2, posts_alone, NULL);
  unsetenv("PERIGEE_TRANSPORT");
}

static void late_fn(perigee_group *group, void *arg) {
  (void)arg;
  int64_t until = perigee__deadline_in(15 * PERIGEE_NS_PER_SEC);
  perigee_tensor *t = f32_of(1, 0);
  perigee_work *works[3];
  for (int i = 0; i < 3; i++) { /* not in the order of their deadlines */
    perigee_request req = recv_of(&t, 1 - perigee_group_rank(group), i);
    req.timeout_ns = (i == 0 ? 60 : i == 1 ? 20 : 40) * PERIGEE_NS_PER_MS;
    works[i] = submit(group, &req);
  }
  for (int i = 0; i < 3; i++) {
    while (perigee_work_get_status(works[i]) == PERIGEE_WORK_PENDING && !perigee__passed(until))
      usleep(1000);
    CHECK(perigee_work_get_status(works[i]) == PERIGEE_WORK_TIMEDOUT);
    perigee_work_unref(works[i]);
  }
  CHECK(perigee_barrier(group) == 0); /* the group is well */
  perigee_tensor_unref(t);
}
static void test_deadlines_of_works_nobody_waits_for(void **state) {
  (void)state, with_ranks(2, late_fn, NULL);
}

int main(void) {
  program_deadline(100);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_mixed_sizes_in_order),
      cmocka_unit_test(test_threads_with_their_own_groups),
      cmocka_unit_test(test_posts_alone),
      cmocka_unit_test(test_deadlines_of_works_nobody_waits_for),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
