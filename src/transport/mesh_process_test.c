/* Ranks as processes: they find each other, talk over every path, and one that dies or hangs is named by the others. */
#include "transport/mesh_process_testing.h"
/* the above first: cmocka needs what it includes */
#include <fcntl.h>

#include "transport/memfd.h"

/* ---- talking ----------------------------------------------------------------------------------- */

static void talk(member *m) {
  static const size_t sizes[] = {0, 1, EAGER, EAGER + 1, LARGE};
  for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
    /* Around the ring, then all pairs at once. */
    perigee__xfer in[RANKS_MAX], out[RANKS_MAX], *list[2 * RANKS_MAX];
    uint8_t *buf[2 * RANKS_MAX];
    int n = 0;
    memset(in, 0, sizeof(in));
    memset(out, 0, sizeof(out));
    for (int r = 0; r < m->n; r++) {
      buf[r] = bytes_new(sizes[s]);
      buf[m->n + r] = bytes_new(sizes[s]);
      fill(buf[r], sizes[s], (uint64_t)(m->me * 10 + r));
      perigee__mesh_send(m->mesh, &m->fate, r, key_of_tag(s), buf[r], sizes[s], 0, &out[r]);
      perigee__mesh_recv(m->mesh, &m->fate, r, key_of_tag(s), buf[m->n + r], sizes[s], 0, &in[r]);
      list[n++] = &out[r];
      list[n++] = &in[r];
    }
    CHECK_OK(perigee__mesh_wait(m->mesh, list, n, &m->fate, patience()));
    for (int r = 0; r < m->n; r++) {
      CHECK(in[r].status == 0 && out[r].status == 0);
      CHECK(is_filled(buf[m->n + r], sizes[s], (uint64_t)(r * 10 + m->me)));
      free(buf[r]);
      free(buf[m->n + r]);
    }
  }
  for (uint64_t i = 0; i < 200; i++) { /* a token around the ring */
    if (m->me == 0)
      send_filled(m, 1, 100 + i, 8);
    int from = (m->me + m->n - 1) % m->n;
    recv_filled(m, from, 100 + i, 8);
    if (m->me != 0)
      send_filled(m, (m->me + 1) % m->n, 100 + i, 8);
  }
  meet(m, 1);
}

static void talk_shm(void **state) {
  (void)state;
  job_run(&(job){.n = 4, .transport = PERIGEE_TRANSPORT_SHM, .fn = talk}, 0);
}
static void talk_tcp(void **state) {
  (void)state;
  job_run(&(job){.n = 4, .transport = PERIGEE_TRANSPORT_TCP, .fn = talk}, 0);
}
static void talk_two_hosts(void **state) {
  (void)state;
  job_run(&(job){.n = 5, .host = {"a", "a", "b", "b", "a"}, .fn = talk}, 0);
}
static void talk_eight(void **state) {
  (void)state;
  job_run(&(job){.n = 8, .fn = talk}, 0);
  job_run(&(job){.n = 8, .transport = PERIGEE_TRANSPORT_TCP, .fn = talk}, 0);
}

enum {
  FDS = 200
};
static bool inherited[FDS]; /* from whoever started the test */

/* What the mesh says of its world; and no descriptor of it goes to a program that is started. */
static void what_it_says(member *m) {
  CHECK(perigee__mesh_rank(m->mesh) == m->me && perigee__mesh_size(m->mesh) == 4);
  CHECK(perigee__mesh_local_ranks(m->mesh) == (m->me == 3 ? 1 : 3));
  for (int r = 0; r < 4; r++)
    CHECK(perigee__mesh_same_host(m->mesh, r) == ((r == 3) == (m->me == 3)));
  CHECK(perigee__mesh_transport(m->mesh) == PERIGEE_TRANSPORT_AUTO);
  send_filled(m, (m->me + 1) % 4, 1, 8);
  recv_filled(m, (m->me + 3) % 4, 1, 8);
  for (int fd = 0; fd < FDS; fd++) {
    int flags = fcntl(fd, F_GETFD);
    CHECKF(inherited[fd] || flags < 0 || (flags & FD_CLOEXEC), "descriptor %d", fd);
  }
  meet(m, 1);
}

static void sayings(void **state) {
  (void)state;
  job_run(&(job){.n = 4, .host = {"a", "a", "a", "b"}, .fn = what_it_says}, 0);
}

/* Through a TCP store that rank 0 serves. */
static void over_tcp_store(job *j, int rank) {
  perigee_store_server *server = NULL;
  perigee_store *store;
  perigee__mesh *mesh;
  if (rank == 0) {
    CHECK_OK(perigee_store_server_create(NULL, 0, &server));
    atomic_store(&j->board->port, perigee_store_server_port(server));
  }
  while (atomic_load(&j->board->port) == 0)
    perigee__sleep_ns(MS);
  const perigee_store_tcp_options options = {.size = sizeof(options),
                                             .host = "127.0.0.1",
                                             .port = atomic_load(&j->board->port),
                                             .timeout_ns = PATIENCE_S * SEC};
  CHECK_OK(perigee_store_tcp_connect(&options, &store));
  CHECK_OK(mesh_open(j, rank, store, PATIENCE_S * SEC, &mesh));
  member m = {.me = rank, .n = j->n, .mesh = mesh};
  CHECK_OK(perigee__fate_init(&m.fate, GROUP_ALL, "all", rank, j->n, all_ranks));
  CHECK_OK(perigee__mesh_attach(mesh, &m.fate));
  meet(&m, 1);
  perigee_store_unref(store);
  member_leave(&m);
  step_to(j->board, rank, 1);
  for (int r = 0; r < j->n && rank == 0; r++)
    until_step(j->board, r, 1);
  perigee_store_server_destroy(&server);
}

static void tcp_store(void **state) {
  (void)state;
  job_run(&(job){.n = 3, .bare = over_tcp_store}, 0);
}

/* ---- finding each other ------------------------------------------------------------------------ */

static void two_of_four(job *j, int rank) {
  perigee_store *store;
  perigee__mesh *mesh;
  if (rank > 1)
    return;
  leak_mark mark = leak_begin();
  CHECK_OK(perigee_store_file_create(j->path, &store));
  int64_t started = perigee__now_ns();
  CHECK_CODE(mesh_open(j, rank, store, 300 * MS, &mesh), PERIGEE_ERENDEZVOUS);
  int64_t took = perigee__now_ns() - started;
  CHECK(took >= 300 * MS && took < 700 * LATENESS * MS);
  const perigee_error *error = perigee_last_error();
  CHECKF(strstr(error->message, "ranks 2,3 of 4 did not arrive within 0.3 s") != NULL, "%s",
         error->message);
  CHECK(error->nranks == 2 && error->ranks[0] == 2 && error->ranks[1] == 3);
  step_to(j->board, rank, 1);
  until_step(j->board, 1 - rank, 1);
  perigee_store_unref(store);
  leak_check(mark);
}

static void missing(void **state) {
  (void)state;
  job_run(&(job){.n = 4, .bare = two_of_four}, 0);
}

/* The third process takes rank 1, which is there. */
static void taken(job *j, int rank) {
  perigee_store *store;
  perigee__mesh *mesh;
  CHECK_OK(perigee_store_file_create(j->path, &store));
  if (rank < 2) {
    job pair = *j;
    pair.n = 2;
    CHECK_OK(mesh_open(&pair, rank, store, PATIENCE_S * SEC, &mesh));
    step_to(j->board, rank, 1);
    until_step(j->board, 2, 1);
    perigee__mesh_destroy(&mesh, patience());
  } else {
    until_step(j->board, 0, 1);
    until_step(j->board, 1, 1);
    job pair = *j;
    char pid[32];
    pair.n = 2;
    snprintf(pid, sizeof(pid), "process %d", atomic_load(&j->board->pid[1]));
    CHECK_CODE(mesh_open(&pair, 1, store, 300 * MS, &mesh), PERIGEE_EDUPRANK);
    CHECKF(strstr(perigee_last_error()->message, pid) != NULL, "%s", perigee_last_error()->message);
    step_to(j->board, 2, 1);
  }
  perigee_store_unref(store);
}

static void rank_is_taken(void **state) {
  (void)state;
  job_run(&(job){.n = 3, .bare = taken}, 0);
}

static void disagree(job *j, int rank) {
  perigee_store *store;
  perigee__mesh *mesh;
  job own = *j;
  own.transport = rank == 0 ? PERIGEE_TRANSPORT_TCP : PERIGEE_TRANSPORT_AUTO;
  CHECK_OK(perigee_store_file_create(j->path, &store));
  CHECK_CODE(mesh_open(&own, rank, store, PATIENCE_S * SEC, &mesh), PERIGEE_ECONFIG);
  CHECK(strstr(perigee_last_error()->message, "rank 0 forces tcp, rank 1") != NULL);
  step_to(j->board, rank, 1);
  until_step(j->board, 1 - rank, 1);
  perigee_store_unref(store);
}

static void transports_differ(void **state) {
  (void)state;
  job_run(&(job){.n = 2, .bare = disagree}, 0);
}

static void no_shm_between_hosts(job *j, int rank) {
  perigee_store *store;
  perigee__mesh *mesh;
  CHECK_OK(perigee_store_file_create(j->path, &store));
  CHECK_CODE(mesh_open(j, rank, store, PATIENCE_S * SEC, &mesh), PERIGEE_EUNREACH);
  step_to(j->board, rank, 1);
  until_step(j->board, 1 - rank, 1);
  perigee_store_unref(store);
}

static void shm_between_hosts(void **state) {
  (void)state;
  job_run(&(job){.n = 2,
                 .transport = PERIGEE_TRANSPORT_SHM,
                 .host = {"a", "b"},
                 .bare = no_shm_between_hosts},
          0);
}

/* A rank wrote its address and died: who dials it learns it at once, who waits for it names it when time is over. */
static void ghosts(job *j, int rank) {
  perigee_store *store;
  perigee__mesh *mesh;
  char ghost[200];
  CHECK_OK(perigee_store_file_create(j->path, &store));
  snprintf(ghost, sizeof(ghost), "1 here %u 1 99 127.0.0.1 1 99 shm", (unsigned)getuid());
  j->host[0] = j->host[1] = "here";
  CHECK_OK(perigee_store_set(store, rank == 0 ? "addr/1" : "x/addr/0", ghost, strlen(ghost)));
  if (rank == 0) {
    CHECK_CODE(mesh_open(j, 0, store, 300 * MS, &mesh), PERIGEE_ERENDEZVOUS);
    CHECKF(strstr(perigee_last_error()->message, "rank 1 of 2") != NULL, "%s",
           perigee_last_error()->message);
  } else {
    perigee_store *other;
    CHECK_OK(perigee_store_prefix_create("x", store, &other));
    CHECK_CODE(mesh_open(j, 1, other, PATIENCE_S * SEC, &mesh), PERIGEE_EUNREACH);
    CHECKF(strstr(perigee_last_error()->message, "rank 0") != NULL, "%s",
           perigee_last_error()->message);
    perigee_store_unref(other);
  }
  step_to(j->board, rank, 1);
  until_step(j->board, 1 - rank, 1);
  perigee_store_unref(store);
}

static void died_on_the_way(void **state) {
  (void)state;
  job_run(&(job){.n = 2, .bare = ghosts}, 0);
}

static void bad_addresses(void **state) {
  (void)state;
  perigee_store *store;
  perigee__mesh *mesh;
  static const char *const bad[] = {"0.0.0.0", "::", "localhost.invalid", "300.1.1.1"};
  CHECK_OK(perigee_store_hash_create(&store));
  for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
    const perigee__mesh_params params = {
        .rank = 0, .nranks = 2, .store = store, .bind_addr = bad[i], .deadline_ns = patience()};
    CHECK_CODE(perigee__mesh_create(&params, &mesh), PERIGEE_EINVAL);
    CHECK(strstr(perigee_last_error()->message, bad[i]) != NULL);
  }
  perigee_store_unref(store);
}

/* ---- death ------------------------------------------------------------------------------------- */

enum {
  VICTIM = 2
};

static void expect_death(member *m) {
  board *b = job_of(m)->board;
  int64_t until = patience();
  while (!perigee__fate_failed(&m->fate)) {
    CHECK(!perigee__passed(until));
    perigee__sleep_ns(MS / 4);
  }
  int64_t took = perigee__now_ns() - atomic_load(&b->when_ns);
  CHECKF(took < SEC * SLOWNESS, "%lld ns", (long long)took);
  const perigee_error *error = &m->fate.error;
  int victim = m->n - 1 - VICTIM; /* in the group */
  CHECKF(error->code == PERIGEE_EPEERDEAD, "%s: %s", perigee_err_name(error->code), error->message);
  CHECKF(error->nranks == 1 && error->ranks[0] == victim, "%s", error->message);
  char text[32];
  snprintf(text, sizeof(text), "rank %d died", victim);
  CHECKF(strstr(error->message, text) != NULL, "%s", error->message);
}

static void die(member *m) {
  board *b = job_of(m)->board;
  atomic_store(&b->when_ns, perigee__now_ns());
  kill(getpid(), SIGKILL);
}

/* The others wait in a receive from somebody who lives, or not at all. */
static void dies_idle(member *m) {
  perigee__xfer x = {0};
  meet(m, 1);
  gather_at(m, VICTIM);
  if (m->me == VICTIM)
    die(m);
  if (m->me % 2 == 1) {
    uint8_t buf[8];
    perigee__mesh_recv(m->mesh, &m->fate, 0, key_of_tag(5), buf, sizeof(buf), 0, &x);
    int rc = wait_one(m, &x, patience());
    CHECK(rc == PERIGEE_EABORTED || (rc == 0 && x.status == PERIGEE_EABORTED));
    perigee__mesh_cancel(m->mesh, &x);
  }
  expect_death(m);
}

/* The victim has sent a part of a message that takes a while. */
static void dies_sending(member *m) {
  const size_t size = (size_t)8 * LARGEST;
  uint8_t *buf = bytes_new(m->me == 0 || m->me == VICTIM ? size : 0);
  perigee__xfer x = {0}, *list = &x;
  meet(m, 1);
  gather_at(m, VICTIM);
  if (m->me == VICTIM) {
    until_step(job_of(m)->board, 0, 1);
    perigee__mesh_send(m->mesh, NULL, 0, key_of_tag(5), buf, size, 0, &x);
    (void)!perigee__mesh_wait(m->mesh, &list, 1, NULL, perigee__deadline_in(MS));
    die(m);
  } else if (m->me == 0) {
    perigee__mesh_recv(m->mesh, &m->fate, VICTIM, key_of_tag(5), buf, size, 0, &x);
    step_to(job_of(m)->board, 0, 1);
    int rc = wait_one(m, &x, patience());
    CHECK(rc == PERIGEE_EABORTED || rc == 0);
    perigee__mesh_cancel(m->mesh, &x);
    CHECKF(x.status == PERIGEE_EABORTED || x.status == PERIGEE_ECANCELED || x.status == 0, "%s",
           perigee_err_name(x.status));
  }
  expect_death(m);
  free(buf);
}

static void deaths(job template) {
  static void (*const ways[])(member * m) = {dies_idle, dies_sending};
  for (int i = 0; i < 2; i++) {
    job j = template;
    j.fn = ways[i];
    job_run(&j, 1u << VICTIM);
  }
}

static void death_shm(void **state) {
  (void)state;
  deaths((job){.n = 4, .transport = PERIGEE_TRANSPORT_SHM});
}
static void death_tcp(void **state) {
  (void)state;
  deaths((job){.n = 4, .transport = PERIGEE_TRANSPORT_TCP});
}
/* Ranks 0 and 4 have no connection to the victim: its left neighbour tells them. */
static void death_hosts(void **state) {
  (void)state;
  deaths((job){.n = 5, .host = {"a", "b", "c", "d", "e"}});
  deaths((job){.n = 6, .host = {"a", "a", "b", "b", "c", "c"}});
}

/* Nobody else is in the group with the dead: it goes on. */
static void dies_elsewhere(member *m) {
  static const int pair[2] = {1, 3};
  perigee__fate rest;
  meet(m, 1);
  if (m->me % 2 == 1) {
    CHECK_OK(perigee__fate_init(&rest, 55, "rest", m->me / 2, 2, pair));
    CHECK_OK(perigee__mesh_attach(m->mesh, &rest));
  }
  gather_at(m, VICTIM);
  if (m->me == VICTIM)
    die(m);
  expect_death(m);
  if (m->me % 2 == 1) {
    const perigee__key key = {.group = 55, .tag = 1, .kind = PERIGEE_KEY_P2P};
    perigee__xfer in = {0}, out = {0}, *list[2] = {&in, &out};
    perigee__mesh_recv(m->mesh, &rest, 4 - m->me, key, NULL, 0, 0, &in);
    perigee__mesh_send(m->mesh, &rest, 4 - m->me, key, NULL, 0, 0, &out);
    CHECK_OK(perigee__mesh_wait(m->mesh, list, 2, &rest, patience()));
    CHECK(in.status == 0 && out.status == 0 && !perigee__fate_failed(&rest));
    perigee__mesh_detach(m->mesh, &rest);
    perigee__fate_fini(&rest);
  }
}

static void death_elsewhere(void **state) {
  (void)state;
  job_run(&(job){.n = 4, .fn = dies_elsewhere}, 1u << VICTIM);
  job_run(&(job){.n = 4, .transport = PERIGEE_TRANSPORT_TCP, .fn = dies_elsewhere}, 1u << VICTIM);
}

/* ---- silence ----------------------------------------------------------------------------------- */

/* A stopped process answers nothing, is not dead, and comes back. */
static void stops(member *m) {
  board *b = job_of(m)->board;
  atomic_store(&m->fate.entered, 10 + (uint64_t)m->fate.me);
  meet(m, 1);
  if (m->me == 0) {
    uint64_t entered[RANKS_MAX];
    int victim = m->n - 1 - VICTIM;
    CHECK(kill(atomic_load(&b->pid[VICTIM]), SIGSTOP) == 0);
    int64_t started = perigee__now_ns();
    perigee__mesh_query(m->mesh, &m->fate, perigee__deadline_in(200 * MS), entered);
    int64_t took = perigee__now_ns() - started;
    CHECK(took >= 200 * MS && took < 250 * LATENESS * MS);
    for (int r = 0; r < m->n; r++)
      CHECKF(entered[r] == (r == victim ? UINT64_MAX : 10 + (uint64_t)r), "rank %d: %llu", r,
             (unsigned long long)entered[r]);
    CHECK(!perigee__fate_failed(&m->fate));
    CHECK(kill(atomic_load(&b->pid[VICTIM]), SIGCONT) == 0);
    perigee__mesh_query(m->mesh, &m->fate, patience(), entered);
    CHECK(entered[victim] == 10 + (uint64_t)victim);
  }
  meet(m, 2);
}

static void stop_shm(void **state) {
  (void)state;
  job_run(&(job){.n = 4, .transport = PERIGEE_TRANSPORT_SHM, .fn = stops}, 0);
}
static void stop_tcp(void **state) {
  (void)state;
  job_run(&(job){.n = 4, .transport = PERIGEE_TRANSPORT_TCP, .fn = stops}, 0);
}

/* ---- descriptors ------------------------------------------------------------------------------- */

enum {
  SHARED = 4096
};

static void share(member *m, uint64_t key) {
  int fd = -1;
  void *base;
  if (m->me == 0)
    CHECK_OK(perigee__memfd_create("shared", SHARED, &fd));
  CHECK_OK(perigee__mesh_share_fd(m->mesh, all_ranks, m->n, m->me, key, patience(), &fd));
  CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
  CHECK_OK(perigee__memfd_map(fd, SHARED, &base));
  _Atomic uint64_t *sum = base;
  atomic_fetch_add(sum, key);
  meet(m, key);
  CHECK(atomic_load(sum) == key * (uint64_t)m->n);
  meet(m, key + 1);
  perigee__memfd_unmap(base, SHARED);
  close(fd);
}

static void shares(member *m) {
  share(m, 100);
  if (m->me == 1)
    perigee__sleep_ns(30 * MS); /* it is there before it is asked for */
  share(m, 200);
  /* Two at once, asked for in the other order; one that is never asked for is closed in the end. */
  int fd[3] = {-1, -1, -1};
  if (m->me == 0)
    for (int i = 0; i < 3; i++)
      CHECK_OK(perigee__memfd_create("shared", (size_t)SHARED * (size_t)(i + 1), &fd[i]));
  for (int i = 0; i < 3; i++) {
    int which = m->me == 0 ? i : 2 - i;
    if (which == 0 && m->me != 0)
      break;
    CHECK_OK(perigee__mesh_share_fd(m->mesh, all_ranks, m->n, m->me, 300 + (uint64_t)which,
                                    patience(), &fd[which]));
    void *base;
    CHECK_OK(perigee__memfd_map(fd[which], (size_t)SHARED * (size_t)(which + 1), &base));
    perigee__memfd_unmap(base, (size_t)SHARED * (size_t)(which + 1));
  }
  for (int i = 0; i < 3; i++)
    if (fd[i] >= 0)
      close(fd[i]);
  if (m->me == 1) { /* nobody gives it */
    int64_t started = perigee__now_ns();
    CHECK_CODE(perigee__mesh_share_fd(m->mesh, all_ranks, m->n, 1, 400,
                                      perigee__deadline_in(100 * MS), &fd[0]),
               PERIGEE_ETIMEDOUT);
    int64_t took = perigee__now_ns() - started;
    CHECK(took >= 100 * MS && took < 150 * LATENESS * MS);
  }
  meet(m, 1);
}

static void share_shm(void **state) {
  (void)state;
  job_run(&(job){.n = 3, .transport = PERIGEE_TRANSPORT_SHM, .fn = shares}, 0);
}
static void share_tcp(void **state) {
  (void)state;
  job_run(&(job){.n = 3, .transport = PERIGEE_TRANSPORT_TCP, .fn = shares}, 0);
}

static void giver_dies(member *m) {
  static const int from_victim[2] = {VICTIM, 1};
  int fd;
  meet(m, 1);
  gather_at(m, VICTIM);
  if (m->me == VICTIM) {
    perigee__sleep_ns(20 * MS);
    die(m);
  }
  if (m->me == 1)
    CHECK_CODE(perigee__mesh_share_fd(m->mesh, from_victim, 2, 1, 9, patience(), &fd),
               PERIGEE_EPEERDEAD);
  expect_death(m);
}

static void share_with_the_dead(void **state) {
  (void)state;
  job_run(&(job){.n = 3, .fn = giver_dies}, 1u << VICTIM);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(talk_shm),
      cmocka_unit_test(talk_tcp),
      cmocka_unit_test(talk_two_hosts),
      cmocka_unit_test(talk_eight),
      cmocka_unit_test(sayings),
      cmocka_unit_test(tcp_store),
      cmocka_unit_test(missing),
      cmocka_unit_test(rank_is_taken),
      cmocka_unit_test(transports_differ),
      cmocka_unit_test(shm_between_hosts),
      cmocka_unit_test(died_on_the_way),
      cmocka_unit_test(bad_addresses),
      cmocka_unit_test(death_shm),
      cmocka_unit_test(death_tcp),
      cmocka_unit_test(death_hosts),
      cmocka_unit_test(death_elsewhere),
      cmocka_unit_test(stop_shm),
      cmocka_unit_test(stop_tcp),
      cmocka_unit_test(share_shm),
      cmocka_unit_test(share_tcp),
      cmocka_unit_test(share_with_the_dead),
  };
  for (int fd = 0; fd < FDS; fd++)
    inherited[fd] = fcntl(fd, F_GETFD) >= 0;
  return run_all("mesh_process", tests, sizeof(tests) / sizeof(tests[0]));
}
