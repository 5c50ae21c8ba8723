#include "transport/ring.h"

#include <errno.h>
#include <string.h>

#include "transport/memfd.h"

enum {
  PART = PERIGEE_RING_BYTES / 8,
  TURN = PERIGEE_RING_BYTES * 4 /* of one call, so that other peers and threads get theirs */
};

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

static void put(perigee__ring *ring, uint64_t at, const uint8_t *src, size_t n) {
  size_t offset = (size_t)(at % PERIGEE_RING_BYTES);
  size_t first = PERIGEE_RING_BYTES - offset < n ? PERIGEE_RING_BYTES - offset : n;
  memcpy(ring->data + offset, src, first);
  memcpy(ring->data, src + first, n - first);
}

static void get(const perigee__ring *ring, uint64_t at, uint8_t *dest, size_t n) {
  size_t offset = (size_t)(at % PERIGEE_RING_BYTES);
  size_t first = PERIGEE_RING_BYTES - offset < n ? PERIGEE_RING_BYTES - offset : n;
  memcpy(dest, ring->data + offset, first);
  memcpy(dest + first, ring->data, n - first);
}

/* What has been copied since the last time belongs to the reader. */
static void publish(perigee__ring_stream *rs, uint64_t head) {
  rs->out_head = head;
  atomic_store(&rs->out->head, head); /* acquired in ring_read */
  wake_if_armed(rs, &rs->out->reader_armed);
}

/* Large pieces are handed over in parts, so that both sides copy at the same time. */
static ssize_t ring_writev(perigee__stream *stream, const struct iovec *iov, int n) {
  perigee__ring_stream *rs = of(stream);
  uint64_t begin = rs->out_head, head = begin;
  for (int i = 0; i < n; i++) {
    const uint8_t *src = iov[i].iov_base;
    for (size_t left = iov[i].iov_len; left > 0;) {
      size_t take = left < PART ? left : PART,
             room = PERIGEE_RING_BYTES - (size_t)(head - rs->seen_tail);
      if (room < take) {
        /* acquire: the reader is done with the bytes we are about to overwrite */
        rs->seen_tail = atomic_load_explicit(&rs->out->tail, memory_order_acquire);
        if (head - rs->seen_tail > PERIGEE_RING_BYTES)
          return -EPROTO;
        room = PERIGEE_RING_BYTES - (size_t)(head - rs->seen_tail);
        take = take < room ? take : room;
      }
      if (take == 0 || head - begin >= TURN)
        goto full;
      put(rs->out, head, src, take);
      head += take;
      src += take;
      left -= take;
      if (head - rs->out_head >= PART)
        publish(rs, head);
    }
  }
full:
  if (head != rs->out_head)
    publish(rs, head);
  return head != begin ? (ssize_t)(head - begin) : -EAGAIN;
}

static ssize_t ring_read(perigee__stream *stream, void *buf, size_t size) {
  perigee__ring_stream *rs = of(stream);
  uint8_t *dest = buf;
  size_t done = 0;
  while (done < size && done < TURN) {
    size_t take = size - done < PART ? size - done : PART;
    if (rs->seen_head - rs->in_tail < take) {
      /* acquire: the bytes are there */
      rs->seen_head = atomic_load_explicit(&rs->in->head, memory_order_acquire);
      uint64_t there = rs->seen_head - rs->in_tail;
      if (there > PERIGEE_RING_BYTES)
        return -EPROTO;
      if (there == 0)
        break;
      take = take < there ? take : (size_t)there;
    }
    get(rs->in, rs->in_tail, dest + done, take);
    done += take;
    rs->in_tail += take;
    atomic_store(&rs->in->tail, rs->in_tail); /* acquired in ring_writev */
    wake_if_armed(rs, &rs->in->writer_armed);
  }
  return done > 0 ? (ssize_t)done : -EAGAIN;
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
  perigee__vm_show(&rs->probe, &rs->out->face);
}

bool perigee__ring_readable(perigee__ring_stream *rs) {
  if (rs->base == NULL)
    return false;
  if (rs->readable == 0 && rs->in->face.pid != 0)
    rs->readable = perigee__vm_probe(&rs->in->face) == 0 ? 1 : -1;
  return rs->readable > 0;
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
