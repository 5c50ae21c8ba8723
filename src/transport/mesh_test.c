/* Messages between ranks as threads, over rings and over TCP: every size, order and pair; what does not fit is said. */
#include "transport/mesh_testing.h"

static const size_t sizes[] = {0, 1, EAGER - EAGER / 64, EAGER, EAGER + 1, LARGE, LARGEST};
enum {
  NSIZES = sizeof(sizes) / sizeof(sizes[0])
};

static void ping_pong(member *m) {
  for (uint64_t i = 0; i < 500; i++) {
    if (m->me == 0) {
      send_filled(m, 1, i, 8);
      recv_filled(m, 1, i, 8);
    } else {
      recv_filled(m, 0, i, 8);
      send_filled(m, 0, i, 8);
    }
  }
}

static void all_pairs(member *m) {
  for (size_t s = 0; s < NSIZES; s++)
    for (int from = 0; from < m->n; from++)
      for (int to = 0; to < m->n; to++) {
        if (from == to)
          continue;
        if (from == m->me)
          send_filled(m, to, s, sizes[s]);
        else if (to == m->me)
          recv_filled(m, from, s, sizes[s]);
      }
}

/* The message is there, or announced, before anybody asks. */
static void unexpected(member *m) {
  for (size_t s = 0; s < NSIZES; s++) {
    if (m->me == 0) {
      uint8_t *buf = bytes_new(sizes[s]);
      perigee__xfer x = {0};
      fill(buf, sizes[s], s * 64);
      perigee__mesh_send(m->mesh, &m->fate, 1, key_of_tag(s), buf, sizes[s], 0, &x);
      send_to(m, 1, 99, NULL, 0); /* behind it: who has this has the other */
      CHECK_OK(wait_one(m, &x, patience()));
      CHECK(x.status == 0);
      free(buf);
    } else {
      recv_from(m, 0, 99, NULL, 0);
      recv_filled(m, 0, s, sizes[s]);
    }
    meet(m, s);
  }
}

/* The buffer is there before the message. */
static void expected(member *m) {
  for (size_t s = 0; s < NSIZES; s++) {
    if (m->me == 0) {
      recv_from(m, 1, 99, NULL, 0);
      send_filled(m, 1, s, sizes[s]);
    } else {
      uint8_t *buf = bytes_new(sizes[s]);
      perigee__xfer x = {0};
      perigee__mesh_recv(m->mesh, &m->fate, 0, key_of_tag(s), buf, sizes[s], 0, &x);
      send_to(m, 0, 99, NULL, 0);
      CHECK_OK(wait_one(m, &x, patience()));
      CHECK(x.status == 0 && x.received == sizes[s] && is_filled(buf, sizes[s], s * 64));
      free(buf);
    }
    meet(m, s);
  }
}

/* Rank 0 takes from whoever comes: each message once, those of one rank in order. */
static void any_source(member *m) {
  enum {
    EACH = 40
  };
  if (m->me > 0) {
    for (uint64_t i = 0; i < EACH; i++)
      send_to(m, 0, 5, &i, sizeof(i));
    return;
  }
  uint64_t next[RANKS_MAX] = {0};
  for (int i = 0; i < EACH * (m->n - 1); i++) {
    uint64_t got = UINT64_MAX;
    int from = recv_from(m, -1, 5, &got, sizeof(got));
    CHECK(from > 0 && from < m->n);
    CHECKF(got == next[from], "rank %d: %llu", from, (unsigned long long)got);
    next[from]++;
  }
}

static void tags_out_of_order(member *m) {
  enum {
    TAGS = 12
  };
  static const size_t size_of[3] = {16, EAGER, 4 * EAGER};
  perigee__xfer x[TAGS], *list[TAGS];
  uint8_t *buf[TAGS];
  memset(x, 0, sizeof(x));
  for (uint64_t i = 0; i < TAGS; i++) {
    uint64_t tag = m->me == 0 ? i : TAGS - 1 - i;
    size_t size = size_of[tag % 3];
    list[i] = &x[i];
    buf[i] = bytes_new(size);
    if (m->me == 0) {
      fill(buf[i], size, tag);
      perigee__mesh_send(m->mesh, &m->fate, 1, key_of_tag(tag), buf[i], size, 0, &x[i]);
    } else {
      perigee__mesh_recv(m->mesh, &m->fate, 0, key_of_tag(tag), buf[i], size, 0, &x[i]);
    }
  }
  CHECK_OK(perigee__mesh_wait(m->mesh, list, TAGS, &m->fate, patience()));
  for (uint64_t i = 0; i < TAGS; i++) {
    CHECK(x[i].status == 0);
    CHECK(m->me == 0 || is_filled(buf[i], x[i].size, TAGS - 1 - i));
    free(buf[i]);
  }
}

/* Far more than the credit, and nobody reads: nothing blocks, nothing is lost, the order stays. */
static void flood(member *m) {
  enum {
    MANY = 10000
  };
  uint64_t *values = malloc(MANY * sizeof(*values));
  perigee__xfer *x = calloc(MANY, sizeof(*x));
  CHECK(values != NULL && x != NULL);
  if (m->me == 0) {
    for (uint64_t i = 0; i < MANY; i++) {
      values[i] = i;
      perigee__mesh_send(m->mesh, &m->fate, 1, key_of_tag(1), &values[i], sizeof(values[i]), 0,
                         &x[i]);
    }
    send_to(m, 1, 2, NULL, 0); /* not held up: its key is wanted */
    for (int i = 0; i < MANY; i++) {
      CHECK_OK(wait_one(m, &x[i], patience()));
      CHECK(x[i].status == 0);
    }
  } else {
    recv_from(m, 0, 2, NULL, 0);
    for (uint64_t i = 0; i < MANY; i++) {
      uint64_t got = UINT64_MAX;
      recv_from(m, 0, 1, &got, sizeof(got));
      CHECKF(got == i, "got %llu, expected %llu", (unsigned long long)got, (unsigned long long)i);
    }
  }
  meet(m, 1);
  /* The credit is back: small messages go without being asked for again. */
  if (m->me == 0)
    send_filled(m, 1, 3, 8);
  meet(m, 2);
  if (m->me == 1)
    recv_filled(m, 0, 3, 8);
  free(values);
  free(x);
}

static void both_ways(member *m) {
  int peer = 1 - m->me;
  uint8_t *out = bytes_new(LARGEST), *in = bytes_new(LARGEST);
  for (uint64_t round = 0; round < 3; round++) {
    perigee__xfer s = {0}, r = {0}, *list[2] = {&s, &r};
    fill(out, LARGEST, round * 2 + (uint64_t)m->me);
    perigee__mesh_send(m->mesh, &m->fate, peer, key_of_tag(round), out, LARGEST, 0, &s);
    perigee__mesh_recv(m->mesh, &m->fate, peer, key_of_tag(round), in, LARGEST, 0, &r);
    CHECK_OK(perigee__mesh_wait(m->mesh, list, 2, &m->fate, patience()));
    CHECK(s.status == 0 && r.status == 0);
    CHECK(is_filled(in, LARGEST, round * 2 + (uint64_t)peer));
  }
  free(out);
  free(in);
}

static void all_at_once(member *m) {
  enum {
    SIZE = 3 * EAGER
  };
  perigee__xfer x[2 * RANKS_MAX], *list[2 * RANKS_MAX];
  uint8_t *buf[2 * RANKS_MAX];
  memset(x, 0, sizeof(x));
  for (int i = 0; i < 2 * m->n; i++) {
    int peer = i / 2;
    list[i] = &x[i];
    buf[i] = bytes_new(SIZE);
    if (i % 2 == 0) {
      fill(buf[i], SIZE, (uint64_t)(m->me * 100 + peer));
      perigee__mesh_send(m->mesh, &m->fate, peer, key_of_tag(7), buf[i], SIZE, 0, &x[i]);
    } else {
      perigee__mesh_recv(m->mesh, &m->fate, peer, key_of_tag(7), buf[i], SIZE, 0, &x[i]);
    }
  }
  CHECK_OK(perigee__mesh_wait(m->mesh, list, 2 * m->n, &m->fate, patience()));
  for (int i = 0; i < 2 * m->n; i++) {
    CHECK(x[i].status == 0);
    CHECK(i % 2 == 0 || is_filled(buf[i], SIZE, (uint64_t)(i / 2 * 100 + m->me)));
    free(buf[i]);
  }
}

/* To oneself, before and after the receive is posted. */
static void to_self(member *m) {
  for (size_t s = 0; s < NSIZES; s++)
    for (int first = 0; first < 2; first++) {
      perigee__xfer out = {0}, in = {0}, *list[2] = {&out, &in};
      uint8_t *from = bytes_new(sizes[s]), *to = bytes_new(sizes[s]);
      fill(from, sizes[s], s);
      if (first == 0)
        perigee__mesh_send(m->mesh, &m->fate, m->me, key_of_tag(s), from, sizes[s], 0, &out);
      perigee__mesh_recv(m->mesh, &m->fate, first == 0 ? -1 : m->me, key_of_tag(s), to, sizes[s], 0,
                         &in);
      if (first == 1)
        perigee__mesh_send(m->mesh, &m->fate, m->me, key_of_tag(s), from, sizes[s], 0, &out);
      CHECK_OK(perigee__mesh_wait(m->mesh, list, 2, &m->fate, patience()));
      CHECK(in.status == 0 && out.status == 0 && in.peer == m->me);
      CHECK(is_filled(to, sizes[s], s));
      free(from);
      free(to);
    }
}

/* ---- what does not fit ------------------------------------------------------------------------- */

typedef struct odd {
  size_t sent, room;
  uint64_t sent_fp, expected_fp;
  int status;
} odd;

static void odd_messages(member *m) {
  static const odd cases[] = {
      {8, 4, 0, 0, PERIGEE_ETRUNC},
      {8, 0, 0, 0, PERIGEE_ETRUNC},
      {LARGE, EAGER, 0, 0, PERIGEE_ETRUNC},
      {LARGE, 0, 0, 0, PERIGEE_ETRUNC},
      {8, 16, 0, 0, 0},
      {LARGE, 2 * LARGE, 0, 0, 0},
      {8, 8, 11, 22, PERIGEE_EMISMATCH},
      {LARGE, LARGE, 11, 22, PERIGEE_EMISMATCH},
      {8, 8, 11, 11, 0},
      {8, 8, 11, 0, 0},
      {8, 8, 0, 22, PERIGEE_EMISMATCH},
      {LARGE, LARGE, 11, 11, 0},
  };
  for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
    const odd *c = &cases[i / 2];
    bool early = i % 2 == 0; /* the message comes first, or the receive does */
    perigee__xfer x = {0};
    uint8_t *buf = bytes_new(m->me == 0 ? c->sent : c->room);
    if (m->me == 0) {
      if (!early)
        meet(m, 3 * i);
      fill(buf, c->sent, i);
      perigee__mesh_send(m->mesh, &m->fate, 1, key_of_tag(50), buf, c->sent, c->sent_fp, &x);
      if (early)
        meet(m, 3 * i + 1);
      CHECK_OK(wait_one(
          m, &x, patience())); /* the sender is not left hanging, whatever the other expected */
      CHECK(x.status == 0);
    } else {
      if (early)
        meet(m, 3 * i + 1);
      perigee__mesh_recv(m->mesh, &m->fate, 0, key_of_tag(50), buf, c->room, c->expected_fp, &x);
      if (!early)
        meet(m, 3 * i);
      CHECK_OK(wait_one(m, &x, patience()));
      CHECKF(x.status == c->status, "case %zu: %s", i / 2, perigee_err_name(x.status));
      CHECK(x.received == c->sent && x.peer_fp == c->sent_fp);
      size_t n = c->sent < c->room ? c->sent : c->room;
      CHECK(c->status == PERIGEE_EMISMATCH || is_filled(buf, n, i));
    }
    free(buf);
    meet(m, 3 * i + 2);
  }
}

/* ---- deadlines --------------------------------------------------------------------------------- */

static void deadlines(member *m) {
  static const int64_t limits_ms[] = {0, 1, 5, 30, 120};
  for (size_t i = 0; i < sizeof(limits_ms) / sizeof(limits_ms[0]); i++) {
    perigee__xfer x = {0};
    uint8_t buf[8];
    perigee__mesh_recv(m->mesh, &m->fate, 1 - m->me, key_of_tag(1), buf, sizeof(buf), 0, &x);
    int64_t started = perigee__now_ns();
    CHECK_CODE(wait_one(m, &x, perigee__deadline_in(limits_ms[i] * MS)), PERIGEE_ETIMEDOUT);
    int64_t took = perigee__now_ns() - started;
    CHECKF(took >= limits_ms[i] * MS && took < (limits_ms[i] + 50 * LATENESS) * MS,
           "%lld ns instead of %lld ms", (long long)took, (long long)limits_ms[i]);
    perigee__mesh_cancel(m->mesh, &x);
    CHECK(x.status == PERIGEE_ECANCELED);
  }
  meet(m, 1);
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
#define TESTS(_name) cmocka_unit_test(_name##_shm), cmocka_unit_test(_name##_tcp)
BOTH(ping_pong, 2)
BOTH(all_pairs, 4)
BOTH(unexpected, 2)
BOTH(expected, 2)
BOTH(any_source, 4)
BOTH(tags_out_of_order, 2)
BOTH(flood, 2)
BOTH(both_ways, 2)
BOTH(all_at_once, 8)
BOTH(to_self, 1)
BOTH(odd_messages, 2)
BOTH(deadlines, 2)

int main(void) {
  const struct CMUnitTest tests[] = {
      TESTS(ping_pong), TESTS(all_pairs),   TESTS(unexpected),        TESTS(expected),
      TESTS(to_self),   TESTS(any_source),  TESTS(tags_out_of_order), TESTS(flood),
      TESTS(both_ways), TESTS(all_at_once), TESTS(odd_messages),      TESTS(deadlines),
  };
  return run_all("mesh", tests, sizeof(tests) / sizeof(tests[0]));
}
