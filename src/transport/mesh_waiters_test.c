/* Many threads on one mesh: each wakes for what is its own, whoever drives; nobody starves; callbacks run with no lock held. */
#include "transport/mesh_testing.h"
/* the above first: cmocka needs what it includes */
#include "base/thread.h"
#include "transport/mesh_impl.h"

enum {
  THREADS = 4,
  ROUNDS = 300
};

typedef struct job {
  member *m;
  int index;
  pthread_t thread;
  _Atomic uint32_t word; /* changed by the callback */
  perigee__xfer x;
} job;

static void jobs_init(member *m, int n, job *jobs) {
  memset(jobs, 0, (size_t)n * sizeof(*jobs));
  for (int i = 0; i < n; i++) {
    jobs[i].m = m;
    jobs[i].index = i;
  }
}

static void run_jobs(int n, void *(*fn)(void *arg), job *jobs) {
  for (int i = 0; i < n; i++) {
    CHECK(pthread_create(&jobs[i].thread, NULL, fn, &jobs[i]) == 0);
  }
  for (int i = 0; i < n; i++)
    CHECK(pthread_join(jobs[i].thread, NULL) == 0);
}

static void on_done(perigee__xfer *x) {
  job *j = PERIGEE_CONTAINER_OF(x, job, x);
#ifdef PERIGEE_DEBUG
  CHECK(perigee__locks_held() == 0);
#endif
  CHECK(x->status == 0);
  atomic_fetch_add(&j->word, 1); /* the mesh wakes who waits for words behind this */
}

/* Receive in three ways: by done, by callback and word, by any-of. */
static void receive(job *j, uint64_t tag, uint8_t *buf, size_t size) {
  member *m = j->m;
  perigee__xfer x = {0}, never = {0}, *list[2] = {&never, &x};
  uint32_t seen = atomic_load(&j->word);
  switch (j->index % 3) {
  case 0:
    recv_from(m, 1 - m->me, tag, buf, size);
    break;
  case 1:
    memset(&j->x, 0, sizeof(j->x));
    j->x.on_done = on_done;
    perigee__mesh_recv(m->mesh, &m->fate, 1 - m->me, key_of_tag(tag), buf, size, 0, &j->x);
    while (atomic_load(&j->word) == seen)
      CHECK_OK(perigee__mesh_wait_word(m->mesh, &j->word, seen, patience()));
    break;
  default:
    perigee__mesh_recv(m->mesh, &m->fate, 1 - m->me, key_of_tag(tag + 1000), buf, size, 0, &never);
    perigee__mesh_recv(m->mesh, &m->fate, 1 - m->me, key_of_tag(tag), buf, size, 0, &x);
    CHECK_OK(perigee__mesh_wait_any(m->mesh, list, 2, &m->fate, patience()));
    CHECK(x.done == 1 && x.status == 0);
    perigee__mesh_cancel(m->mesh, &never);
    break;
  }
}

/* Four threads of each rank have a ping-pong each: what one of them reads is often another one's. */
static void *ping_pong_main(void *arg) {
  job *j = arg;
  member *m = j->m;
  uint64_t tag = (uint64_t)j->index;
  for (uint64_t i = 0; i < ROUNDS; i++) {
    uint64_t value = i * 10 + tag, got = 0;
    if (m->me == 0)
      send_to(m, 1, tag, &value, sizeof(value));
    receive(j, tag, (uint8_t *)&got, sizeof(got));
    CHECK(got == value);
    if (m->me == 1)
      send_to(m, 0, tag, &value, sizeof(value));
  }
  return NULL;
}

static void ping_pongs(member *m) {
  job jobs[THREADS];
  jobs_init(m, THREADS, jobs);
  int64_t started = perigee__now_ns();
  run_jobs(THREADS, ping_pong_main, jobs);
  /* Sleeping through wake-ups would cost 100 ms each. */
  CHECK(perigee__now_ns() - started < 8 * SLOWNESS * SEC);
}

/* ---- words ------------------------------------------------------------------------------------- */

static void *change_main(void *arg) {
  job *j = arg;
  for (int i = 0; i < ROUNDS; i++) {
    perigee__sleep_ns(i % 3 * 100000);
    uint32_t seen = atomic_fetch_add(&j->word, 1) + 1;
    perigee__mesh_kick(j->m->mesh);
    while (atomic_load(&j->word) == seen) /* the waiter answers */
      perigee__sleep_ns(10000);
  }
  return NULL;
}

static void *word_main(void *arg) {
  job *j = arg;
  for (uint32_t i = 0; i < ROUNDS; i++) {
    CHECK_OK(perigee__mesh_wait_word(j->m->mesh, &j->word, 2 * i, patience()));
    CHECK(atomic_fetch_add(&j->word, 1) == 2 * i + 1);
  }
  return NULL;
}

/* Words that threads without the mesh change; one waiter drives, the others stand by. */
static void words(member *m) {
  job jobs[3];
  pthread_t changers[3];
  jobs_init(m, 3, jobs);
  int64_t started = perigee__now_ns();
  for (int i = 0; i < 3; i++)
    CHECK(pthread_create(&changers[i], NULL, change_main, &jobs[i]) == 0);
  run_jobs(3, word_main, jobs);
  for (int i = 0; i < 3; i++)
    CHECK(pthread_join(changers[i], NULL) == 0);
  CHECK(perigee__now_ns() - started < 8 * SLOWNESS * SEC);
  _Atomic uint32_t still = 5;
  started = perigee__now_ns();
  CHECK_CODE(perigee__mesh_wait_word(m->mesh, &still, 5, perigee__deadline_in(30 * MS)),
             PERIGEE_ETIMEDOUT);
  int64_t took = perigee__now_ns() - started;
  CHECK(took >= 30 * MS && took < 80 * LATENESS * MS);
}

/* ---- posting beside a driver ------------------------------------------------------------------- */

static void *stuck_main(void *arg) {
  job *j = arg;
  perigee__xfer x = {0};
  uint8_t buf[8];
  perigee__mesh_recv(j->m->mesh, &j->m->fate, 1 - j->m->me, key_of_tag(500 + (uint64_t)j->index),
                     buf, sizeof(buf), 0, &x);
  CHECK_OK(wait_one(j->m, &x, patience()));
  CHECK(x.status == 0);
  return NULL;
}

/* While threads wait, in epoll or beside it, others post and cancel without being held up. */
static void posting(member *m) {
  job jobs[3];
  jobs_init(m, 3, jobs);
  for (int i = 0; i < 3; i++)
    CHECK(pthread_create(&jobs[i].thread, NULL, stuck_main, &jobs[i]) == 0);
  int64_t worst = 0, started = perigee__now_ns();
  for (int i = 0; i < 200; i++) {
    perigee__xfer x = {0};
    perigee__sleep_ns(200000);
    int64_t before = perigee__now_ns();
    perigee__mesh_recv(m->mesh, &m->fate, -1, key_of_tag(900), NULL, 0, 0, &x);
    perigee__mesh_cancel(m->mesh, &x);
    int64_t took = perigee__now_ns() - before;
    worst = took > worst ? took : worst;
  }
  CHECKF(perigee__now_ns() - started < 5 * SLOWNESS * SEC, "worst %lld ns", (long long)worst);
  meet(m, 1);
  for (uint64_t i = 0; i < 3; i++)
    send_filled(m, 1 - m->me, 500 + i, 8);
  for (int i = 0; i < 3; i++)
    CHECK(pthread_join(jobs[i].thread, NULL) == 0);
}

/* ---- nobody waits ------------------------------------------------------------------------------ */

/* The I/O thread alone brings a large message over and calls back. */
static void nobody_waits(member *m) {
  job j = {.m = m};
  uint8_t *buf = bytes_new(LARGEST);
  j.x.on_done = on_done;
  if (m->me == 0) {
    fill(buf, LARGEST, 1);
    perigee__mesh_send(m->mesh, &m->fate, 1, key_of_tag(1), buf, LARGEST, 0, &j.x);
  } else {
    perigee__sleep_ns(20 * MS);
    perigee__mesh_recv(m->mesh, &m->fate, 0, key_of_tag(1), buf, LARGEST, 0, &j.x);
  }
  int64_t until = patience();
  while (atomic_load(&j.word) == 0) {
    CHECK(!perigee__passed(until));
    perigee__sleep_ns(MS);
  }
  CHECK(m->me == 0 || is_filled(buf, LARGEST, 1));
  free(buf);
}

/* Many small sends close behind each other, which may be written together: all go out, whether somebody waits for them or
 * not, though one of them is taken back. */
static void bursts(member *m) {
  enum {
    SENDS = 200,
    TAKEN = 150,
    SIZE = 64
  };
  job jobs[SENDS];
  uint8_t data[SENDS][SIZE];
  for (uint64_t round = 0; round < 20; round++) {
    jobs_init(m, SENDS, jobs);
    meet(m, round);
    for (uint64_t i = 0; i < SENDS && m->me == 0; i++) {
      fill(data[i], SIZE, i * 64);
      jobs[i].x.on_done = i == TAKEN ? NULL : on_done;
      perigee__mesh_send(m->mesh, &m->fate, 1, key_of_tag(i), data[i], SIZE, 0, &jobs[i].x);
    }
    if (m->me == 0)
      perigee__mesh_cancel(m->mesh, &jobs[TAKEN].x);
    int64_t until = patience();
    for (uint64_t i = 0; i < SENDS; i++) {
      if (m->me == 1 && i != TAKEN)
        recv_filled(m, 0, i, SIZE);
      while (m->me == 0 && i != TAKEN && atomic_load(&jobs[i].word) == 0) {
        CHECK(!perigee__passed(until));
        if (round % 2 == 0)
          perigee__sleep_ns(MS / 10);
        else
          CHECK_OK(perigee__mesh_wait_word(m->mesh, &jobs[i].word, 0, until));
      }
    }
    uint8_t taken[SIZE]; /* may have been too late */
    perigee__xfer x = {0};
    if (m->me == 1)
      perigee__mesh_recv(m->mesh, &m->fate, 0, key_of_tag(TAKEN), taken, SIZE, 0, &x);
    meet(m, 100 + round);
    if (m->me == 1)
      perigee__mesh_cancel(m->mesh, &x);
  }
}

/* After a driver has left, what comes is noticed soon. */
static void after_a_driver(member *m) {
  for (uint64_t i = 0; i < 30; i++) {
    meet(m, i);
    job j = {.m = m};
    uint8_t byte = 0;
    j.x.on_done = on_done;
    if (m->me == 0) {
      perigee__mesh_recv(m->mesh, &m->fate, 1, key_of_tag(100 + i), &byte, 1, 0, &j.x);
      send_to(m, 1, 200 + i, NULL, 0);
      int64_t started = perigee__now_ns();
      while (atomic_load(&j.word) == 0) {
        CHECK(perigee__now_ns() - started < 300 * LATENESS * MS);
        perigee__sleep_ns(MS / 10);
      }
    } else {
      recv_from(m, 0, 200 + i, NULL, 0);
      send_to(m, 0, 100 + i, &byte, 1);
    }
  }
}

/* A failed group wakes all its waiters. */
static void *doomed_main(void *arg) {
  job *j = arg;
  perigee__xfer x = {0};
  uint8_t buf[8];
  perigee__mesh_recv(j->m->mesh, &j->m->fate, -1, key_of_tag(1), buf, sizeof(buf), 0, &x);
  int rc = wait_one(j->m, &x, patience());
  CHECK(rc == PERIGEE_EABORTED || (rc == 0 && x.status == PERIGEE_EABORTED));
  perigee__mesh_cancel(j->m->mesh, &x);
  atomic_fetch_add(&j->word, 1);
  return NULL;
}

static void failing_wakes(member *m) {
  job jobs[THREADS];
  jobs_init(m, THREADS, jobs);
  meet(m, 1);
  gather_at(m, 0);
  for (int i = 0; i < THREADS; i++)
    CHECK(pthread_create(&jobs[i].thread, NULL, doomed_main, &jobs[i]) == 0);
  perigee__sleep_ns(30 * MS); /* most sleep by now */
  int64_t started = perigee__now_ns();
  if (m->me == 0) {
    perigee_error error;
    perigee__error_init(&error);
    perigee__error_set(&error, PERIGEE_EABORTED, "enough");
    CHECK(perigee__fate_fail(&m->fate, &error)); /* without the mesh: its listener wakes */
    for (int i = 0; i < THREADS; i++)
      CHECK(pthread_join(jobs[i].thread, NULL) == 0);
    CHECK(perigee__now_ns() - started < 80 * LATENESS * MS);
    perigee__mesh_fail_group(m->mesh, &m->fate, &error);
  } else {
    for (int i = 0; i < THREADS; i++)
      CHECK(pthread_join(jobs[i].thread, NULL) == 0);
    CHECK(perigee__now_ns() - started < 500 * LATENESS * MS);
  }
}

#define BOTH(_name, _n)                                                                            \
  static void _name##_shm(void **state) {                                                          \
    (void)state;                                                                                   \
    world_of(_n, PERIGEE_TRANSPORT_SHM, _name, NULL);                                              \
  }                                                                                                \
  static void _name##_tcp(void **state) {                                                          \
    (void)state;                                                                                   \
    world_of(_n, PERIGEE_TRANSPORT_TCP, _name, NULL);                                              \
  }
BOTH(ping_pongs, 2)
BOTH(words, 2)
BOTH(posting, 2)
BOTH(nobody_waits, 2)
BOTH(bursts, 2)
BOTH(after_a_driver, 2)
BOTH(failing_wakes, 2)
#define TESTS(_name) cmocka_unit_test(_name##_shm), cmocka_unit_test(_name##_tcp)

int main(void) {
  const struct CMUnitTest tests[] = {
      TESTS(ping_pongs), TESTS(words),          TESTS(posting),       TESTS(nobody_waits),
      TESTS(bursts),     TESTS(after_a_driver), TESTS(failing_wakes),
  };
  return run_all("mesh_waiters", tests, sizeof(tests) / sizeof(tests[0]));
}
