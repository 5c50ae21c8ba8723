#include "transport/ring.h"

#include <errno.h>
#include <string.h>

#include "transport/memfd.h"

size_t perigee__ring_pair_bytes(void) {
  size_t page = 4096;
  return (2 * sizeof(perigee__ring) + page - 1) / page * page;
}

static perigee__ring_stream *of(perigee__stream *stream) {
  return PERIGEE_CONTAINER_OF(stream, perigee__ring_stream, stream);
}

/* After head or tail was stored; that store and this load are seq_cst: see ring.h. */
static void wake_if_armed(perigee__ring_stream *rs, _Atomic uint32_t *armed) {
  if (PERIGEE_UNLIKELY(atomic_load(armed) != 0) && atomic_exchange(armed, 0) != 0)
    rs->kick(rs->kick_arg);
}

static size_t put(perigee__ring *ring, uint64_t at, const uint8_t *src, size_t n) {
  size_t offset = (size_t)(at % PERIGEE_RING_BYTES);
  size_t first = PERIGEE_RING_BYTES - offset < n ? PERIGEE_RING_BYTES - offset : n;
  memcpy(ring->data + offset, src, first);
  memcpy(ring->data, src + first, n - first);
  return n;
}

static ssize_t ring_writev(perigee__stream *stream, const struct iovec *iov, int n) {
  perigee__ring_stream *rs = of(stream);
  /* acquire: the reader is done with the bytes we are about to overwrite */
  uint64_t used = rs->out_head - atomic_load_explicit(&rs->out->tail, memory_order_acquire);
  if (used > PERIGEE_RING_BYTES)
    return -EPROTO;
  size_t room = PERIGEE_RING_BYTES - (size_t)used, written = 0;
  for (int i = 0; i < n && room > 0; i++) {
    size_t take = iov[i].iov_len < room ? iov[i].iov_len : room;
    put(rs->out, rs->out_head + written, iov[i].iov_base, take);
    written += take;
    room -= take;
  }
  if (written == 0)
    return -EAGAIN;
  rs->out_head += written;
  atomic_store(&rs->out->head, rs->out_head); /* acquired in ring_read */
  wake_if_armed(rs, &rs->out->reader_armed);
  return (ssize_t)written;
}

static ssize_t ring_read(perigee__stream *stream, void *buf, size_t size) {
  perigee__ring_stream *rs = of(stream);
  /* acquire: the bytes are there */
  uint64_t there = atomic_load_explicit(&rs->in->head, memory_order_acquire) - rs->in_tail;
  if (there == 0)
    return -EAGAIN;
  if (there > PERIGEE_RING_BYTES)
    return -EPROTO;
  size_t n = size < there ? size : (size_t)there;
  size_t offset = (size_t)(rs->in_tail % PERIGEE_RING_BYTES);
  size_t first = PERIGEE_RING_BYTES - offset < n ? PERIGEE_RING_BYTES - offset : n;
  memcpy(buf, rs->in->data + offset, first);
  memcpy((uint8_t *)buf + first, rs->in->data, n - first);
  rs->in_tail += n;
  atomic_store(&rs->in->tail, rs->in_tail); /* acquired in ring_writev */
  wake_if_armed(rs, &rs->in->writer_armed);
  return (ssize_t)n;
}

static void ring_want_write(perigee__stream *stream, bool on) { of(stream)->stuck = on; }

static const perigee__stream_ops ring_ops = {ring_writev, ring_read, ring_want_write, false};

void perigee__ring_stream_init(perigee__ring_stream *rs, void *base, bool first,
                               void (*kick)(void *arg), void *kick_arg) {
  perigee__ring *rings = base;
  memset(rs, 0, sizeof(*rs));
  rs->stream.ops = &ring_ops;
  rs->base = base;
  rs->out = first ? &rings[0] : &rings[1];
  rs->in = first ? &rings[1] : &rings[0];
  rs->kick = kick;
  rs->kick_arg = kick_arg;
}

void perigee__ring_stream_fini(perigee__ring_stream *rs) {
  perigee__memfd_unmap(rs->base, perigee__ring_pair_bytes());
  rs->base = NULL;
}

/* Also when the reader's position makes no sense: writing finds that out. */
static bool has_room(const perigee__ring_stream *rs) {
  return rs->out_head - atomic_load(&rs->out->tail) != PERIGEE_RING_BYTES;
}

bool perigee__ring_ready(const perigee__ring_stream *rs) {
  return atomic_load(&rs->in->head) != rs->in_tail || (rs->stuck && has_room(rs));
}

void perigee__ring_arm(perigee__ring_stream *rs) {
  atomic_store(&rs->in->reader_armed, 1);
  if (rs->stuck)
    atomic_store(&rs->out->writer_armed, 1);
}

void perigee__ring_disarm(perigee__ring_stream *rs) {
  atomic_store_explicit(&rs->in->reader_armed, 0, memory_order_relaxed);
  atomic_store_explicit(&rs->out->writer_armed, 0, memory_order_relaxed);
}
