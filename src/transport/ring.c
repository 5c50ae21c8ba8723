#include "transport/ring.h"

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "base/futex.h"
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

bool perigee__ring_wake_due(perigee__ring_stream *rs) {
  bool due = rs->untold != 0;
  rs->untold = 0;
  return due;
}

void perigee__ring_wake_now(perigee__ring_stream *rs) {
  wake_if_armed(rs, &rs->out->reader_armed);
  wake_if_armed(rs, &rs->in->writer_armed);
}

void perigee__ring_wake(perigee__ring_stream *rs) {
  if (!perigee__ring_wake_due(rs))
    return;
  atomic_thread_fence(memory_order_seq_cst); /* between lap or tail, and the look: see ring.h */
  perigee__ring_wake_now(rs);
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

/* In `lap` of a slot when it is used for frame number `i`. */
static uint32_t lap_of(uint32_t i) { return i / PERIGEE_RING_SLOTS + 1; }

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

/* Whether the next slot is there. acquire: so is what stands in it, and what it has in the data. seq_cst: see ring.h. */
static bool slot_came(const perigee__ring_stream *rs) {
  const perigee__ring_slot *slot = &rs->in->slots[rs->in_slot % PERIGEE_RING_SLOTS];
  return atomic_load(&slot->lap) == lap_of(rs->in_slot);
}

/* Up to `most` bytes of the stream that can be read: those up to the next slot. */
static ssize_t readable(perigee__ring_stream *rs, size_t most) {
  uint64_t passed = rs->in_tail - rs->in_base; /* payload of slots, which head need not count */
  if (rs->seen_head - rs->in_base < passed + most) {
    /* acquire: the bytes are there, and the slots before them */
    rs->seen_head = atomic_load_explicit(&rs->in->head, memory_order_acquire);
    if (rs->seen_head - rs->in_base > passed + PERIGEE_RING_BYTES)
      return -EPROTO;
  }
  uint64_t there = rs->seen_head - rs->in_base > passed ? rs->seen_head - rs->in_tail : 0;
  if (slot_came(rs)) {
    uint64_t before = rs->in->slots[rs->in_slot % PERIGEE_RING_SLOTS].at - rs->in_tail;
    if (before > PERIGEE_RING_BYTES)
      return -EPROTO;
    there = there < before ? there : before;
  }
  return (ssize_t)(most < there ? most : there);
}

static ssize_t ring_read(perigee__stream *stream, void *buf, size_t size) {
  perigee__ring_stream *rs = of(stream);
  uint8_t *dest = buf;
  size_t done = 0;
  while (done < size && done < TURN) {
    ssize_t there = readable(rs, size - done < PART ? size - done : PART);
    if (there < 0)
      return there;
    if (there == 0)
      break;
    size_t take = (size_t)there;
    get(rs->in, rs->in_tail, dest + done, take);
    done += take;
    rs->in_tail += take;
    rs->in_base = rs->in_tail;
    atomic_store(&rs->in->tail, rs->in_tail); /* acquired in ring_writev */
    wake_if_armed(rs, &rs->in->writer_armed);
  }
  return done > 0 ? (ssize_t)done : -EAGAIN;
}

/* ---- slots ------------------------------------------------------------------------------------- */

enum {
  AHEAD =
      4 /* slots: the reader has had their lines since; so many sends take longer than fetching one */
};

/* Where payload that is not in the line begins. */
static uint64_t payload_at(uint64_t at) {
  return (at + PERIGEE_CACHE_LINE - 1) / PERIGEE_CACHE_LINE * PERIGEE_CACHE_LINE;
}

bool perigee__ring_slot_fits(const perigee__frame *frame) {
  switch (frame->type) {
  case PERIGEE_FRAME_EAGER:
    return frame->length <= PERIGEE_SLOT_MAX;
  case PERIGEE_FRAME_RTS:
  case PERIGEE_FRAME_CTS:
  case PERIGEE_FRAME_PULLED:
    return true;
  default:
    return false;
  }
}

/* Put payload into the data. False: there is no room. */
static bool put_payload(perigee__ring_stream *rs, const void *payload, size_t size) {
  uint64_t at = payload_at(rs->out_head), end = at + size;
  if (end - rs->seen_tail > PERIGEE_RING_BYTES) {
    /* acquire: the reader is done with the bytes we are about to overwrite */
    rs->seen_tail = atomic_load_explicit(&rs->out->tail, memory_order_acquire);
    if (end - rs->seen_tail > PERIGEE_RING_BYTES)
      return false; /* also when it makes no sense: writing to the stream finds that out */
  }
  put(rs->out, at, payload, size);
  rs->out_head = end;
  return true;
}

bool perigee__ring_put_slot(perigee__ring_stream *rs, const perigee__frame *frame,
                            const void *payload) {
  if (rs->out_slot - rs->seen_slots >= PERIGEE_RING_SLOTS) {
    /* acquire: the reader is done with the slot we are about to overwrite */
    rs->seen_slots = atomic_load_explicit(&rs->out->slots_read, memory_order_acquire);
    if (rs->out_slot - rs->seen_slots >= PERIGEE_RING_SLOTS)
      return false;
  }
  perigee__ring_slot *slot = &rs->out->slots[rs->out_slot % PERIGEE_RING_SLOTS];
  bool eager = frame->type == PERIGEE_FRAME_EAGER;
  uint64_t at = rs->out_head;
  if (eager && frame->length > PERIGEE_SLOT_INLINE &&
      !put_payload(rs, payload, (size_t)frame->length))
    return false;
  slot->type = frame->type;
  slot->kind = frame->kind;
  slot->size = eager ? (uint16_t)frame->length : 0;
  slot->at = at;
  slot->group = frame->group;
  slot->tag = frame->tag;
  slot->fp = frame->fp;
  if (!eager) {
    slot->u.rest.length = frame->length;
    slot->u.rest.id = frame->id;
    slot->u.rest.at = frame->at;
  } else if (frame->length == 8) {
    memcpy(slot->u.payload, payload, 8);
  } else if (frame->length <= PERIGEE_SLOT_INLINE && frame->length > 0) {
    memcpy(slot->u.payload, payload, (size_t)frame->length);
  }
  atomic_store_explicit(&slot->lap, lap_of(rs->out_slot),
                        memory_order_release); /* acquired in slot_came */
  rs->out_slot++;
  rs->untold++;
  perigee__prefetch_write(&rs->out->slots[(rs->out_slot + AHEAD) % PERIGEE_RING_SLOTS]);
  return true;
}

/* What the peer has written, read once. */
static void copy_slot(const perigee__ring_slot *slot, perigee__slot *to) {
  perigee__ring_slot seen;
  size_t skip = offsetof(perigee__ring_slot, type);
  memcpy((char *)&seen + skip, (const char *)slot + skip, sizeof(seen) - skip);
  __asm__ volatile("" : "+m"(seen)); /* and not again */
  bool eager = seen.type == PERIGEE_FRAME_EAGER;
  to->frame = (perigee__frame){.type = seen.type,
                               .kind = seen.kind,
                               .group = seen.group,
                               .tag = seen.tag,
                               .fp = seen.fp,
                               .length = eager ? seen.size : seen.u.rest.length,
                               .id = eager ? 0 : seen.u.rest.id,
                               .at = eager ? 0 : seen.u.rest.at};
  to->at = seen.at;
  memcpy(to->payload, seen.u.payload, sizeof(to->payload));
}

int perigee__ring_peek_slot(const perigee__ring_stream *rs, perigee__slot *slot_p) {
  if (!slot_came(rs))
    return 0;
  copy_slot(&rs->in->slots[rs->in_slot % PERIGEE_RING_SLOTS], slot_p);
  if (slot_p->at != rs->in_tail)
    return slot_p->at - rs->in_tail <= PERIGEE_RING_BYTES
               ? 0
               : perigee__fail(PERIGEE_EPROTO, "slot: wrong position");
  if (!perigee__ring_slot_fits(&slot_p->frame))
    return perigee__fail(PERIGEE_EPROTO, "slot: type %u with length %llu", slot_p->frame.type,
                         (unsigned long long)slot_p->frame.length);
  return perigee__frame_check(&slot_p->frame) < 0 ? PERIGEE_EPROTO : 1;
}

void perigee__ring_take_slot(perigee__ring_stream *rs, const perigee__slot *slot, void *dest,
                             size_t n) {
  const perigee__frame *frame = &slot->frame;
  bool in_data = frame->type == PERIGEE_FRAME_EAGER && frame->length > PERIGEE_SLOT_INLINE;
  if (n > 0 && in_data)
    get(rs->in, payload_at(slot->at), dest, n);
  else if (n > 0)
    memcpy(dest, slot->payload, n);
  rs->in_slot++;
  atomic_store_explicit(&rs->in->slots_read, rs->in_slot,
                        memory_order_release); /* acquired in put_slot */
  if (!in_data)
    return;
  rs->in_tail = payload_at(slot->at) + frame->length;
  atomic_store_explicit(&rs->in->tail, rs->in_tail,
                        memory_order_release); /* acquired in ring_writev, put_payload */
  rs->untold++;
}

/* ---- the stream -------------------------------------------------------------------------------- */

static void ring_want_write(perigee__stream *stream, bool on) { of(stream)->stuck = on; }

static const perigee__stream_ops ring_ops = {ring_writev, ring_read, NULL, ring_want_write, false};

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
  return slot_came(rs) || atomic_load(&rs->in->head) - rs->in_base > rs->in_tail - rs->in_base ||
         (rs->stuck && has_room(rs));
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
