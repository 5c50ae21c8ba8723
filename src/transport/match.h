/*
 * Matching: posted receives meet messages by (peer, key), each side in the order it came.
 *
 * Pure bookkeeping: no I/O, no locks (the mesh's lock is held). A receive from any source competes with those from its
 * peer: the one posted first gets the message; it takes the message that arrived first.
 */
#ifndef PERIGEE_TRANSPORT_MATCH_H
#define PERIGEE_TRANSPORT_MATCH_H

#include "transport/mesh.h"

/** A message that came before its receive. */
typedef struct perigee__early {
  perigee__node bucket;  /* in match->early */
  perigee__node arrival; /* in match->arrivals */
  int peer;
  perigee__key key;
  uint64_t fp, length;
  bool is_rts;
  uint64_t id, at; /* of an RTS */
  uint8_t *data;   /* of an EAGER: length bytes, `have` of them received */
  uint64_t have;
  perigee__xfer
      *taker; /* receive that took it before all bytes were there; then it is in no list */
} perigee__early;

enum {
  PERIGEE_MATCH_BUCKETS = 1024
};

typedef struct perigee__match {
  perigee__node posted[PERIGEE_MATCH_BUCKETS]; /* perigee__xfer.node of receives from one peer */
  perigee__node early[PERIGEE_MATCH_BUCKETS];
  perigee__node posted_any; /* perigee__xfer.node of receives from any source */
  perigee__node arrivals;   /* all early ones, oldest first */
  uint64_t order;           /* posts so far; perigee__xfer.id of a posted receive */
} perigee__match;

void perigee__match_init(perigee__match *m);

/** Oldest posted receive for a message from peer with key, taken out; NULL when there is none. */
perigee__xfer *perigee__match_arrived(perigee__match *m, int peer, const perigee__key *key);
/** Keep a message nobody has asked for. */
void perigee__match_keep(perigee__match *m, perigee__early *early);
/** Oldest early message for a receive, taken out; NULL when there is none. */
perigee__early *perigee__match_wanted(perigee__match *m, const perigee__xfer *recv);
/** Post a receive for which there was none. */
void perigee__match_post(perigee__match *m, perigee__xfer *recv);
/** Take an early message out. */
void perigee__match_drop(perigee__early *early);

/** Call fn(arg, recv) for every posted receive, which it may take out (perigee__list_remove). */
void perigee__match_each_posted(perigee__match *m, void (*fn)(void *arg, perigee__xfer *recv),
                                void *arg);

#endif
