/*
 * What a store server does with requests, without sockets: bytes of peers in, bytes for peers out.
 *
 * Invariants
 *   A peer waits for at most one WAIT or BARRIER; while it does, each of its waiters is on the list of the entry it waits for.
 *   A WAIT's waiter is on an entry's list only while the key does not exist, or while its queue's items are promised to others:
 *     it leaves the list exactly when the key comes into being.
 *   A push wakes one WAIT, not all: the others would find the queue empty. The one woken holds the entry's baton until its
 *     next request, its end, or BATON_NS later; if the queue then still has items the next one is woken. So no item is left
 *     lying while somebody waits for it.
 *   A key deleted after it satisfied a waiter is not looked at again.
 * One thread, the server's.
 */
#ifndef PERIGEE_STORE_TCP_ENGINE_H
#define PERIGEE_STORE_TCP_ENGINE_H

#include "base/list.h"
#include "store/store_table.h"
#include "store/store_tcp_parse.h"

typedef struct perigee__engine {
  perigee__table table;
  perigee__node ready;  /* peers that have new output */
  perigee__node batons; /* peers that hold one, oldest first */
} perigee__engine;

typedef struct perigee__waiter {
  perigee__node node;    /* in entry->waiters; an empty list of its own once served */
  perigee__entry *entry; /* NULL once served */
  struct perigee__peer *peer;
  bool barrier;
} perigee__waiter;

typedef struct perigee__peer {
  perigee__engine *engine;
  perigee__parser parser;
  perigee__buf out;         /* replies to send; the owner empties it */
  size_t in_flight;         /* bytes the owner took from out and has not sent yet */
  perigee__node ready;      /* in engine->ready */
  perigee__waiter *waiters; /* NULL: waits for nothing */
  size_t nwaiters, missing; /* missing: waiters not served yet */
  perigee__node baton;      /* in engine->batons */
  perigee__entry *baton_entry;
  int64_t baton_due_ns;
} perigee__peer;

/** bytes_max: of all keys and values. */
int perigee__engine_init(perigee__engine *engine, size_t bytes_max);
/** All peers are gone. */
void perigee__engine_fini(perigee__engine *engine);
/** Pass on batons held for too long. Returns when to call again, PERIGEE_NEVER when nothing is pending. */
int64_t perigee__engine_tick(perigee__engine *engine, int64_t now_ns);

void perigee__peer_init(perigee__peer *peer, perigee__engine *engine);
/** Drop its wait and everything else of it. */
void perigee__peer_fini(perigee__peer *peer);
/** Bytes from the peer. Replies are in out of this and other peers, which are then in engine->ready. Negative: close it. */
int perigee__peer_feed(perigee__peer *peer, const void *data, size_t size);

#endif
