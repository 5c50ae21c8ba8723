/* Groups on a mesh: an abort reaches every rank once, leaving ends what others wait for, late comers learn what was, questions are answered. */
#include "transport/mesh_testing.h"
/* the above first: cmocka needs what it includes */
#include "transport/mesh_impl.h"

static perigee_error some_error(int code, const char *text) {
  perigee_error error;
  perigee__error_init(&error);
  perigee__error_set(&error, code, "%s", text);
  return error;
}

static void until_failed(perigee__fate *fate, int64_t deadline_ns) {
  while (!perigee__fate_failed(fate)) {
    CHECK(!perigee__passed(deadline_ns));
    perigee__sleep_ns(MS / 4);
  }
}

/* ---- abort ------------------------------------------------------------------------------------- */

typedef struct abort_run {
  _Atomic int64_t said_ns;
  int who;
  bool waits; /* the others are in a receive, or do nothing of the mesh's */
} abort_run;

static void abort_rank(member *m) {
  abort_run *run = m->arg;
  perigee__xfer x = {0};
  uint8_t buf[8];
  meet(m, 1);
  gather_at(m, run->who);
  if (m->me == run->who) {
    perigee_error error = some_error(PERIGEE_EMISMATCH, "ranks differ");
    error.seq = 42;
    perigee__error_add_rank(&error, 2);
    atomic_store(&run->said_ns, perigee__now_ns());
    perigee__mesh_fail_group(m->mesh, &m->fate, &error);
  } else if (run->waits) {
    perigee__mesh_recv(m->mesh, &m->fate, (m->me + 1) % m->n, key_of_tag(99), buf, sizeof(buf), 0,
                       &x);
    CHECK_CODE(wait_one(m, &x, patience()), x.done != 0 ? 0 : PERIGEE_EABORTED);
    perigee__mesh_cancel(m->mesh, &x);
    CHECK(x.status == PERIGEE_EABORTED || x.status == PERIGEE_ECANCELED);
  }
  until_failed(&m->fate, patience());
  int64_t took = perigee__now_ns() - atomic_load(&run->said_ns);
  CHECKF(took < 100 * LATENESS * MS, "%lld ns", (long long)took);
  const perigee_error *error = &m->fate.error;
  CHECK(error->code == PERIGEE_EMISMATCH && error->seq == 42 &&
        strcmp(error->message, "ranks differ") == 0);
  CHECK(error->nranks == 1 && error->ranks[0] == 2 && error->rank == m->me);
  CHECK(m->me == run->who || error->origin == run->who);
  /* Nothing goes any more. */
  memset(&x, 0, sizeof(x));
  perigee__mesh_send(m->mesh, &m->fate, (m->me + 1) % m->n, key_of_tag(5), buf, 0, 0, &x);
  CHECK(x.done == 1 && x.status == PERIGEE_EABORTED);
}

static void aborts(perigee__transport transport) {
  for (int n = 2; n <= 8; n += 3)
    for (int waits = 0; waits < 2; waits++) {
      abort_run run = {.who = n - 1, .waits = waits == 1};
      world_of(n, transport, abort_rank, &run);
    }
}

static void abort_shm(void **state) {
  (void)state;
  aborts(PERIGEE_TRANSPORT_SHM);
}
static void abort_tcp(void **state) {
  (void)state;
  aborts(PERIGEE_TRANSPORT_TCP);
}

/* The first cause was recorded without the mesh; failing the group then still tells the others, and tells them that cause. */
static void told_afterwards(member *m) {
  meet(m, 1);
  gather_at(m, 0);
  if (m->me == 0) {
    const perigee_error first = some_error(PERIGEE_ETIMEDOUT, "the first"),
                        second = some_error(PERIGEE_EABORTED, "the second");
    CHECK(perigee__fate_fail(&m->fate, &first));
    perigee__mesh_fail_group(m->mesh, &m->fate, &second);
  }
  until_failed(&m->fate, patience());
  CHECK(strcmp(m->fate.error.message, "the first") == 0);
}

/* Who closes is no cause for the others. */
static void closing_is_not_told(member *m) {
  meet(m, 1);
  gather_at(m, 0);
  if (m->me == 0) {
    const perigee_error closed = some_error(PERIGEE_ECLOSED, "closed");
    perigee__mesh_fail_group(m->mesh, &m->fate, &closed);
  } else {
    perigee__sleep_ns(20 * MS);
    CHECK(!perigee__fate_failed(&m->fate));
  }
}

/* ---- leaving ----------------------------------------------------------------------------------- */

static int end_of_recv(member *m, int peer, uint64_t tag) {
  perigee__xfer x = {0};
  uint8_t buf[8];
  perigee__mesh_recv(m->mesh, &m->fate, peer, key_of_tag(tag), buf, sizeof(buf), 0, &x);
  CHECK_OK(wait_one(m, &x, patience()));
  return x.status;
}

/* Rank 0 leaves the group; its mesh stays. What it sent before counts. */
static void leaves_group(member *m) {
  if (m->me == 0) {
    for (int r = 1; r < m->n; r++)
      send_filled(m, r, 1, 8);
    perigee__mesh_detach(m->mesh, &m->fate);
  } else {
    recv_filled(m, 0, 1, 8);
    CHECK_CODE(end_of_recv(m, 0, 2), PERIGEE_EPEERCLOSED);
    perigee__xfer x = {0};
    perigee__mesh_send(m->mesh, &m->fate, 0, key_of_tag(3), NULL, 0, 0, &x);
    CHECK(x.done == 1 && x.status == PERIGEE_EPEERCLOSED);
    CHECK(!perigee__fate_failed(&m->fate));
    /* The others go on. */
    send_filled(m, 3 - m->me, 4, 8);
    recv_filled(m, 3 - m->me, 4, 8);
  }
}

static void leave_group(perigee__transport transport) {
  world w;
  world_open(&w, 3, transport);
  world_run(&w, leaves_group, NULL);
  CHECK_OK(perigee__mesh_attach(w.mesh[0], &w.member[0].fate)); /* for world_close */
  world_close(&w);
}

static void leave_group_shm(void **state) {
  (void)state;
  leave_group(PERIGEE_TRANSPORT_SHM);
}
static void leave_group_tcp(void **state) {
  (void)state;
  leave_group(PERIGEE_TRANSPORT_TCP);
}

/* The two have never talked, so leaving cannot be told: who waits dials, and hears it then. */
static void leaves_unseen(member *m) {
  _Atomic int *gone = m->arg;
  if (m->me == 0) {
    if (atomic_load(gone) < 0)
      perigee__sleep_ns(30 * MS); /* the other is waiting by now */
    perigee__mesh_detach(m->mesh, &m->fate);
    atomic_store(gone, 1);
  } else {
    while (atomic_load(gone) == 0)
      perigee__sleep_ns(MS);
    CHECK_CODE(end_of_recv(m, 0, 2), PERIGEE_EPEERCLOSED);
    CHECK(!perigee__fate_failed(&m->fate));
  }
}

static void leave_unseen(void **state) {
  (void)state;
  for (int first = -1; first <= 0; first++) {
    _Atomic int gone = first;
    world w;
    world_open(&w, 2, PERIGEE_TRANSPORT_TCP);
    world_run(&w, leaves_unseen, &gone);
    CHECK_OK(perigee__mesh_attach(w.mesh[0], &w.member[0].fate)); /* for world_close */
    world_close(&w);
  }
}

/* Rank 0 closes right behind its last sends, of every size: all arrive, and then there is nothing more. */
static void closes_behind_sends(member *m) {
  static const size_t sizes[] = {0, 8, EAGER, LARGE};
  if (m->me == 0) {
    for (int r = 1; r < m->n; r++)
      for (size_t s = 0; s < 4; s++)
        send_filled(m, r, s, sizes[s]);
    return; /* world_close */
  }
  perigee__sleep_ns(m->me * 5 * MS);
  for (size_t s = 0; s < 4; s++)
    recv_filled(m, 0, s, sizes[s]);
}

static void *leave_main(void *arg) {
  member_leave(arg);
  return NULL;
}

static void close_behind_sends(perigee__transport transport) {
  world w;
  pthread_t first;
  world_open(&w, 3, transport);
  world_run(&w, closes_behind_sends, NULL);
  /* Rank 0 goes first: the others' receives end. */
  perigee__xfer x = {0};
  member *m = &w.member[1];
  uint8_t buf[8];
  perigee__mesh_recv(m->mesh, NULL, 0, key_of_tag(77), buf, sizeof(buf), 0, &x);
  CHECK(pthread_create(&first, NULL, leave_main, &w.member[0]) == 0);
  CHECK_OK(wait_one(m, &x, patience()));
  CHECKF(x.status == PERIGEE_EPEERCLOSED, "%s", perigee_err_name(x.status));
  CHECK(end_of_recv(&w.member[2], 0, 5) == PERIGEE_EPEERCLOSED);
  CHECK(!perigee__fate_failed(&m->fate) && !perigee__fate_failed(&w.member[2].fate));
  CHECK(pthread_join(first, NULL) == 0);
  for (int r = 1; r < 3; r++)
    member_leave(&w.member[r]);
}

static void close_behind_sends_shm(void **state) {
  (void)state;
  close_behind_sends(PERIGEE_TRANSPORT_SHM);
}
static void close_behind_sends_tcp(void **state) {
  (void)state;
  close_behind_sends(PERIGEE_TRANSPORT_TCP);
}

/* A large message is on its way when its sender closes: done means that it arrives. */
static void closes_at_once(member *m) {
  uint8_t *buf = bytes_new(LARGEST);
  perigee__xfer x = {0};
  if (m->me == 0) {
    fill(buf, LARGEST, 3);
    perigee__mesh_send(m->mesh, &m->fate, 1, key_of_tag(1), buf, LARGEST, 0, &x);
    CHECK_OK(wait_one(m, &x, patience()));
    CHECK(x.status == 0);
    member_leave(m);
    CHECK_OK(perigee__fate_init(&m->fate, 1, "x", 0, 1, all_ranks)); /* for world_close */
  } else {
    perigee__mesh_recv(m->mesh, NULL, 0, key_of_tag(1), buf, LARGEST, 0, &x);
    CHECK_OK(wait_one(m, &x, patience()));
    CHECKF(x.status == 0, "%s", perigee_err_name(x.status));
    CHECK(is_filled(buf, LARGEST, 3));
  }
  free(buf);
}

static void close_at_once(perigee__transport transport) {
  for (int round = 0; round < 3; round++) {
    world w;
    world_open(&w, 2, transport);
    world_run(&w, closes_at_once, NULL);
    member_leave(&w.member[1]);
    perigee__fate_fini(&w.member[0].fate);
  }
}

static void close_at_once_shm(void **state) {
  (void)state;
  close_at_once(PERIGEE_TRANSPORT_SHM);
}
static void close_at_once_tcp(void **state) {
  (void)state;
  close_at_once(PERIGEE_TRANSPORT_TCP);
}

/* ---- late -------------------------------------------------------------------------------------- */

static const int two_ranks[2] = {0, 1};

static void make_late(member *m, perigee__fate *fate) {
  CHECK_OK(perigee__fate_init(fate, 88, "late", m->me, 2, two_ranks));
  CHECK_OK(perigee__mesh_attach(m->mesh, fate));
}

static void drop_late(member *m, perigee__fate *fate) {
  perigee__mesh_detach(m->mesh, fate);
  perigee__fate_fini(fate);
}

/* Rank 1 attaches when rank 0 has already failed the group. */
static void late_for_abort(member *m) {
  perigee__fate late;
  if (m->me == 0) {
    make_late(m, &late);
    const perigee_error error = some_error(PERIGEE_EABORTED, "early news");
    perigee__mesh_fail_group(m->mesh, &late, &error);
    meet(m, 1);
  } else {
    meet(m, 1); /* behind the news */
    make_late(m, &late);
    CHECK(perigee__fate_failed(&late) && strcmp(late.error.message, "early news") == 0);
  }
  meet(m, 2);
  drop_late(m, &late);
}

/* Rank 1 attaches when rank 0 has sent, and has left again. */
static void late_for_all(member *m) {
  const perigee__key key = {.group = 88, .tag = 1, .kind = PERIGEE_KEY_P2P};
  perigee__fate late;
  uint8_t byte = 7;
  perigee__xfer x = {0}, *list = &x;
  if (m->me == 0) {
    make_late(m, &late);
    perigee__mesh_send(m->mesh, &late, 1, key, &byte, 1, 0, &x);
    CHECK_OK(perigee__mesh_wait(m->mesh, &list, 1, &late, patience()));
    CHECK(x.status == 0);
    drop_late(m, &late);
    meet(m, 1);
  } else {
    meet(m, 1);
    make_late(m, &late);
    byte = 0;
    perigee__mesh_recv(m->mesh, &late, 0, key, &byte, 1, 0, &x);
    CHECK(x.done == 1 && x.status == 0 && byte == 7);
    perigee__mesh_recv(m->mesh, &late, 0, key, &byte, 1, 0, &x);
    CHECK(x.done == 1 && x.status == PERIGEE_EPEERCLOSED);
    drop_late(m, &late);
  }
  meet(m, 2);
}

/* What comes for a group that was left costs nothing in the long run: neither credit nor memory. */
static void late_messages(member *m) {
  const perigee__key key = {.group = 88, .tag = 1, .kind = PERIGEE_KEY_P2P};
  perigee__fate late;
  make_late(m, &late);
  if (m->me == 1)
    drop_late(m, &late);
  meet(m, 1);
  if (m->me == 0) {
    late.left[1] = 0; /* as if its leaving were not known */
    for (int i = 0; i < 4 * PERIGEE_CREDIT / PERIGEE_PULL_MIN; i++) {
      uint8_t *buf = bytes_new(PERIGEE_PULL_MIN / 2);
      perigee__xfer x = {0}, *list = &x;
      perigee__mesh_send(m->mesh, &late, 1, key, buf, PERIGEE_PULL_MIN / 2, 0, &x);
      CHECK_OK(perigee__mesh_wait(m->mesh, &list, 1, &late, patience()));
      CHECK(x.status == 0);
      free(buf);
      if (i % 4 == 3) { /* its credit comes back with something */
        send_filled(m, 1, 3, 0);
        recv_filled(m, 1, 3, 0);
      }
    }
    perigee__loop_lock(m->mesh->loop);
    CHECK(m->mesh->peers[1].chan.credit > PERIGEE_CREDIT / 2);
    perigee__loop_unlock(m->mesh->loop);
    /* One that has to be asked for is answered. */
    uint8_t *buf = bytes_new(LARGE);
    perigee__xfer x = {0}, *list = &x;
    late.left[1] = 0;
    perigee__mesh_send(m->mesh, &late, 1, key, buf, LARGE, 0, &x);
    CHECK_OK(perigee__mesh_wait(m->mesh, &list, 1, &late, patience()));
    CHECKF(x.status == PERIGEE_EPEERCLOSED, "%s", perigee_err_name(x.status));
    free(buf);
    meet(m, 2);
    drop_late(m, &late);
  } else {
    for (int i = 3; i < 4 * PERIGEE_CREDIT / PERIGEE_PULL_MIN; i += 4) {
      recv_filled(m, 0, 3, 0);
      send_filled(m, 0, 3, 0);
    }
    meet(m, 2);
    perigee__loop_lock(m->mesh->loop);
    CHECK(perigee__list_empty(&m->mesh->match.arrivals));
    perigee__loop_unlock(m->mesh->loop);
  }
}

/* ---- end of a mesh with things posted ---------------------------------------------------------- */

typedef struct counted {
  perigee__xfer x;
  int calls, status;
} counted;

static void count_end(perigee__xfer *x) {
  counted *c = PERIGEE_CONTAINER_OF(x, counted, x);
  c->calls++;
  c->status = x->status;
}

static void ends_what_is_posted(perigee__transport transport) {
  world w;
  counted recv_one = {0}, recv_any = {0}, send_large = {0};
  uint8_t buf[2][8], *large = bytes_new(LARGE);
  world_open(&w, 2, transport);
  member *m = &w.member[0];
  recv_one.x.on_done = recv_any.x.on_done = send_large.x.on_done = count_end;
  perigee__mesh_recv(m->mesh, NULL, 1, key_of_tag(1), buf[0], 8, 0, &recv_one.x);
  perigee__mesh_recv(m->mesh, NULL, -1, key_of_tag(2), buf[1], 8, 0, &recv_any.x);
  perigee__mesh_send(m->mesh, NULL, 1, key_of_tag(3), large, LARGE, 0, &send_large.x);
  member_leave(m);
  CHECK(recv_one.calls == 1 && recv_one.status == PERIGEE_ECLOSED);
  CHECK(recv_any.calls == 1 && recv_any.status == PERIGEE_ECLOSED);
  CHECK(send_large.calls == 1 && send_large.status == PERIGEE_ECLOSED);
  /* The peer does not wait for the data of what was announced. */
  perigee__xfer x = {0};
  perigee__mesh_recv(w.mesh[1], NULL, 0, key_of_tag(3), large, LARGE, 0, &x);
  CHECK_OK(wait_one(&w.member[1], &x, patience()));
  CHECKF(x.status == PERIGEE_EPEERCLOSED, "%s", perigee_err_name(x.status));
  member_leave(&w.member[1]);
  free(large);
}

static void ends_what_is_posted_shm(void **state) {
  (void)state;
  ends_what_is_posted(PERIGEE_TRANSPORT_SHM);
}
static void ends_what_is_posted_tcp(void **state) {
  (void)state;
  ends_what_is_posted(PERIGEE_TRANSPORT_TCP);
}

/* Without time: nothing waits, nothing is left. */
static void no_time(void **state) {
  (void)state;
  for (int t = PERIGEE_TRANSPORT_SHM; t <= PERIGEE_TRANSPORT_TCP; t++) {
    perigee__mesh *mesh[3];
    leak_mark mark = leak_begin();
    CHECK_OK(perigee__mesh_create_local(3, (perigee__transport)t, mesh));
    int64_t started = perigee__now_ns();
    for (int r = 0; r < 3; r++)
      perigee__mesh_destroy(&mesh[r], perigee__now_ns());
    CHECK(perigee__now_ns() - started < 300 * LATENESS * MS);
    leak_check(mark);
  }
}

/* ---- questions --------------------------------------------------------------------------------- */

static void questions(member *m) {
  atomic_store(&m->fate.entered, 100 + (uint64_t)m->me);
  meet(m, 1);
  for (int round = 0; round < 20; round++) {
    uint64_t entered[RANKS_MAX];
    int64_t started = perigee__now_ns();
    perigee__mesh_query(m->mesh, &m->fate, patience(), entered);
    for (int r = 0; r < m->n; r++)
      CHECKF(entered[r] == 100 + (uint64_t)r, "rank %d: %llu", r, (unsigned long long)entered[r]);
    CHECK(perigee__now_ns() - started < SEC * SLOWNESS);
    if (m->me == m->n - 1)
      break; /* the last rank asks once and then is stuck: its I/O thread answers */
  }
  if (m->me < m->n - 1)
    meet_first(m, m->n - 1, 2);
  else
    perigee__sleep_ns(100 * MS);
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
BOTH(told_afterwards, 3)
BOTH(closing_is_not_told, 2)
BOTH(late_for_abort, 2)
BOTH(late_for_all, 2)
BOTH(late_messages, 2)
BOTH(questions, 4)
#define TESTS(_name) cmocka_unit_test(_name##_shm), cmocka_unit_test(_name##_tcp)

int main(void) {
  const struct CMUnitTest tests[] = {
      TESTS(abort),
      TESTS(told_afterwards),
      TESTS(closing_is_not_told),
      TESTS(leave_group),
      cmocka_unit_test(leave_unseen),
      TESTS(close_behind_sends),
      TESTS(close_at_once),
      TESTS(ends_what_is_posted),
      TESTS(late_for_abort),
      TESTS(late_for_all),
      TESTS(late_messages),
      TESTS(questions),
      cmocka_unit_test(no_time),
  };
  return run_all("mesh_group", tests, sizeof(tests) / sizeof(tests[0]));
}
