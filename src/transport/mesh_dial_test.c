/* TCP links come into being on first use: from both sides at once, past dialling errors, with a peer that is slow, rude or gone. */
#include "transport/mesh_raw_testing.h"

/* ---- both at once ------------------------------------------------------------------------------ */

/* Nothing has been said before: each link is dialled by whoever is first, or by both. */
static void first_words(member *m) {
  perigee__xfer x[2 * RANKS_MAX], *list[2 * RANKS_MAX];
  uint32_t there[RANKS_MAX], back[RANKS_MAX];
  int n = 0;
  memset(x, 0, sizeof(x));
  for (int i = 1; i < m->n; i++) {
    int r = (m->me + i) % m->n;
    there[r] = (uint32_t)(m->me * 100 + r);
    perigee__mesh_send(m->mesh, &m->fate, r, key_of_tag(1), &there[r], sizeof(there[r]), 0, &x[n]);
    list[n] = &x[n];
    n++;
    perigee__mesh_recv(m->mesh, &m->fate, r, key_of_tag(1), &back[r], sizeof(back[r]), 0, &x[n]);
    list[n] = &x[n];
    n++;
  }
  CHECK_OK(perigee__mesh_wait(m->mesh, list, n, &m->fate, patience()));
  for (int i = 0; i < n; i++)
    CHECKF(x[i].status == 0, "%s", perigee_err_name(x[i].status));
  for (int r = 0; r < m->n; r++)
    CHECK(r == m->me || back[r] == (uint32_t)(r * 100 + m->me));
}

static void both_at_once(void **state) {
  (void)state;
  for (int round = 0; round < 150; round++)
    world_of(2 + round % 3, PERIGEE_TRANSPORT_TCP, first_words, NULL);
}

/* ---- a listener in the test's hands ------------------------------------------------------------ */

typedef struct rude {
  perigee__mesh *mesh; /* rank `me` of 2 */
  int me, uds, listener, port;
  perigee__xfer x;
  uint32_t value;
} rude;

static void rude_open(rude *r, int me) {
  memset(r, 0, sizeof(*r));
  int pair[2], port;
  r->me = me;
  CHECK_OK(perigee__mesh_alloc(me, 2, PERIGEE_TRANSPORT_TCP, &r->mesh));
  perigee__peer *peer = &r->mesh->peers[1 - me];
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
  r->uds = pair[1];
  r->mesh->nonce = 4711;
  CHECK_OK(perigee__mesh_listen(r->mesh, "127.0.0.1", &r->port));
  CHECK_OK(perigee__peer_local_up(peer, pair[0], -1));
  CHECK_OK(perigee__link_listen("127.0.0.1", &r->listener, &port));
  snprintf(peer->host, sizeof(peer->host), "127.0.0.1");
  peer->port = port;
  peer->nonce = 42;
  r->value = 0x12345678;
  perigee__mesh_send(r->mesh, NULL, 1 - me, key_of_tag(1), &r->value, sizeof(r->value), 0, &r->x);
}

static void rude_close(rude *r) {
  if (r->listener >= 0)
    close(r->listener);
  close(r->uds);
  perigee__mesh_destroy(&r->mesh, perigee__deadline_in(SEC));
}

/* The next one who dials, after its hello when it is wanted. */
static int next_caller(rude *r, bool hello) {
  struct pollfd p = {.fd = r->listener, .events = POLLIN};
  CHECK(poll(&p, 1, 10000) == 1);
  int fd = accept(r->listener, NULL, NULL);
  CHECK(fd >= 0);
  if (hello) {
    uint8_t bytes[32], expected[32];
    raw_hello(expected, 42, r->me, 2);
    CHECK(recv(fd, bytes, sizeof(bytes), MSG_WAITALL) == (ssize_t)sizeof(bytes));
    CHECK(memcmp(bytes, expected, sizeof(bytes)) == 0);
  }
  return fd;
}

static void expect_status(rude *r, int status, int64_t within_ns) {
  perigee__xfer *list = &r->x;
  CHECK_OK(perigee__mesh_wait(r->mesh, &list, 1, NULL, perigee__deadline_in(within_ns)));
  CHECKF(r->x.status == status, "%s", perigee_err_name(r->x.status));
}

/* Connections that end in the handshake are no death: it dials again. */
static void dials_again(void **state) {
  (void)state;
  rude r;
  rude_open(&r, 0);
  close(next_caller(&r, false));
  close(next_caller(&r, true));
  int fd = next_caller(&r, true);
  CHECK(send(fd, "A", 1, 0) == 1);
  expect_status(&r, 0, 5 * SEC);
  uint8_t frame[PERIGEE_FRAME_SIZE + 4];
  CHECK(recv(fd, frame, sizeof(frame), MSG_WAITALL) == (ssize_t)sizeof(frame));
  close(fd);
  rude_close(&r);
}

/* But not for ever. */
static void gives_up(void **state) {
  (void)state;
  rude r;
  rude_open(&r, 0);
  r.mesh->peers[1].redials = 9;
  for (int i = 0; i < 2; i++) {
    int fd = next_caller(&r, true);
    CHECK(send(fd, "?", 1, MSG_NOSIGNAL) == 1); /* no answer that we know */
    close(fd);
  }
  expect_status(&r, PERIGEE_EPEERDEAD, 5 * SEC);
  rude_close(&r);
}

static void nobody_listens(void **state) {
  (void)state;
  rude r;
  rude_open(&r, 0);
  close(r.listener);
  r.listener = -1;
  expect_status(&r, PERIGEE_EPEERDEAD, 5 * SEC);
  rude_close(&r);
}

/* "Not now": the lower rank has dialled too; its link comes and carries what waits. */
static void refused(void **state) {
  (void)state;
  for (int answered = 0; answered < 2;
       answered++) { /* with our own dial refused, and not answered yet */
    rude r;
    uint8_t hello[32], answer, frame[PERIGEE_FRAME_SIZE + 4];
    rude_open(&r, 1);
    int theirs = next_caller(&r, true);
    if (answered == 1)
      CHECK(send(theirs, "N", 1, 0) == 1);
    perigee__sleep_ns(10 * MS);
    CHECK(r.x.done == 0);
    int ours = raw_connect(r.port);
    raw_hello(hello, 4711, 0, 2);
    CHECK(send(ours, hello, sizeof(hello), 0) == (ssize_t)sizeof(hello));
    CHECK(recv(ours, &answer, 1, 0) == 1 && answer == 'A');
    CHECK(recv(ours, frame, sizeof(frame), MSG_WAITALL) == (ssize_t)sizeof(frame));
    expect_status(&r, 0, 5 * SEC);
    CHECK(recv(theirs, &answer, 1, 0) == 0); /* given up */
    close(ours);
    close(theirs);
    rude_close(&r);
  }
}

/* Our own dial stands against that of a higher rank. */
static void refuses(void **state) {
  (void)state;
  rude r;
  uint8_t hello[32], answer;
  rude_open(&r, 0);
  int theirs = next_caller(&r, true), ours = raw_connect(r.port);
  raw_hello(hello, 4711, 1, 2);
  CHECK(send(ours, hello, sizeof(hello), 0) == (ssize_t)sizeof(hello));
  CHECK(recv(ours, &answer, 1, 0) == 1 && answer == 'N');
  CHECK(recv(ours, &answer, 1, 0) == 0);
  CHECK(send(theirs, "A", 1, 0) == 1);
  expect_status(&r, 0, 5 * SEC);
  close(ours);
  close(theirs);
  rude_close(&r);
}

/* The peer takes the connection and says nothing. */
static void silent(void **state) {
  (void)state;
  rude r;
  rude_open(&r, 0);
  int fd = next_caller(&r, true);
  int64_t started = perigee__now_ns();
  expect_status(&r, PERIGEE_EPEERDEAD, 10 * SEC);
  CHECK(perigee__now_ns() - started < 7 * SLOWNESS * SEC);
  close(fd);
  rude_close(&r);
}

/* A mesh that closes while it dials does not wait longer than it may, and ends what waits. */
static void closes_while_dialling(void **state) {
  (void)state;
  rude r;
  rude_open(&r, 0);
  perigee__mesh *mesh = r.mesh;
  int64_t started = perigee__now_ns();
  perigee__mesh_destroy(&mesh, perigee__deadline_in(100 * MS));
  int64_t took = perigee__now_ns() - started;
  CHECK(took < 200 * LATENESS * MS);
  CHECK(r.x.done == 1 && r.x.status == PERIGEE_ECLOSED);
  close(r.listener);
  close(r.uds);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(both_at_once), cmocka_unit_test(dials_again),
      cmocka_unit_test(gives_up),     cmocka_unit_test(nobody_listens),
      cmocka_unit_test(refused),      cmocka_unit_test(refuses),
      cmocka_unit_test(silent),       cmocka_unit_test(closes_while_dialling),
  };
  return run_all("mesh_dial", tests, sizeof(tests) / sizeof(tests[0]));
}
