/*
 * For tests that need the other side in their own hands: rank 0 is a real mesh, rank 1 is the test, which writes and reads the bytes of
 * the ring or the TCP stream itself, in the pieces it wants.
 */
#ifndef PERIGEE_TRANSPORT_MESH_RAW_TESTING_H
#define PERIGEE_TRANSPORT_MESH_RAW_TESTING_H

#include "transport/mesh_testing.h"
/* the above first: cmocka needs what it includes */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "transport/memfd.h"
#include "transport/mesh_impl.h"

typedef struct raw_peer {
  member m; /* rank 0 of 2 */
  perigee__transport transport;
  int uds, tcp, port;
  perigee__ring_stream ring;
  uint8_t
      slot[PERIGEE_FRAME_SIZE + PERIGEE_SLOT_MAX]; /* the last slot, as it would be in the stream */
  size_t slot_at, slot_end;                        /* what is not yet read of it */
} raw_peer;

static inline void raw_kick(void *arg) {
  const raw_peer *raw = arg;
  (void)!send(raw->uds, "k", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static inline int raw_connect(int port) {
  struct sockaddr_in at = {.sin_family = AF_INET,
                           .sin_port = htons((uint16_t)port),
                           .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof(at)) == 0);
  return fd;
}

/* The first bytes on a TCP link, from `rank` of `size`. */
static inline void raw_hello(uint8_t out[32], uint64_t nonce, int rank, int size) {
  uint32_t numbers[2] = {htonl((uint32_t)rank), htonl((uint32_t)size)};
  memset(out, 0, 32);
  memcpy(out, "Perigee1", 8);
  nonce = htobe64(nonce);
  memcpy(out + 8, &nonce, 8);
  memcpy(out + 16, numbers, 8);
}

static inline void raw_open(raw_peer *raw, perigee__transport transport) {
  memset(raw, 0, sizeof(*raw));
  raw->transport = transport;
  raw->tcp = -1;
  member *m = &raw->m;
  m->n = 2;
  int pair[2], fd = -1;
  CHECK_OK(perigee__mesh_alloc(0, 2, transport, &m->mesh));
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
  raw->uds = pair[1];
  if (transport == PERIGEE_TRANSPORT_SHM) {
    void *base;
    CHECK_OK(perigee__memfd_create("raw", perigee__ring_pair_bytes(), &fd));
    CHECK_OK(perigee__memfd_map(fd, perigee__ring_pair_bytes(), &base));
    perigee__ring_stream_init(&raw->ring, base, false, raw_kick, raw);
  } else {
    m->mesh->nonce = 4711;
    CHECK_OK(perigee__mesh_listen(m->mesh, "127.0.0.1", &raw->port));
  }
  CHECK_OK(perigee__peer_local_up(&m->mesh->peers[1], pair[0], fd));
  if (transport == PERIGEE_TRANSPORT_TCP) {
    uint8_t hello[32];
    char answer;
    raw->tcp = raw_connect(raw->port);
    raw_hello(hello, 4711, 1, 2);
    CHECK(send(raw->tcp, hello, sizeof(hello), 0) == (ssize_t)sizeof(hello));
    CHECK(recv(raw->tcp, &answer, 1, 0) == 1 && answer == 'A');
  }
  CHECK_OK(perigee__fate_init(&m->fate, GROUP_ALL, "all", 0, 2, all_ranks));
  CHECK_OK(perigee__mesh_attach(m->mesh, &m->fate));
}

/* As a process that ends: everything it had is closed at once. */
static inline void raw_die(raw_peer *raw) {
  if (raw->uds >= 0)
    close(raw->uds);
  if (raw->tcp >= 0)
    close(raw->tcp);
  raw->uds = raw->tcp = -1;
}

static inline void raw_close(raw_peer *raw) {
  raw_die(raw);
  perigee__mesh_detach(raw->m.mesh, &raw->m.fate);
  perigee__mesh_destroy(&raw->m.mesh, perigee__deadline_in(SEC));
  perigee__fate_fini(&raw->m.fate);
  perigee__ring_stream_fini(&raw->ring);
}

static inline void raw_write(raw_peer *raw, const void *data, size_t size) {
  int64_t until = patience();
  for (size_t at = 0; at < size;) {
    const struct iovec rest = {(uint8_t *)(uintptr_t)data + at, size - at};
    ssize_t n = raw->transport == PERIGEE_TRANSPORT_SHM
                    ? raw->ring.stream.ops->writev(&raw->ring.stream, &rest, 1)
                    : send(raw->tcp, rest.iov_base, rest.iov_len, MSG_NOSIGNAL);
    CHECK(n > 0 || n == -EAGAIN);
    CHECK(!perigee__passed(until));
    if (n > 0)
      at += (size_t)n;
    else
      perigee__sleep_ns(20000);
  }
}

/* Bytes of the ring; a frame that comes in a slot looks as if it had come in the stream. */
static inline ssize_t raw_read_ring(raw_peer *raw, void *data, size_t size) {
  perigee__slot slot;
  if (raw->slot_at == raw->slot_end) {
    int rc = perigee__ring_peek_slot(&raw->ring, &slot);
    CHECK(rc >= 0);
    if (rc == 0)
      return raw->ring.stream.ops->read(&raw->ring.stream, data, size);
    size_t n = slot.frame.type == PERIGEE_FRAME_EAGER ? (size_t)slot.frame.length : 0;
    perigee__frame_encode(&slot.frame, raw->slot);
    perigee__ring_take_slot(&raw->ring, &slot, raw->slot + PERIGEE_FRAME_SIZE, n);
    perigee__ring_wake(&raw->ring);
    raw->slot_at = 0;
    raw->slot_end = PERIGEE_FRAME_SIZE + n;
  }
  size_t there = raw->slot_end - raw->slot_at;
  size = size < there ? size : there;
  memcpy(data, raw->slot + raw->slot_at, size);
  raw->slot_at += size;
  return (ssize_t)size;
}

static inline void raw_read(raw_peer *raw, void *data, size_t size) {
  int64_t until = patience();
  for (size_t at = 0; at < size;) {
    ssize_t n = raw->transport == PERIGEE_TRANSPORT_SHM
                    ? raw_read_ring(raw, (uint8_t *)data + at, size - at)
                    : recv(raw->tcp, (uint8_t *)data + at, size - at, 0);
    CHECK(n > 0 || n == -EAGAIN);
    CHECK(!perigee__passed(until));
    if (n > 0)
      at += (size_t)n;
    else
      perigee__sleep_ns(20000);
  }
}

static inline void raw_send(raw_peer *raw, const perigee__frame *frame) {
  uint8_t header[PERIGEE_FRAME_SIZE];
  perigee__frame_encode(frame, header);
  raw_write(raw, header, sizeof(header));
}

/* The next frame that is not about credit must be of that type. */
static inline perigee__frame raw_expect(raw_peer *raw, int type) {
  uint8_t header[PERIGEE_FRAME_SIZE];
  perigee__frame frame;
  do {
    raw_read(raw, header, sizeof(header));
    CHECK_OK(perigee__frame_decode(header, &frame));
  } while (frame.type == PERIGEE_FRAME_CREDIT);
  CHECKF(frame.type == type, "frame of type %d came, %d expected", frame.type, type);
  return frame;
}

static inline perigee__frame raw_message(int type, uint64_t tag, size_t size, uint64_t id) {
  return (perigee__frame){.type = (uint8_t)type,
                          .kind = PERIGEE_KEY_P2P,
                          .group = GROUP_ALL,
                          .tag = tag,
                          .length = size,
                          .id = id};
}

/* Look at the mesh until cond(mesh, arg), under its lock. */
static inline void raw_until(raw_peer *raw, bool (*cond)(perigee__mesh *mesh, void *arg),
                             void *arg) {
  int64_t until = patience();
  for (;;) {
    perigee__loop_lock(raw->m.mesh->loop);
    bool holds = cond(raw->m.mesh, arg);
    perigee__loop_unlock(raw->m.mesh->loop);
    if (holds)
      return;
    CHECK(!perigee__passed(until));
    perigee__sleep_ns(100000);
  }
}

typedef struct raw_phase {
  const perigee__xfer *xfer;
  uint32_t phase;
} raw_phase;

static inline bool raw_phase_is(perigee__mesh *mesh, void *arg) {
  const raw_phase *wanted = arg;
  (void)mesh;
  return wanted->xfer->phase == wanted->phase;
}

/* Until a xfer of the mesh is in a phase. */
static inline void raw_until_phase(raw_peer *raw, const perigee__xfer *xfer, uint32_t phase) {
  raw_phase wanted = {xfer, phase};
  raw_until(raw, raw_phase_is, &wanted);
}

static inline bool raw_has_read(perigee__mesh *mesh, void *arg) {
  return mesh->peers[1].chan.in_payload && mesh->peers[1].chan.at == *(uint64_t *)arg;
}

/* Until the mesh has read so many bytes of a payload. */
static inline void raw_until_read(raw_peer *raw, uint64_t bytes) {
  raw_until(raw, raw_has_read, &bytes);
}

/* Both directions still carry messages. */
static inline void raw_still_works(raw_peer *raw) {
  uint8_t there[16], back[16];
  perigee__frame frame = raw_message(PERIGEE_FRAME_EAGER, 0xfeed, sizeof(there), 0);
  fill(there, sizeof(there), 1);
  raw_send(raw, &frame);
  raw_write(raw, there, sizeof(there));
  recv_from(&raw->m, 1, 0xfeed, back, sizeof(back));
  CHECK(memcmp(there, back, sizeof(there)) == 0);
  fill(there, sizeof(there), 2);
  send_to(&raw->m, 1, 0xfeed, there, sizeof(there));
  frame = raw_expect(raw, PERIGEE_FRAME_EAGER);
  CHECK(frame.tag == 0xfeed && frame.length == sizeof(back));
  raw_read(raw, back, sizeof(back));
  CHECK(memcmp(there, back, sizeof(there)) == 0);
  frame =
      (perigee__frame){.type = PERIGEE_FRAME_CREDIT, .credit = sizeof(back) + PERIGEE_FRAME_SIZE};
  raw_send(raw, &frame);
}

typedef void (*raw_fn)(raw_peer *raw);

/* fn with a raw peer over that transport; nothing is left. */
static inline void raw_run(perigee__transport transport, raw_fn fn) {
  leak_mark mark = leak_begin();
  raw_peer raw;
  raw_open(&raw, transport);
  fn(&raw);
  raw_close(&raw);
  leak_check(mark);
}

#define RAW(_name)                                                                                 \
  static void _name##_shm(void **state) {                                                          \
    (void)state;                                                                                   \
    raw_run(PERIGEE_TRANSPORT_SHM, _name);                                                         \
  }                                                                                                \
  static void _name##_tcp(void **state) {                                                          \
    (void)state;                                                                                   \
    raw_run(PERIGEE_TRANSPORT_TCP, _name);                                                         \
  }

#endif
