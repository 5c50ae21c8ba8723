/*
 * Ring: a stream in memory shared by two ranks of one host. One ring per direction, both in one memfd:
 *
 *   OFFSET            FIELD        WRITER
 *   0                 head         writer: bytes written since the beginning (64 bits, never wraps in practice)
 *   128               tail         reader: bytes read
 *   136               slots_read   reader: slots read
 *   256               reader_armed reader sets it before it sleeps; the writer clears it and kicks
 *   384               writer_armed writer sets it when it found no room; the reader clears it and kicks
 *   512               revoked      writer: times it has taken back a message that it had announced (pull.c)
 *   520               face         writer: how to read its memory (vm.h); before the first byte
 *   640               help         both: who moves which part of a large message (help.c)
 *   896               slots        PERIGEE_RING_SLOTS lines
 *   + 64 * SLOTS      data         PERIGEE_RING_BYTES
 *
 * Slots: a small frame goes in a line of its own, which holds the flag that it is there, so that a reader that polls has it after one cache
 * miss, where a stream of bytes takes three (head, header, payload). Up to PERIGEE_SLOT_INLINE bytes of payload are in the line; more
 * are in the data, at the next multiple of 64, as if they had been written to the stream. A slot stands at a position of the stream
 * (`at`): the reader comes to it when it has read the bytes before, and does not read over it. The writer uses a slot only between
 * whole frames. So slots and stream are one sequence. A writer that finds no free slot writes to the stream: nobody sleeps for a slot.
 *   `lap` of a slot is written last: how often it has been used. Old payload cannot be taken for it: nothing else stands at its place.
 *
 * Memory order: head and lap are released by the writer and acquired by the reader; tail and slots_read the other way round.
 * Sleeping (Dekker, all seq_cst): who is going to sleep stores its armed flag and looks at head, lap or tail once more
 * (perigee__ring_ready); the other side stores head, lap or tail and looks at the flag. One of them sees the other, so no wake-up is lost, and
 * nobody makes a system call while nobody sleeps. For slots the fence in between and the look are put off (perigee__ring_wake), so that there is
 * one for all that is written or read in one go.
 * A peer may be hostile: positions are read once into locals and a difference beyond the size is an error.
 */
#ifndef PERIGEE_TRANSPORT_RING_H
#define PERIGEE_TRANSPORT_RING_H

#include <stdatomic.h>

#include "base/attr.h"
#include "transport/frame.h"
#include "transport/stream.h"
#include "transport/vm.h"

enum {
  PERIGEE_SLOT_INLINE = 24
};

typedef struct perigee__ring_slot {
  _Atomic uint32_t lap;
  uint8_t type, kind;
  uint16_t size; /* of the payload of EAGER; else 0 */
  uint64_t at;   /* position in the stream */
  uint64_t group, tag, fp;
  union {
    uint8_t payload[PERIGEE_SLOT_INLINE];
    struct {
      uint64_t length, id, at;
    } rest; /* of the frame, when it is not EAGER */
  } u;
} perigee__ring_slot;

_Static_assert(sizeof(perigee__ring_slot) == PERIGEE_CACHE_LINE, "a slot is a line");

/** Of the message that the reader of the ring reads from its writer's memory. */
typedef struct perigee__help {
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint64_t
      claim;     /* reader opens and closes, both claim; 0: closed. help.c */
  uint64_t dest; /* reader: where the message goes in its memory; before it opens */
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint64_t
      done;                /* writer: id << 32 | parts written; reader, before it opens */
  _Atomic int32_t tid;     /* writer: the thread that writes */
  _Atomic uint32_t unable; /* writer: it cannot */
  struct iovec
      to; /* writer, before it claims: what the system call is to write; the reader makes it empty to stop that */
} perigee__help;

typedef struct perigee__ring {
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint64_t head;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint64_t tail;
  _Atomic uint32_t slots_read;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t reader_armed;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t writer_armed;
  _Alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t revoked;
  perigee__vm_face face;
  perigee__help help;
  _Alignas(PERIGEE_FALSE_SHARING) perigee__ring_slot slots[PERIGEE_RING_SLOTS];
  uint8_t data[PERIGEE_RING_BYTES];
} perigee__ring;

typedef struct perigee__ring_stream {
  perigee__stream stream;
  perigee__ring *out, *in; /* both in one mapping */
  void *base;
  uint64_t out_head, in_tail; /* own positions: never read back from shared memory */
  uint64_t seen_tail,
      seen_head;    /* the other side's, when we looked last: looking costs a cache miss */
  uint64_t in_base; /* in_tail after the last bytes that were no slot's: head is not behind it */
  uint32_t out_slot, in_slot; /* slots written and read so far */
  uint32_t seen_slots;        /* slots_read of the other side, when we looked last */
  uint64_t probe;             /* what the own face points to */
  int readable;               /* the peer's memory: 1 yes, -1 no, 0 not tried */
  bool stuck;                 /* writev found no room and the mesh wants to know */
  uint32_t
      untold; /* slots put and payloads taken since the last perigee__ring_wake: the peer may sleep for them */
  void (*kick)(void *arg); /* wake the peer */
  void *kick_arg;
} perigee__ring_stream;

/** Bytes of the memfd of one pair. */
size_t perigee__ring_pair_bytes(void);
/** base: mapping of a pair; first: this rank is the lower one. */
void perigee__ring_stream_init(perigee__ring_stream *rs, void *base, bool first,
                               void (*kick)(void *arg), void *kick_arg);
void perigee__ring_stream_fini(perigee__ring_stream *rs);

/** A slot as it was found. */
typedef struct perigee__slot {
  perigee__frame frame;
  uint64_t at;
  uint8_t payload[PERIGEE_SLOT_INLINE];
} perigee__slot;

/** Wake the peer if it sleeps for slots that were put, or for room that was made by taking them. To be called soon after either. */
void perigee__ring_wake(perigee__ring_stream *rs);
/** The same in two halves: whether there is something to wake for; and the rest, behind a full barrier, without the mesh's lock. */
bool perigee__ring_wake_due(perigee__ring_stream *rs);
void perigee__ring_wake_now(perigee__ring_stream *rs);

/** Send a frame of which slots can hold the type (perigee__ring_slot_fits), with frame->length bytes of payload when it is EAGER; nothing
 *  may be half written to the stream. False: there is no room. */
bool perigee__ring_put_slot(perigee__ring_stream *rs, const perigee__frame *frame,
                            const void *payload);
bool perigee__ring_slot_fits(const perigee__frame *frame);
/** The slot that comes next in the stream: 1, and a copy of it; 0: none, or bytes come before it; EPROTO naming the field. */
int perigee__ring_peek_slot(const perigee__ring_stream *rs, perigee__slot *slot_p);
/** That slot has been read: the first n bytes of its payload go to dest. */
void perigee__ring_take_slot(perigee__ring_stream *rs, const perigee__slot *slot, void *dest,
                             size_t n);

/** Whether the peer's memory can be read directly. It has sent something, or may have. */
bool perigee__ring_readable(perigee__ring_stream *rs);
/** Whether there is something to read, or room for what was stuck. */
bool perigee__ring_ready(const perigee__ring_stream *rs);
/** Before sleeping: ask to be kicked. The caller looks at ready once more afterwards. */
void perigee__ring_arm(perigee__ring_stream *rs);
void perigee__ring_disarm(perigee__ring_stream *rs);

#endif
