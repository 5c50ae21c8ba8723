/*
 * Fate: whether one group still lives on this rank, and the first cause if not.
 *
 * Every wait of a group's operations polls its fate. It changes once, from healthy to failed, by the first of: a peer that
 * died, a mismatch, a timeout of a collective, an abort here or on another rank, close. Failing it wakes whoever sleeps
 * for the group (listeners) and, through the mesh it is attached to, tells the other ranks (once, best effort).
 *
 * Thread-safety: perigee__fate_fail and _failed from any thread. error is written before `state` is released and never
 * again: whoever has seen FAILED (acquire) may read it without a lock.
 */
#ifndef PERIGEE_TRANSPORT_FATE_H
#define PERIGEE_TRANSPORT_FATE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/list.h"
#include "base/thread.h"

typedef struct perigee__fate perigee__fate;

/** Called once when the fate fails, on the thread that failed it, with no lock held but possibly the mesh's: it may only
 *  wake sleepers (store a word, futex wake). */
typedef void (*perigee__fate_cb)(void *arg);

enum {
  PERIGEE_FATE_LISTENERS = 4
};

struct perigee__fate {
  _Atomic uint32_t state; /* 0 healthy, 1 being failed, 2 failed (release; acquire in readers) */
  _Atomic uint64_t
      entered; /* collectives this rank has entered: answered to peers that ask who is missing; relaxed */
  uint64_t group;      /* id on the wire: hash of the full name, same on all members */
  char name[64];       /* shown in errors */
  int me, n;           /* group-local rank and size */
  int *members;        /* n world ranks by group-local rank; owned; immutable */
  uint8_t *left;       /* n flags: that rank has left the group; owned; under the mesh's lock */
  bool some_left;      /* any of them; under the mesh's lock */
  perigee_mutex mutex; /* rank FATE: listeners, error while state is 1 */
  perigee_error error; /* first cause */
  struct {
    perigee__fate_cb cb;
    void *arg;
  } listeners[PERIGEE_FATE_LISTENERS]; /* under mutex */
  perigee__node node; /* in the mesh's list of attached fates; under the mesh's lock */
  void *mesh;         /* perigee__mesh it is attached to, NULL when none; under the mesh's lock */
  bool told;          /* the members have been told that it failed; under the mesh's lock */
};

int perigee__fate_init(perigee__fate *fate, uint64_t group, const char *name, int me, int n,
                       const int *members);
void perigee__fate_fini(perigee__fate *fate);

static inline bool perigee__fate_failed(const perigee__fate *fate) {
  return atomic_load_explicit(&fate->state, memory_order_acquire) == 2;
}

/** Record the first cause and run the listeners. Returns true when this call was the first; the fate has failed either way. Does not tell other ranks
 *  (perigee__mesh_fail_group does). error->rank is set to fate->me and error->group to the name when unset. */
bool perigee__fate_fail(perigee__fate *fate, const perigee_error *error);

/**
 * The error an operation gets from a failed fate, into *error. EPEERDEAD and ECLOSED stay themselves. EMISMATCH, ETIMEDOUT, ETRUNC and
 * ESHAPE stay for the operation they happened to (same seq; pending when one has no number), every other code for a pending one. Else EABORTED
 * with the cause in the message. op, seq: of the operation asking. Returns the code.
 */
int perigee__fate_error(perigee__fate *fate, int op, uint64_t seq, bool pending,
                        perigee_error *error);

int perigee__fate_listen(perigee__fate *fate, perigee__fate_cb cb, void *arg);
void perigee__fate_unlisten(perigee__fate *fate, perigee__fate_cb cb, void *arg);

/** Group-local rank of a world rank, -1 when it is no member. */
int perigee__fate_rank_of(const perigee__fate *fate, int world_rank);

#endif
