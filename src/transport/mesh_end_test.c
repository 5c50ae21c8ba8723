/* A peer ends in every phase of a message, by death or in order: what it has sent counts, what waits for it ends at once, with the reason. */
#include "transport/mesh_raw_testing.h"

typedef struct scene {
  perigee__xfer x;
  uint8_t *buf;
  size_t size;
  bool amid; /* the peer is in the middle of a payload: it cannot say goodbye in the stream */
} scene;

static void post(raw_peer *raw, scene *s, bool is_send, size_t size) {
  s->size = size;
  s->buf = bytes_new(size);
  memset(&s->x, 0, sizeof(s->x));
  if (is_send)
    perigee__mesh_send(raw->m.mesh, NULL, 1, key_of_tag(1), s->buf, size, 0, &s->x);
  else
    perigee__mesh_recv(raw->m.mesh, NULL, 1, key_of_tag(1), s->buf, size, 0, &s->x);
}

static void half_of(raw_peer *raw, int type, size_t size) {
  const perigee__frame frame = raw_message(type, 1, size, 33);
  uint8_t *buf = bytes_new(size);
  raw_send(raw, &frame);
  raw_write(raw, buf, size / 2);
  raw_until_read(raw, size / 2);
  free(buf);
}

static void posted(raw_peer *raw, scene *s) { post(raw, s, false, 8); }

static void landing(raw_peer *raw, scene *s) {
  post(raw, s, false, EAGER);
  half_of(raw, PERIGEE_FRAME_EAGER, EAGER);
  s->amid = true;
}

static void taking(raw_peer *raw, scene *s) {
  half_of(raw, PERIGEE_FRAME_EAGER, EAGER);
  post(raw, s, false, EAGER);
  s->amid = true;
}

/* Nobody has asked before the end: the receive comes after it. */
static void half_there(raw_peer *raw, scene *s) {
  half_of(raw, PERIGEE_FRAME_EAGER, EAGER);
  s->amid = true;
}

static void announced(raw_peer *raw, scene *s) {
  const perigee__frame rts = raw_message(PERIGEE_FRAME_RTS, 1, LARGE, 33);
  raw_send(raw, &rts);
  (void)s;
}

static void cleared(raw_peer *raw, scene *s) {
  announced(raw, s);
  post(raw, s, false, LARGE);
  raw_expect(raw, PERIGEE_FRAME_CTS);
}

static void landing_data(raw_peer *raw, scene *s) {
  cleared(raw, s);
  half_of(raw, PERIGEE_FRAME_DATA, LARGE);
  s->amid = true;
}

static void rts_sent(raw_peer *raw, scene *s) {
  post(raw, s, true, LARGE);
  raw_expect(raw, PERIGEE_FRAME_RTS);
}

static void data_stuck(raw_peer *raw, scene *s) {
  post(raw, s, true, raw->transport == PERIGEE_TRANSPORT_SHM ? LARGE : (size_t)16 << 20);
  const perigee__frame cts = {.type = PERIGEE_FRAME_CTS,
                              .id = raw_expect(raw, PERIGEE_FRAME_RTS).id};
  raw_send(raw, &cts);
  raw_until_phase(raw, &s->x, PERIGEE_XFER_QUEUED);
}

typedef void (*scene_fn)(raw_peer *raw, scene *s);
static const scene_fn scenes[] = {posted,  landing,  taking,       half_there, announced,
                                  cleared, rts_sent, landing_data, data_stuck};
enum {
  NSCENES = sizeof(scenes) / sizeof(scenes[0])
};

static void expect_end(raw_peer *raw, scene *s, int status) {
  perigee__xfer *x = &s->x;
  int64_t started = perigee__now_ns();
  if (s->buf == NULL) { /* nothing waits: until it is known */
    post(raw, s, false, 8);
  }
  CHECK_OK(perigee__mesh_wait(raw->m.mesh, &x, 1, NULL, perigee__deadline_in(5 * SEC)));
  CHECKF(x->status == status, "%s", perigee_err_name(x->status));
  CHECK(perigee__now_ns() - started < SEC * SLOWNESS);
  free(s->buf);
  /* So does what comes after, and at once. */
  for (int is_send = 0; is_send < 2; is_send++) {
    scene later = {0};
    post(raw, &later, is_send == 1, 8);
    CHECKF(later.x.done == 1 && later.x.status == status, "%s", perigee_err_name(later.x.status));
    free(later.buf);
  }
}

static void dies(perigee__transport transport) {
  for (int i = 0; i < NSCENES; i++) {
    raw_peer raw;
    scene s = {0};
    raw_open(&raw, transport);
    scenes[i](&raw, &s);
    int64_t started = perigee__now_ns();
    raw_die(&raw);
    while (!perigee__fate_failed(&raw.m.fate)) {
      CHECK(perigee__now_ns() - started < SEC * SLOWNESS);
      perigee__sleep_ns(MS);
    }
    CHECK(raw.m.fate.error.code == PERIGEE_EPEERDEAD);
    CHECK(raw.m.fate.error.nranks == 1 && raw.m.fate.error.ranks[0] == 1);
    expect_end(&raw, &s, PERIGEE_EPEERDEAD);
    raw_close(&raw);
  }
}

static void leaves(perigee__transport transport) {
  for (int i = 0; i < NSCENES; i++) {
    raw_peer raw;
    scene s = {0};
    const perigee__frame bye = {.type = PERIGEE_FRAME_GOODBYE};
    raw_open(&raw, transport);
    scenes[i](&raw, &s);
    if (!s.amid)
      raw_send(&raw, &bye);
    CHECK(send(raw.uds, "g", 1, 0) == 1);
    raw_die(&raw);
    expect_end(&raw, &s, PERIGEE_EPEERCLOSED);
    CHECK(!perigee__fate_failed(&raw.m.fate));
    raw_close(&raw);
  }
}

static void dies_shm(void **state) {
  (void)state;
  dies(PERIGEE_TRANSPORT_SHM);
}
static void dies_tcp(void **state) {
  (void)state;
  dies(PERIGEE_TRANSPORT_TCP);
}
static void leaves_shm(void **state) {
  (void)state;
  leaves(PERIGEE_TRANSPORT_SHM);
}
static void leaves_tcp(void **state) {
  (void)state;
  leaves(PERIGEE_TRANSPORT_TCP);
}

/* ---- last words -------------------------------------------------------------------------------- */

enum {
  WORDS = 4 /* within the credit */
};

/* As much as fits without a reader. */
static size_t word_size(const raw_peer *raw) {
  return raw->transport == PERIGEE_TRANSPORT_SHM ? PERIGEE_RING_BYTES / 4 / WORDS : EAGER;
}

static void say(raw_peer *raw) {
  size_t size = word_size(raw);
  uint8_t *buf = bytes_new(size);
  for (uint64_t i = 0; i < (raw->transport == PERIGEE_TRANSPORT_SHM ? 2 : WORDS); i++) {
    const perigee__frame frame = raw_message(PERIGEE_FRAME_EAGER, i, size, 0);
    fill(buf, size, i);
    raw_send(raw, &frame);
    raw_write(raw, buf, size);
  }
  free(buf);
}

static void hear(raw_peer *raw) {
  size_t size = word_size(raw);
  for (uint64_t i = 0; i < (raw->transport == PERIGEE_TRANSPORT_SHM ? 2 : WORDS); i++) {
    uint8_t *buf = bytes_new(size);
    perigee__xfer x = {0}, *list = &x;
    perigee__mesh_recv(raw->m.mesh, NULL, 1, key_of_tag(i), buf, size, 0, &x);
    CHECK_OK(perigee__mesh_wait(raw->m.mesh, &list, 1, NULL, patience()));
    CHECKF(x.status == 0, "%s", perigee_err_name(x.status));
    CHECK(is_filled(buf, size, i));
    free(buf);
  }
}

/* What was written before the death is delivered after it. */
static void said_before_death(raw_peer *raw) {
  say(raw);
  raw_die(raw);
  while (!perigee__fate_failed(&raw->m.fate))
    perigee__sleep_ns(MS);
  hear(raw);
}

static void said_before_goodbye(raw_peer *raw) {
  const perigee__frame bye = {.type = PERIGEE_FRAME_GOODBYE};
  say(raw);
  raw_send(raw, &bye);
  CHECK(send(raw->uds, "g", 1, 0) == 1);
  raw_die(raw);
  perigee__sleep_ns(20 * MS);
  hear(raw);
  CHECK(!perigee__fate_failed(&raw->m.fate));
}

/* The end of the process is known before its TCP stream has been read, in both ways of going. */
static void stream_behind_the_end(void **state) {
  (void)state;
  for (int leaving = 0; leaving < 2; leaving++) {
    const perigee__frame bye = {.type = PERIGEE_FRAME_GOODBYE};
    raw_peer raw;
    raw_open(&raw, PERIGEE_TRANSPORT_TCP);
    if (leaving == 1)
      CHECK(send(raw.uds, "g", 1, 0) == 1);
    close(raw.uds);
    raw.uds = -1;
    say(&raw);
    if (leaving == 1)
      raw_send(&raw, &bye);
    close(raw.tcp);
    raw.tcp = -1;
    hear(&raw);
    scene s = {0};
    expect_end(&raw, &s, leaving == 1 ? PERIGEE_EPEERCLOSED : PERIGEE_EPEERDEAD);
    raw_close(&raw);
  }
}

/* The process has ended and its stream does not (somebody else holds it). */
static void stream_never_ends(void **state) {
  (void)state;
  raw_peer raw;
  scene s = {0};
  raw_open(&raw, PERIGEE_TRANSPORT_TCP);
  posted(&raw, &s);
  close(raw.uds);
  raw.uds = -1;
  expect_end(&raw, &s, PERIGEE_EPEERDEAD);
  raw_close(&raw);
}

/* A goodbye is read although the peer closed with kicks of ours unread, which the kernel reports as an error first. */
static void goodbye_before_error(raw_peer *raw) {
  CHECK(send(raw->uds, "k", 1, 0) == 1);
  CHECK(send(raw->uds, "g", 1, 0) == 1);
  perigee__local_kick(&raw->m.mesh->peers[1]);
  perigee__local_kick(&raw->m.mesh->peers[1]);
  raw_die(raw);
  scene s = {0};
  expect_end(raw, &s, PERIGEE_EPEERCLOSED);
  CHECK(!perigee__fate_failed(&raw->m.fate));
}

/* Nobody is there any more when a group is made: it has failed from the beginning. */
static void attach_after_death(raw_peer *raw) {
  perigee__fate late;
  raw_die(raw);
  while (!perigee__fate_failed(&raw->m.fate))
    perigee__sleep_ns(MS);
  static const int swapped[2] = {1, 0};
  CHECK_OK(perigee__fate_init(&late, 77, "late", 1, 2, swapped));
  CHECK_OK(perigee__mesh_attach(raw->m.mesh, &late));
  CHECK(perigee__fate_failed(&late));
  CHECK(late.error.code == PERIGEE_EPEERDEAD &&
        late.error.ranks[0] == 0); /* its rank in this group */
  perigee__mesh_detach(raw->m.mesh, &late);
  perigee__fate_fini(&late);
}

RAW(said_before_death)
RAW(said_before_goodbye)
RAW(goodbye_before_error)
RAW(attach_after_death)
#define TESTS(_name) cmocka_unit_test(_name##_shm), cmocka_unit_test(_name##_tcp)

int main(void) {
  const struct CMUnitTest tests[] = {
      TESTS(dies),
      TESTS(leaves),
      TESTS(said_before_death),
      TESTS(said_before_goodbye),
      TESTS(goodbye_before_error),
      TESTS(attach_after_death),
      cmocka_unit_test(stream_behind_the_end),
      cmocka_unit_test(stream_never_ends),
  };
  return run_all("mesh_end", tests, sizeof(tests) / sizeof(tests[0]));
}
