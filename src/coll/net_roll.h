/*
 * Roll call: how every rank learns that all ranks are in the same collective, without a message more than needed.
 *
 * Idea: dissemination. In round k a rank sends to the rank 2^k to its right and hears from the rank 2^k to its left; it
 * enters round k + 1 when it has heard in round k. After ceil(log2 n) rounds it has heard, directly or through others, from
 * all. Every message carries the sender's fingerprint, which the mesh compares with the receiver's: who has come through all
 * rounds knows that all ranks have entered with the fingerprint it has itself (the one it heard from in round k had
 * heard from 2^k ranks with that fingerprint, by induction).
 *
 * A mismatch is always noticed, at once and on every rank: round 0 makes a ring of all ranks, its messages are posted
 * before a rank waits for anything, under the same key in every kind of collective. If not all fingerprints are equal, some rank has
 * another one than its left neighbour; it hears that in round 0, fails the group, and all ranks get that error instead
 * of waiting for messages that nobody will send.
 *
 * Link: collectives whose result depends on the data of all ranks (each with its fingerprint) need the ring alone to be
 * prompt: one round, and its message may be the algorithm's own first message to its right neighbour.
 *
 * Notes: bytes of each rank that all ranks get, riding along as in Bruck's allgather: in round k the sender passes on its own note
 * and those of the 2^k - 1 ranks to its left (in the last round only those that the receiver lacks). Tiny
 * data travels this way at no extra message.
 *   message of round k := note(me) note(me-1) ... [ mail ],  note := u64 bytes, data, padding to 8
 * Mail: bytes for the receiver of one round alone, behind the notes.   mail := u64 bytes, data
 *
 *   n = 5, heard by rank 0:   round 0: 4     round 1: 3 (with 2)     round 2: 1 (alone; 0 and the rest is known)
 *
 * Cost: ceil(log2 n) messages sent by each rank; with notes of b bytes, n b bytes sent in all.
 * Source: Hensgen, Finkel, Manber 1988 (barrier); Bruck et al. 1997 (allgather).
 */
#ifndef PERIGEE_COLL_NET_ROLL_H
#define PERIGEE_COLL_NET_ROLL_H

#include <stdbool.h>
#include <stddef.h>

#include "transport/mesh.h"

struct perigee__net;

/** A message of a call. */
typedef struct perigee__msg {
  perigee__xfer xfer;
  int live; /* place among the call's live messages, 1 .. nlive; 0: not among them */
} perigee__msg;

/** What rides along for single ranks. */
typedef struct perigee__mail {
  void *arg;
  size_t room; /* bytes that a mail from any rank may have */
  /** Data for peer in *data_p, valid until the next call of pick; *bytes_p 0 when there is none. Fills the error. */
  int (*pick)(void *arg, int peer, const void **data_p, size_t *bytes_p);
  /** Mail from peer has come. data is valid during the call. */
  int (*deliver)(void *arg, int peer, const void *data, size_t bytes);
} perigee__mail;

typedef struct perigee__roll {
  int rounds, round;  /* round: the one whose message is awaited; == rounds: over */
  int calls;          /* started in this call of the collective: 1, or 2 (net_sizes.c) */
  int step;           /* of round 0 */
  perigee__msg *msgs; /* [0 .. rounds): sends; [rounds]: receive */
  bool notes;
  unsigned char *stage; /* notes held, own first; at[i]: offset of the note of rank me - i */
  size_t *at;
  size_t stage_room;
  int known;                              /* notes held */
  size_t link_send_bytes, link_recv_room; /* !notes: payload of round 0 */
  const void *link_send;
  void *link_recv;
  const perigee__mail *mail; /* or NULL */
} perigee__roll;

/** Start a roll call of one round whose message is the caller's own (0 bytes: empty). Buffers as for a message. */
PERIGEE_MUST_CHECK int perigee__roll_link(struct perigee__net *net, const void *send_buf,
                                          size_t send_bytes, void *recv_buf, size_t recv_room);
/** Start a whole roll call with empty messages. */
PERIGEE_MUST_CHECK int perigee__roll_start(struct perigee__net *net);
/** Start a whole roll call with notes. note: copied. notes_room: bytes that the notes of all ranks can have together;
 *  mail: borrowed until the roll call is over, may be NULL. */
PERIGEE_MUST_CHECK int perigee__roll_start_notes(struct perigee__net *net, const void *note,
                                                 size_t bytes, size_t notes_room,
                                                 const perigee__mail *mail);
/** Go on as far as messages have come. Called inside every wait. */
PERIGEE_MUST_CHECK int perigee__roll_advance(struct perigee__net *net);
/** Wait until it is over. */
PERIGEE_MUST_CHECK int perigee__roll_wait(struct perigee__net *net);
/** Note of a rank, when the roll call is over. Aligned to 8 bytes; valid until the call ends. */
const void *perigee__roll_note(const struct perigee__net *net, int rank, size_t *bytes_p);
/** Whether round k of a whole roll call of n ranks goes from one rank to the other, for some k. */
bool perigee__roll_reaches(int n, int from, int to);

#endif
