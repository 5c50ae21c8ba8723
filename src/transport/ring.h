/*
 * Ring: a stream in memory shared by two ranks of one host. One ring per direction, both in one memfd:
 *
 *   OFFSET            FIELD        WRITER
 *   0                 head         writer: bytes written since the beginning (64 bits, never wraps in practice)
 *   128               tail         reader: bytes read
 *   256               reader_armed reader sets it before it sleeps; the writer clears it and kicks
 *   384               writer_armed writer sets it when it found no room; the reader clears it and kicks
 *   512               revoked      writer: times it has taken back a message that it had announced (pull.c)
 *   520               face         writer: how to read its memory (vm.h); before the first byte
 *   640               data         PERIGEE_RING_BYTES
 *
 * Memory order: head is released by the writer and acquired by the reader; tail the other way round.
 * Sleeping (Dekker, all seq_cst): who is going to sleep stores its armed flag and looks at head or tail once more
 * (perigee__ring_ready); the other side stores head or tail and looks at the flag. One of them sees the other, so no wake-up is lost, and
 * nobody makes a system call while nobody sleeps.
 * A peer may be hostile: positions are read once into locals and a difference beyond the size is an error.
 */
#ifndef PERIGEE_TRANSPORT_RING_H
#define PERIGEE_TRANSPORT_RING_H

#include <stdatomic.h>

#include "base/attr.h"
#include "transport/frame.h"
#include "transport/stream.h"
#include "transport/vm.h"

typedef struct perigee__ring {
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint64_t head;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint64_t tail;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t reader_armed;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t writer_armed;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t revoked;
  perigee__vm_face face;
  _Alignas(PERIGEE_FALSE_SHARING) uint8_t data[PERIGEE_RING_BYTES];
} perigee__ring;

typedef struct perigee__ring_stream {
  perigee__stream stream;
  perigee__ring *out, *in; /* both in one mapping */
  void *base;
  uint64_t out_head, in_tail; /* own positions: never read back from shared memory */
  uint64_t seen_tail,
      seen_head;           /* the other side's, when we looked last: looking costs a cache miss */
  uint64_t probe;          /* what the own face points to */
  int readable;            /* the peer's memory: 1 yes, -1 no, 0 not tried */
  bool stuck;              /* writev found no room and the mesh wants to know */
  void (*kick)(void *arg); /* wake the peer */
  void *kick_arg;
} perigee__ring_stream;

/** Bytes of the memfd of one pair. */
size_t perigee__ring_pair_bytes(void);
/** base: mapping of a pair; first: this rank is the lower one. */
void perigee__ring_stream_init(perigee__ring_stream *rs, void *base, bool first,
                               void (*kick)(void *arg), void *kick_arg);
void perigee__ring_stream_fini(perigee__ring_stream *rs);

/** Whether the peer's memory can be read directly. It has sent something, or may have. */
bool perigee__ring_readable(perigee__ring_stream *rs);
/** Whether there is something to read, or room for what was stuck. */
bool perigee__ring_ready(const perigee__ring_stream *rs);
/** Before sleeping: ask to be kicked. The caller looks at ready once more afterwards. */
void perigee__ring_arm(perigee__ring_stream *rs);
void perigee__ring_disarm(perigee__ring_stream *rs);

#endif
