/*
 * The frame: what stands in front of everything between two ranks. 64 bytes, little endian, then `length` bytes of payload.
 *
 *   OFFSET SIZE FIELD
 *   0      4    magic      "PGF1"
 *   4      1    type       perigee__frame_type
 *   5      1    kind       perigee__key_kind of EAGER and RTS, else 0
 *   6      2    zero
 *   8      8    group      id of the group
 *   16     8    tag        EAGER, RTS: tag; STATUS_REP: collectives entered
 *   24     8    fp         EAGER, RTS: fingerprint
 *   32     8    length     bytes of payload behind this header; RTS: bytes that will come, none behind it
 *   40     8    id         RTS, CTS, DATA, RTS_CANCELED, PULLED: the sender's number of the message; STATUS_*: of the question
 *   48     8    credit     eager bytes the sender of this frame has taken off its peer's account since its last frame
 *   56     8    at         RTS over a ring: where the bytes are in the sender's memory, for a receiver that can read it; DATA: where in
 *                          the message these bytes stand; else 0
 *
 * PULLED: the receiver has read the bytes itself, or does not want them any more; the send is over.
 *
 * A message of at most PERIGEE_EAGER_MAX bytes goes as EAGER when the peer's credit lasts; else RTS is sent, the receiver answers CTS
 * when it has a buffer, and DATA follows: frames of PERIGEE_CHUNK bytes, in order. What else is to be said goes between them.
 * Between ranks of one host most frames go in slots instead (ring.h): EAGER with little payload, RTS, CTS, PULLED; without credit.
 */
#ifndef PERIGEE_TRANSPORT_FRAME_H
#define PERIGEE_TRANSPORT_FRAME_H

#include <stdint.h>

enum {
  PERIGEE_FRAME_SIZE = 64
};

typedef enum perigee__frame_type {
  PERIGEE_FRAME_EAGER = 1,
  PERIGEE_FRAME_RTS,
  PERIGEE_FRAME_CTS,
  PERIGEE_FRAME_DATA,
  PERIGEE_FRAME_RTS_CANCELED,
  PERIGEE_FRAME_CREDIT,
  PERIGEE_FRAME_ABORT,        /* payload: perigee__abort_record */
  PERIGEE_FRAME_GROUP_CLOSED, /* the sender has left the group */
  PERIGEE_FRAME_GOODBYE,      /* the sender closes its mesh; nothing follows */
  PERIGEE_FRAME_STATUS_REQ,
  PERIGEE_FRAME_STATUS_REP,
  PERIGEE_FRAME_PULLED,
  PERIGEE_FRAME_TYPES
} perigee__frame_type;

typedef struct perigee__frame {
  uint8_t type, kind;
  uint64_t group, tag, fp, length, id, credit, at;
} perigee__frame;

void perigee__frame_encode(const perigee__frame *frame, uint8_t out[PERIGEE_FRAME_SIZE]);
/** EPROTO naming the field when the header is none of ours or a length is beyond what its type may have. */
int perigee__frame_decode(const uint8_t in[PERIGEE_FRAME_SIZE], perigee__frame *frame);
/** EPROTO when the length is beyond what the type may have. */
int perigee__frame_check(const perigee__frame *frame);

#ifdef PERIGEE_HOSTILE
enum {
  PERIGEE_EAGER_MAX = 128,
  PERIGEE_CHUNK = 300,
  PERIGEE_PULL_MIN = 100,
  PERIGEE_HELP_MIN = 150,
  PERIGEE_HELP_PART = 40,
  PERIGEE_CREDIT = 1024,
  PERIGEE_RING_BYTES = 256,
  PERIGEE_RING_SLOTS = 2,
  PERIGEE_SLOT_MAX = 64
};
#else
enum {
  PERIGEE_EAGER_MAX = 64 << 10,
  PERIGEE_CHUNK = 1 << 20,
  /* From here on announced to a rank that can read our memory, however much credit there is; where that is slow (vm.h) only from EAGER_MAX. In
   * us, pulled : through the ring, where it is: ping-pong 16 KiB 4.6:2.0, 64 KiB 10.5:6.4, 128 KiB 13:13; messages in flight 4.2:1.4, 10:4.7. */
  PERIGEE_PULL_MIN = 16 << 10,
  PERIGEE_HELP_MIN = 128 << 10,  /* from here on sender and receiver each move a part ... */
  PERIGEE_HELP_PART = 64 << 10,  /* ... of so much at least */
  PERIGEE_CREDIT = 1 << 20,      /* unexpected eager bytes one peer may have with us */
  PERIGEE_RING_BYTES = 64 << 10, /* one direction of one pair of ranks */
  PERIGEE_RING_SLOTS = 128,
  PERIGEE_SLOT_MAX =
      4 << 10 /* payload of a slot: larger ones are copied in and out at the same time */
};
#endif

/* Payload of ABORT, little endian. */
enum {
  PERIGEE_ABORT_SIZE = 4 + 4 + 4 + 4 + 8 + 32 * 4 + 512
};

#endif
