/* A message may be taken back in every phase: it ends as canceled, its memory is free, and the stream behind it goes on. */
#include "transport/mesh_raw_testing.h"

static void post_send(raw_peer *raw, perigee__xfer *x, uint64_t tag, const void *buf, size_t size) {
  memset(x, 0, sizeof(*x));
  perigee__mesh_send(raw->m.mesh, &raw->m.fate, 1, key_of_tag(tag), buf, size, 0, x);
}

static void post_recv(raw_peer *raw, perigee__xfer *x, uint64_t tag, void *buf, size_t size) {
  memset(x, 0, sizeof(*x));
  perigee__mesh_recv(raw->m.mesh, &raw->m.fate, 1, key_of_tag(tag), buf, size, 0, x);
}

/* Take it back and spoil its memory. */
static void take_back(raw_peer *raw, perigee__xfer *x) {
  perigee__mesh_cancel(raw->m.mesh, x);
  CHECKF(x->status == PERIGEE_ECANCELED, "%s", perigee_err_name(x->status));
  CHECK(x->done == 1);
  free(x->buf);
  memset(x, 0x55, sizeof(*x));
}

/* ---- sends ------------------------------------------------------------------------------------- */

static void send_announced(raw_peer *raw) {
  perigee__xfer x;
  post_send(raw, &x, 1, bytes_new(LARGE), LARGE);
  perigee__frame rts = raw_expect(raw, PERIGEE_FRAME_RTS);
  CHECK(rts.length == LARGE);
  raw_until_phase(raw, &x, PERIGEE_XFER_RTS_SENT);
  take_back(raw, &x);
  CHECK(raw_expect(raw, PERIGEE_FRAME_RTS_CANCELED).id == rts.id);
  const perigee__frame late = {.type = PERIGEE_FRAME_CTS, .id = rts.id};
  raw_send(raw, &late);
  raw_still_works(raw);
}

enum {
  NDATA = 10
};

/* More than buffers take, and several frames of data. */
static size_t stuck_size(const raw_peer *raw) {
  return raw->transport == PERIGEE_TRANSPORT_SHM ? (size_t)4 * PERIGEE_CHUNK : (size_t)16 << 20;
}

static bool is_partly_sent(perigee__mesh *mesh, void *arg) {
  const perigee__channel *chan = &mesh->peers[1].chan;
  (void)arg;
  if (perigee__list_empty(&chan->out))
    return false;
  const perigee__out *out = PERIGEE_CONTAINER_OF(chan->out.next, perigee__out, node);
  return out->sent > 0 || out->done > PERIGEE_FRAME_SIZE;
}

/* What has come of the messages with these ids: their data comes in frames that take turns. */
typedef struct inbox {
  uint64_t ids[NDATA];
  uint8_t *bytes[NDATA];
  size_t have[NDATA];
} inbox;

/* One frame of message i. Returns whether it is whole now; its bytes must be right then. */
static bool take_data(raw_peer *raw, inbox *in, uint64_t i, const perigee__frame *f, size_t size) {
  CHECK(f->at == in->have[i] && f->length > 0 && f->length <= size - in->have[i]);
  if (in->bytes[i] == NULL)
    in->bytes[i] = bytes_new(size);
  raw_read(raw, in->bytes[i] + in->have[i], f->length);
  in->have[i] += f->length;
  if (in->have[i] < size)
    return false;
  CHECKF(is_filled(in->bytes[i], size, i), "wrong bytes of message %llu", (unsigned long long)i);
  free(in->bytes[i]);
  in->bytes[i] = NULL;
  return true;
}

/* Until a message has come whole (true), or is withdrawn. */
static bool read_data(raw_peer *raw, uint64_t *i_p, size_t size, inbox *in) {
  for (;;) {
    uint8_t header[PERIGEE_FRAME_SIZE];
    perigee__frame frame;
    raw_read(raw, header, sizeof(header));
    CHECK_OK(perigee__frame_decode(header, &frame));
    if (frame.type == PERIGEE_FRAME_CREDIT)
      continue;
    uint64_t i = 0;
    while (in->ids[i] != frame.id)
      CHECK(++i < NDATA);
    *i_p = i;
    if (frame.type == PERIGEE_FRAME_RTS_CANCELED) {
      CHECK(in->have[i] == 0);
      return false;
    }
    CHECKF(frame.type == PERIGEE_FRAME_DATA, "type %d", frame.type);
    if (take_data(raw, in, i, &frame, size))
      return true;
  }
}

/* Ten messages cleared to send at once to a peer that does not read: the first is partly out, some have their header made, some not. */
static void send_data(raw_peer *raw) {
  size_t size = stuck_size(raw);
  perigee__xfer x[NDATA];
  inbox in = {.have = {0}};
  for (uint64_t i = 0; i < NDATA; i++) {
    uint8_t *buf = bytes_new(size);
    fill(buf, size, i);
    post_send(raw, &x[i], i, buf, size);
    in.ids[i] = raw_expect(raw, PERIGEE_FRAME_RTS).id;
  }
  for (int i = 0; i < NDATA; i++) {
    const perigee__frame cts = {.type = PERIGEE_FRAME_CTS, .id = in.ids[i]};
    raw_send(raw, &cts);
  }
  raw_until_phase(raw, &x[NDATA - 1], PERIGEE_XFER_QUEUED);
  raw_until(raw, is_partly_sent, NULL);
  static const int taken[] = {0, 4, 9};
  bool is_taken[NDATA] = {false}, came[NDATA] = {false};
  for (int i = 0; i < 3; i++) {
    take_back(raw, &x[taken[i]]);
    is_taken[taken[i]] = true;
  }
  for (int seen = 0; seen < NDATA; seen++) {
    uint64_t i;
    bool data = read_data(raw, &i, size, &in);
    CHECK(!came[i]);
    came[i] = true;
    CHECK(data || is_taken[i]);
    CHECK(i != 0 || data); /* had begun */
  }
  for (int i = 0; i < NDATA; i++)
    if (!is_taken[i]) {
      CHECK_OK(wait_one(&raw->m, &x[i], patience()));
      CHECK(x[i].status == 0);
      free(x[i].buf);
    }
  raw_still_works(raw);
}

static uint64_t credit_of(raw_peer *raw) {
  perigee__loop_lock(raw->m.mesh->loop);
  uint64_t credit = raw->m.mesh->peers[1].chan.credit;
  perigee__loop_unlock(raw->m.mesh->loop);
  return credit;
}

/* Read until the message in->ids[0] is whole and a small one with tag 300 has come, which must be first. Returns the credit that other small
 * ones have used. */
static uint64_t read_rest(raw_peer *raw, size_t size, inbox *in) {
  uint64_t used = 0;
  for (bool whole = false, marked = false; !whole || !marked;) {
    uint8_t header[PERIGEE_FRAME_SIZE], payload[8];
    perigee__frame frame;
    raw_read(raw, header, sizeof(header));
    CHECK_OK(perigee__frame_decode(header, &frame));
    if (frame.type == PERIGEE_FRAME_DATA) {
      CHECK(frame.id == in->ids[0]);
      whole = take_data(raw, in, 0, &frame, size);
    } else if (frame.type == PERIGEE_FRAME_EAGER && frame.tag == 300) {
      CHECK(!whole);
      marked = true;
    } else if (frame.type == PERIGEE_FRAME_EAGER) {
      raw_read(raw, payload, frame.length);
      used += frame.length + PERIGEE_FRAME_SIZE;
    } else {
      CHECK(frame.type != PERIGEE_FRAME_RTS_CANCELED || frame.id != 0);
    }
  }
  return used;
}

/*
 * Small messages and announcements behind a large one that is stuck leave no trace when they are taken back, and their credit is
 * back; those whose header had been made go out. One that is not taken back does not wait until the large one has gone.
 */
static void send_queued(raw_peer *raw) {
  size_t size = stuck_size(raw);
  perigee__xfer first, small[NDATA], large;
  uint8_t *buf = bytes_new(size);
  inbox in = {.have = {0}};
  fill(buf, size, 0);
  post_send(raw, &first, 0, buf, size);
  in.ids[0] = raw_expect(raw, PERIGEE_FRAME_RTS).id;
  const perigee__frame cts = {.type = PERIGEE_FRAME_CTS, .id = in.ids[0]};
  raw_send(raw, &cts);
  raw_until(raw, is_partly_sent, NULL);
  uint64_t credit = credit_of(raw);
  for (uint64_t i = 0; i < NDATA; i++)
    post_send(raw, &small[i], 100 + i, bytes_new(8), 8);
  post_send(raw, &large, 200, bytes_new(LARGE), LARGE);
  CHECK(credit_of(raw) < credit);
  for (int i = NDATA - 1; i >= 0; i--)
    take_back(raw, &small[i]);
  take_back(raw, &large);
  perigee__xfer mark;
  post_send(raw, &mark, 300, NULL, 0);
  credit -= read_rest(raw, size, &in);
  CHECK_OK(wait_one(&raw->m, &first, patience()));
  CHECK(first.status == 0);
  free(buf);
  CHECK_OK(wait_one(&raw->m, &mark, patience()));
  CHECK(credit_of(raw) == credit - PERIGEE_FRAME_SIZE);
  raw_still_works(raw);
}

/* ---- receives ---------------------------------------------------------------------------------- */

static void recv_posted(raw_peer *raw) {
  perigee__xfer x;
  uint8_t buf[8], back[8];
  post_recv(raw, &x, 1, bytes_new(8), 8);
  take_back(raw, &x);
  const perigee__frame frame = raw_message(PERIGEE_FRAME_EAGER, 1, sizeof(buf), 0);
  fill(buf, sizeof(buf), 3);
  raw_send(raw, &frame);
  raw_write(raw, buf, sizeof(buf));
  recv_from(&raw->m, 1, 1, back, sizeof(back)); /* the message is for who comes next */
  CHECK(memcmp(buf, back, sizeof(buf)) == 0);
  raw_still_works(raw);
}

/* In the middle of a small message into the buffer ... */
static void recv_landing(raw_peer *raw) {
  enum {
    SIZE = EAGER
  };
  perigee__xfer x;
  uint8_t *buf = bytes_new(SIZE);
  post_recv(raw, &x, 1, bytes_new(SIZE), SIZE);
  const perigee__frame frame = raw_message(PERIGEE_FRAME_EAGER, 1, SIZE, 0);
  raw_send(raw, &frame);
  raw_write(raw, buf, SIZE / 2);
  raw_until_read(raw, SIZE / 2);
  raw_until_phase(raw, &x, PERIGEE_XFER_LANDING);
  take_back(raw, &x);
  raw_write(raw, buf, SIZE / 2);
  raw_still_works(raw);
  free(buf);
}

/* ... and of a large one. */
static void recv_landing_data(raw_peer *raw) {
  perigee__xfer x;
  uint8_t *buf = bytes_new(LARGE);
  perigee__frame frame = raw_message(PERIGEE_FRAME_RTS, 1, LARGE, 17);
  raw_send(raw, &frame);
  post_recv(raw, &x, 1, bytes_new(LARGE), LARGE);
  CHECK(raw_expect(raw, PERIGEE_FRAME_CTS).id == 17);
  frame.type = PERIGEE_FRAME_DATA;
  raw_send(raw, &frame);
  raw_write(raw, buf, LARGE / 2);
  raw_until_read(raw, LARGE / 2);
  take_back(raw, &x);
  raw_write(raw, buf, LARGE / 2);
  raw_still_works(raw);
  free(buf);
}

static void recv_cleared(raw_peer *raw) {
  perigee__xfer x;
  uint8_t *buf = bytes_new(LARGE);
  perigee__frame frame = raw_message(PERIGEE_FRAME_RTS, 1, LARGE, 18);
  post_recv(raw, &x, 1, bytes_new(LARGE), LARGE);
  raw_send(raw, &frame);
  CHECK(raw_expect(raw, PERIGEE_FRAME_CTS).id == 18);
  raw_until_phase(raw, &x, PERIGEE_XFER_CTS_SENT);
  take_back(raw, &x);
  frame.type = PERIGEE_FRAME_DATA;
  raw_send(raw, &frame);
  raw_write(raw, buf, LARGE);
  raw_still_works(raw);
  free(buf);
}

static void recv_taking(raw_peer *raw) {
  enum {
    SIZE = EAGER
  };
  perigee__xfer x;
  uint8_t *buf = bytes_new(SIZE);
  fill(buf, SIZE, 5);
  const perigee__frame frame = raw_message(PERIGEE_FRAME_EAGER, 1, SIZE, 0);
  for (int round = 0; round < 2; round++) {
    raw_send(raw, &frame);
    raw_write(raw, buf, SIZE / 2);
    raw_until_read(raw, SIZE / 2);
    post_recv(raw, &x, 1, bytes_new(SIZE), SIZE);
    raw_until_phase(raw, &x, PERIGEE_XFER_TAKING);
    if (round == 0)
      take_back(raw, &x);
    raw_write(raw, buf + SIZE / 2, SIZE / 2);
    if (round == 1) {
      CHECK_OK(wait_one(&raw->m, &x, patience()));
      CHECK(x.status == 0 && memcmp(x.buf, buf, SIZE) == 0);
      free(x.buf);
    }
    raw_still_works(raw);
  }
  free(buf);
}

/* The sender takes back what it has announced: before and after a receive has taken it. */
static void sender_takes_back(raw_peer *raw) {
  perigee__xfer x;
  const perigee__frame rts = raw_message(PERIGEE_FRAME_RTS, 1, LARGE, 20),
                       canceled = {.type = PERIGEE_FRAME_RTS_CANCELED, .id = 20};
  raw_send(raw, &rts);
  raw_send(raw, &canceled);
  raw_still_works(raw);
  post_recv(raw, &x, 1, bytes_new(LARGE), LARGE);
  raw_still_works(raw);
  CHECK(x.done == 0);
  raw_send(raw, &rts);
  raw_expect(raw, PERIGEE_FRAME_CTS);
  raw_send(raw, &canceled);
  CHECK_OK(wait_one(&raw->m, &x, patience()));
  CHECK(x.status == PERIGEE_ECANCELED);
  free(x.buf);
  raw_still_works(raw);
}

/* Taking back what is done changes nothing. */
static void after_the_end(raw_peer *raw) {
  perigee__xfer x;
  uint8_t buf[8] = {0};
  post_send(raw, &x, 1, buf, sizeof(buf));
  CHECK_OK(wait_one(&raw->m, &x, patience()));
  perigee__mesh_cancel(raw->m.mesh, &x);
  CHECK(x.status == 0);
}

/* ---- both at random ---------------------------------------------------------------------------- */

/* Two real ranks take back at random moments; what arrives is right, and all agree at the end. */
static void at_random(member *m) {
  uint64_t x = 12345 + (uint64_t)m->me;
  uint8_t *out = bytes_new(LARGE), *in = bytes_new(LARGE);
  for (uint64_t round = 0; round < 200; round++) {
    x = x * UINT64_C(6364136223846793005) + 1;
    size_t size = (x >> 33) % 2 == 0 ? EAGER / 2 : LARGE;
    perigee__xfer s = {0}, r = {0}, *list[2] = {&s, &r};
    fill(out, LARGE, round * 2 + (uint64_t)m->me);
    perigee__mesh_send(m->mesh, &m->fate, 1 - m->me, key_of_tag(round), out, size, 0, &s);
    perigee__mesh_recv(m->mesh, &m->fate, 1 - m->me, key_of_tag(round), in, LARGE, 0, &r);
    int rc = perigee__mesh_wait(m->mesh, list, 2, &m->fate,
                                perigee__deadline_in((int64_t)((x >> 40) % 400000)));
    CHECK(rc == 0 || rc == PERIGEE_ETIMEDOUT);
    perigee__mesh_cancel(m->mesh, &s);
    perigee__mesh_cancel(m->mesh, &r);
    CHECK(s.status == 0 || s.status == PERIGEE_ECANCELED);
    CHECK(r.status == 0 || r.status == PERIGEE_ECANCELED);
    CHECK(r.status != 0 || is_filled(in, r.received, round * 2 + (uint64_t)(1 - m->me)));
    fill(out, LARGE, 1); /* the mesh reads it no more */
  }
  meet(m, 1);
  free(out);
  free(in);
}

static void at_random_shm(void **state) {
  (void)state;
  world_of(2, PERIGEE_TRANSPORT_SHM, at_random, NULL);
}

static void at_random_tcp(void **state) {
  (void)state;
  world_of(2, PERIGEE_TRANSPORT_TCP, at_random, NULL);
}

RAW(send_announced)
RAW(send_data)
RAW(send_queued)
RAW(recv_posted)
RAW(recv_landing)
RAW(recv_landing_data)
RAW(recv_cleared)
RAW(recv_taking)
RAW(sender_takes_back)
RAW(after_the_end)
#define TESTS(_name) cmocka_unit_test(_name##_shm), cmocka_unit_test(_name##_tcp)

int main(void) {
  const struct CMUnitTest tests[] = {
      TESTS(send_announced), TESTS(send_data),         TESTS(send_queued),  TESTS(recv_posted),
      TESTS(recv_landing),   TESTS(recv_landing_data), TESTS(recv_cleared), TESTS(recv_taking),
      TESTS(after_the_end),  TESTS(sender_takes_back), TESTS(at_random),
  };
  return run_all("mesh_cancel", tests, sizeof(tests) / sizeof(tests[0]));
}
