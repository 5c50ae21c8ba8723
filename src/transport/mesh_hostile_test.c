/* Bytes that no mesh of ours would send: the peer is given up with the reason named, a stranger is shown out, and nothing else suffers. */
#include "transport/mesh_raw_testing.h"

/* The group has failed because of rank 1, and the message says why. */
static void expect_given_up(raw_peer *raw, const char *why) {
  int64_t until = patience();
  while (!perigee__fate_failed(&raw->m.fate)) {
    CHECK(!perigee__passed(until));
    perigee__sleep_ns(MS);
  }
  const perigee_error *error = &raw->m.fate.error;
  CHECK(error->code == PERIGEE_EPEERDEAD && error->nranks == 1 && error->ranks[0] == 1);
  CHECKF(strstr(error->message, why) != NULL, "'%s' not in '%s'", why, error->message);
}

/* ---- headers ----------------------------------------------------------------------------------- */

typedef struct bad_header {
  perigee__frame frame;
  int at; /* byte to change, -1 none */
  uint8_t to;
  const char *why;
} bad_header;

static void headers(perigee__transport transport) {
  const bad_header bad[] = {
      {{.type = PERIGEE_FRAME_CREDIT}, 0, 'X', "magic"},
      {{.type = PERIGEE_FRAME_CREDIT}, 4, 0, "type"},
      {{.type = PERIGEE_FRAME_CREDIT}, 4, 255, "type"},
      {{.type = PERIGEE_FRAME_CREDIT}, 39, 1, "length"},
      {{.type = PERIGEE_FRAME_EAGER, .length = EAGER + 1}, -1, 0, "length"},
      {{.type = PERIGEE_FRAME_RTS, .length = UINT64_MAX}, -1, 0, "length"},
      {{.type = PERIGEE_FRAME_DATA, .length = UINT64_MAX}, -1, 0, "length"},
      {{.type = PERIGEE_FRAME_ABORT, .length = PERIGEE_ABORT_SIZE + 1}, -1, 0, "length"},
      {{.type = PERIGEE_FRAME_CREDIT, .credit = UINT64_MAX}, -1, 0, "credit"},
      {{.type = PERIGEE_FRAME_CREDIT, .credit = 1}, -1, 0, "credit"}, /* it has none of ours */
  };
  for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
    raw_peer raw;
    uint8_t header[PERIGEE_FRAME_SIZE];
    raw_open(&raw, transport);
    perigee__frame_encode(&bad[i].frame, header);
    if (bad[i].at >= 0)
      header[bad[i].at] = bad[i].to;
    raw_write(&raw, header, sizeof(header));
    expect_given_up(&raw, bad[i].why);
    raw_close(&raw);
  }
}

static void headers_shm(void **state) {
  (void)state;
  headers(PERIGEE_TRANSPORT_SHM);
}
static void headers_tcp(void **state) {
  (void)state;
  headers(PERIGEE_TRANSPORT_TCP);
}

static void random_bytes(raw_peer *raw) {
  uint8_t bytes[4 * PERIGEE_FRAME_SIZE];
  fill(bytes, sizeof(bytes), 99);
  memcpy(bytes, "PGF1", 4); /* as near as it gets */
  bytes[4] = 200;
  raw_write(raw, bytes, PERIGEE_FRAME_SIZE);
  expect_given_up(raw, "type");
}

static void more_than_its_credit(raw_peer *raw) {
  uint8_t *buf = bytes_new(EAGER);
  const perigee__frame frame = raw_message(PERIGEE_FRAME_EAGER, 1, EAGER, 0);
  for (size_t sent = 0; sent + EAGER + PERIGEE_FRAME_SIZE <= PERIGEE_CREDIT;
       sent += EAGER + PERIGEE_FRAME_SIZE) {
    raw_send(raw, &frame);
    raw_write(raw, buf, EAGER);
  }
  perigee__sleep_ns(20 * MS);
  CHECK(!perigee__fate_failed(&raw->m.fate)); /* that much is allowed */
  raw_send(raw, &frame);
  expect_given_up(raw, "credit");
  free(buf);
}

/* ---- frames out of place ----------------------------------------------------------------------- */

/* They speak of what is not there: no harm. */
static void out_of_place(raw_peer *raw) {
  const perigee__frame frames[] = {
      {.type = PERIGEE_FRAME_CTS, .id = 5},
      {.type = PERIGEE_FRAME_RTS_CANCELED, .id = 5},
      {.type = PERIGEE_FRAME_STATUS_REP, .id = 5, .tag = 7},
      {.type = PERIGEE_FRAME_CREDIT},
      {.type = PERIGEE_FRAME_DATA, .id = 5},
  };
  for (size_t i = 0; i < sizeof(frames) / sizeof(frames[0]); i++)
    raw_send(raw, &frames[i]);
  uint8_t *buf = bytes_new(LARGE);
  perigee__frame frame = raw_message(PERIGEE_FRAME_DATA, 1, LARGE, 6);
  raw_send(raw, &frame);
  raw_write(raw, buf, LARGE); /* swallowed */
  frame = (perigee__frame){.type = PERIGEE_FRAME_GROUP_CLOSED};
  for (frame.group = 1; frame.group < 2000; frame.group++)
    if (frame.group != GROUP_ALL)
      raw_send(raw, &frame); /* of groups that nobody knows: noted, but not without bound */
  raw_still_works(raw);
  CHECK(raw->m.mesh->n_notes <= PERIGEE_NOTES_MAX);
  frame = (perigee__frame){.type = PERIGEE_FRAME_STATUS_REQ, .group = 31337, .id = 8};
  raw_send(raw, &frame);
  frame = raw_expect(raw, PERIGEE_FRAME_STATUS_REP);
  CHECK(frame.id == 8 && frame.tag == 0);
  free(buf);
}

/* More data than was announced, or data that belongs elsewhere, stays out of the buffer. */
static void wrong_data(raw_peer *raw, size_t length, uint64_t at) {
  enum {
    ROOM = 64
  };
  uint8_t in[2 * ROOM];
  memset(in, 0xee, sizeof(in));
  perigee__xfer x = {0};
  perigee__mesh_recv(raw->m.mesh, &raw->m.fate, 1, key_of_tag(1), in, ROOM, 0, &x);
  perigee__frame frame = raw_message(PERIGEE_FRAME_RTS, 1, ROOM, 9);
  raw_send(raw, &frame);
  raw_expect(raw, PERIGEE_FRAME_CTS);
  frame = raw_message(PERIGEE_FRAME_DATA, 1, length, 9);
  frame.at = at;
  raw_send(raw, &frame);
  expect_given_up(raw, "announced");
  CHECK(perigee__mesh_wait(raw->m.mesh, &(perigee__xfer *){&x}, 1, NULL, patience()) == 0);
  CHECK(x.status < 0);
  for (size_t i = 0; i < sizeof(in); i++)
    CHECK(in[i] == 0xee);
}

static void more_than_announced(raw_peer *raw) { wrong_data(raw, LARGE, 0); }
static void data_beside_its_place(raw_peer *raw) { wrong_data(raw, 8, 8); }

/* An ABORT whose numbers and text cannot be trusted. */
static void wild_abort(raw_peer *raw) {
  uint8_t record[PERIGEE_ABORT_SIZE];
  memset(record, 0x7f, sizeof(record));
  const perigee__frame frame = {
      .type = PERIGEE_FRAME_ABORT, .group = GROUP_ALL, .length = sizeof(record)};
  raw_send(raw, &frame);
  raw_write(raw, record, sizeof(record));
  while (!perigee__fate_failed(&raw->m.fate))
    perigee__sleep_ns(MS);
  const perigee_error *error = &raw->m.fate.error;
  CHECK(error->code == PERIGEE_EABORTED && error->rank == 0);
  CHECK(error->nranks >= 0 && error->nranks <= PERIGEE_ERR_RANKS_MAX);
  CHECK(strlen(error->message) < sizeof(error->message));
  char line[1024];
  perigee_error_format(error, line, sizeof(line));
}

static void abort_in_part(raw_peer *raw) {
  const perigee__frame frame = {.type = PERIGEE_FRAME_ABORT, .group = GROUP_ALL, .length = 4};
  const uint8_t code[4] = {0};
  raw_send(raw, &frame);
  raw_write(raw, code, sizeof(code));
  while (!perigee__fate_failed(&raw->m.fate))
    perigee__sleep_ns(MS);
  CHECK(raw->m.fate.error.code == PERIGEE_EABORTED);
}

/* Nothing follows a goodbye. */
static void after_goodbye(raw_peer *raw) {
  const perigee__frame bye = {.type = PERIGEE_FRAME_GOODBYE};
  perigee__xfer x = {0};
  uint8_t buf[8];
  perigee__mesh_recv(raw->m.mesh, NULL, 1, key_of_tag(1), buf, sizeof(buf), 0, &x);
  raw_send(raw, &bye);
  const perigee__frame frame = raw_message(PERIGEE_FRAME_EAGER, 1, sizeof(buf), 0);
  if (raw->transport == PERIGEE_TRANSPORT_SHM) {
    raw_send(raw, &frame);
    raw_write(raw, buf, sizeof(buf));
  }
  CHECK_OK(wait_one(&raw->m, &x, patience()));
  CHECK(x.status == PERIGEE_EPEERCLOSED);
  CHECK(!perigee__fate_failed(&raw->m.fate));
}

/* ---- beside the stream ------------------------------------------------------------------------- */

static void ring_positions(void **state) {
  (void)state;
  for (int which = 0; which < 2; which++) {
    raw_peer raw;
    raw_open(&raw, PERIGEE_TRANSPORT_SHM);
    if (which == 0) {
      atomic_store(&raw.ring.out->head, UINT64_C(1) << 62);
    } else {
      atomic_store(&raw.ring.in->tail, UINT64_C(1) << 62);
      /* Seen when the ring is full. */
      enum {
        SMALL = PERIGEE_PULL_MIN / 2, /* goes through the ring */
        MANY = 4 * PERIGEE_RING_BYTES / SMALL
      };
      uint8_t *buf = bytes_new(SMALL);
      static perigee__xfer x[MANY];
      memset(x, 0, sizeof(x));
      for (int i = 0; i < MANY; i++)
        perigee__mesh_send(raw.m.mesh, NULL, 1, key_of_tag(1), buf, SMALL, 0, &x[i]);
      CHECKF(x[MANY - 1].status == PERIGEE_EPEERDEAD, "%s", perigee_err_name(x[MANY - 1].status));
      free(buf);
    }
    raw_kick(&raw);
    expect_given_up(&raw, "died");
    raw_close(&raw);
  }
}

static int send_fd(int uds, const char *packet, size_t size, int fd) {
  struct iovec iov = {(void *)(uintptr_t)packet, size};
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(2 * sizeof(int))];
  } control;
  memset(&control, 0, sizeof(control));
  struct msghdr msg = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.bytes,
                       .msg_controllen = sizeof(control.bytes)};
  struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
  int two[2] = {fd, fd};
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(sizeof(two));
  memcpy(CMSG_DATA(c), two, sizeof(two));
  return sendmsg(uds, &msg, MSG_NOSIGNAL) >= 0 ? 0 : -errno;
}

/* Packets on the UNIX socket that mean nothing; descriptors that come with them are closed. */
static void packets(raw_peer *raw) {
  char huge[4000];
  memset(huge, 'f', sizeof(huge));
  CHECK(send(raw->uds, "x", 1, 0) == 1);
  CHECK(send(raw->uds, "f", 1, 0) == 1);
  CHECK(send(raw->uds, "f12345678", 9, 0) == 9); /* no descriptor with it */
  CHECK(send(raw->uds, huge, sizeof(huge), 0) == (ssize_t)sizeof(huge));
  raw_still_works(raw);
  int before = count_entries("/proc/self/fd");
  CHECK_OK(send_fd(raw->uds, "x", 1, raw->uds));
  CHECK_OK(send_fd(raw->uds, "k", 1, raw->uds));
  CHECK(send(raw->uds, "k", 1, 0) == 1);
  for (int i = 0; i < 1000 && count_entries("/proc/self/fd") != before; i++)
    perigee__sleep_ns(MS);
  raw_still_works(raw);
  CHECK(count_entries("/proc/self/fd") == before);
}

/* ---- strangers --------------------------------------------------------------------------------- */

/* Whether the mesh closes this connection within the time. Takes fd. */
static bool is_shown_out(int fd, int64_t within_ns) {
  int64_t until = perigee__deadline_in(within_ns);
  char byte;
  ssize_t n = 1;
  while (n > 0) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, perigee__poll_ms(until, 1000)) > 0)
      n = recv(fd, &byte, 1, 0);
    else if (perigee__passed(until))
      break;
  }
  close(fd);
  return n <= 0;
}

static void say_hello(raw_peer *raw, uint64_t nonce, int rank, int size) {
  uint8_t hello[32];
  int fd = raw_connect(raw->port);
  raw_hello(hello, nonce, rank, size);
  CHECK(send(fd, hello, sizeof(hello), MSG_NOSIGNAL) == (ssize_t)sizeof(hello));
  CHECK(is_shown_out(fd, 5 * SEC));
}

static void strangers(void **state) {
  (void)state;
  enum {
    CROWD = 150 /* more than are let in at a time */
  };
  raw_peer raw;
  raw_open(&raw, PERIGEE_TRANSPORT_TCP);
  int silent[CROWD];
  for (int i = 0; i < CROWD; i++) {
    silent[i] = raw_connect(raw.port);
    if (i % 10 == 0)
      raw_still_works(&raw);
  }
  int fd = raw_connect(raw.port);
  CHECK(send(fd, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL) == 18);
  CHECK(is_shown_out(fd, 5 * SEC));
  fd = raw_connect(raw.port);
  CHECK(send(fd, "Perig", 5, MSG_NOSIGNAL) == 5); /* begins well and goes no further */
  say_hello(&raw, 4712, 1, 2);                    /* has not read the store */
  say_hello(&raw, 4711, 0, 2);                    /* says it is us */
  say_hello(&raw, 4711, 2, 2);
  say_hello(&raw, 4711, -1, 2);
  say_hello(&raw, 4711, 1, 3);
  say_hello(&raw, 4711, 1, 2); /* the right words, but rank 1 is here already */
  raw_still_works(&raw);
  CHECK(is_shown_out(fd, 5 * SEC));
  for (int i = 0; i < CROWD; i++)
    CHECK(is_shown_out(silent[i], 5 * SEC));
  raw_still_works(&raw);
  CHECK(raw.m.mesh->n_strangers == 0);
  raw_close(&raw);
}

RAW(random_bytes)
RAW(more_than_its_credit)
RAW(out_of_place)
RAW(more_than_announced)
RAW(data_beside_its_place)
RAW(wild_abort)
RAW(abort_in_part)
RAW(after_goodbye)
RAW(packets)
#define TESTS(_name) cmocka_unit_test(_name##_shm), cmocka_unit_test(_name##_tcp)

int main(void) {
  const struct CMUnitTest tests[] = {
      TESTS(headers),
      TESTS(random_bytes),
      TESTS(more_than_its_credit),
      TESTS(out_of_place),
      TESTS(more_than_announced),
      TESTS(data_beside_its_place),
      TESTS(wild_abort),
      TESTS(abort_in_part),
      TESTS(after_goodbye),
      TESTS(packets),
      cmocka_unit_test(ring_positions),
      cmocka_unit_test(strangers),
  };
  return run_all("mesh_hostile", tests, sizeof(tests) / sizeof(tests[0]));
}
