/*
 * Why a meeting did not take place, and telling everybody.
 *
 * A meeting fails on a rank for one of five reasons: checks differ, the deadline passed, a rank closed, the fate failed (a death, an
 * abort, or one of the others' own reasons), or a path found sizes that do not fit. Whoever finds one of the first three or the last
 * fails the group, through the mesh, so that it reaches the others. A rank that is told by the fate while it can see the different
 * fingerprint itself says so in its own words. What differs may be some epochs old when one of the two has run ahead: notes tell.
 */
#include "coll/arena_impl.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"
#include "coll/fingerprint.h"

#define NEWS_NS (100 * PERIGEE_NS_PER_MS)

void perigee__arena_error(perigee__arena *a, int code, const char *fmt, ...) {
  perigee_error *error = a->error;
  perigee__error_init(error);
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(error->message, sizeof(error->message), fmt, ap);
  va_end(ap);
  error->code = code;
  error->rank = a->me;
  error->op = a->call->op;
  error->seq = a->call->shown_seq;
  snprintf(error->group, sizeof(error->group), "%s", a->fate->name);
}

int perigee__arena_fail_group(perigee__arena *a) {
  if (a->mesh != NULL)
    perigee__mesh_fail_group(a->mesh, a->fate, a->error);
  else
    (void)perigee__fate_fail(a->fate, a->error);
  return a->error->code;
}

/* Its line tells, or its note: a root that lets the others go has come before it publishes (perigee__arena_meet_root). */
static bool arrived(const perigee__arena *a, int rank) {
  /* acquire both: pair with the release of the arrival and with take_note */
  uint32_t word =
      atomic_load_explicit(&perigee__arena_line_at(a, rank, a->epoch)->word, memory_order_acquire);
  const perigee__arena_note *note = perigee__arena_note_at(a, rank, a->epoch);
  return perigee__arena_reached(word, a->epoch) ||
         atomic_load_explicit(&note->epoch, memory_order_acquire) == a->epoch;
}

/* Whether this rank waits for that one. */
static bool missing(const perigee__arena *a, int rank) {
  if (a->awaited < 0)
    return !arrived(a, rank);
  /* acquire: as in arrived */
  return rank == a->awaited &&
         !perigee__arena_reached(atomic_load_explicit(a->awaited_word, memory_order_acquire),
                                 a->awaited_value);
}

/* ---- who did something else ----------------------------------------------------------------------- */

typedef struct deed {
  uint64_t fp, check;
} deed;

/* What a rank did in an epoch, when it has come to it and not yet written over it. */
static bool noted(const perigee__arena *a, int rank, uint32_t epoch, deed *deed_p) {
  const perigee__arena_note *note = perigee__arena_note_at(a, rank, epoch);
  if (atomic_load_explicit(&note->epoch, memory_order_acquire) != epoch) /* take_note */
    return false;
  deed_p->fp = atomic_load_explicit(&note->fp, memory_order_relaxed);
  deed_p->check = atomic_load_explicit(&note->check, memory_order_relaxed);
  atomic_thread_fence(memory_order_acquire); /* pairs with the fence in take_note */
  return atomic_load_explicit(&note->epoch, memory_order_relaxed) == epoch;
}

/* Where a rank's way parts from this one's: the first epoch that both have still noted with different checks. */
static bool parted(const perigee__arena *a, int rank, uint32_t *epoch_p, deed *mine, deed *theirs) {
  for (uint32_t back = PERIGEE_ARENA_LINES; back-- > 0;) {
    uint32_t epoch = (a->epoch - back) & PERIGEE_ARENA_EPOCHS;
    if (noted(a, a->me, epoch, mine) && noted(a, rank, epoch, theirs) &&
        mine->check != theirs->check) {
      *epoch_p = epoch;
      return true;
    }
  }
  return false;
}

bool perigee__arena_differs(const perigee__arena *a) {
  deed mine, theirs;
  uint32_t epoch;
  for (int r = 0; r < a->n; r++)
    if (parted(a, r, &epoch, &mine, &theirs))
      return true;
  return false;
}

int perigee__arena_mismatch(perigee__arena *a) {
  char theirs_text[128], mine_text[128];
  bool found = false;
  for (int r = 0; r < a->n; r++) {
    deed mine, theirs;
    uint32_t epoch;
    if (!parted(a, r, &epoch, &mine, &theirs))
      continue;
    bool earlier = ((epoch - a->before - 1) & PERIGEE_ARENA_EPOCHS) > PERIGEE_ARENA_EPOCHS / 2;
    if (!found && mine.fp == theirs.fp)
      perigee__arena_error(a, PERIGEE_EMISMATCH,
                           "rank %d and this rank called different operations before this one", r);
    else if (!found)
      perigee__arena_error(
          a, PERIGEE_EMISMATCH, "rank %d called %s, this rank %s%s", r,
          perigee__fingerprint_describe(theirs.fp, theirs_text, sizeof(theirs_text)),
          perigee__fingerprint_describe(mine.fp, mine_text, sizeof(mine_text)),
          earlier ? ", in an operation before this one" : "");
    found = true;
    perigee__error_add_rank(a->error, r);
  }
  return found ? perigee__arena_fail_group(a) : 0;
}

/* ---- other reasons -------------------------------------------------------------------------------- */

perigee__arena_reason perigee__arena_look(const perigee__arena *a) {
  if (perigee__fate_failed(a->fate))
    return PERIGEE_ARENA_FAILED;
  for (int r = 0; r < a->n; r++)
    /* acquire: pairs with perigee__arena_destroy. A rank that arrived and then closed is seen as arrived, because it is asked second. */
    if (atomic_load_explicit(&a->status[r].closed, memory_order_acquire) != 0 && missing(a, r))
      return PERIGEE_ARENA_CLOSED;
  /* seq_cst: perigee__arena_break. Who waits for all finds out why by itself. */
  if (a->awaited != PERIGEE_ARENA_ALL && atomic_load(&a->park->broken) != 0)
    return PERIGEE_ARENA_BROKEN;
  return perigee__passed(a->call->deadline_ns) ? PERIGEE_ARENA_LATE : PERIGEE_ARENA_GO_ON;
}

/* A rank that aborts and leaves is seen to have left at once, and the abort, a message, later: wait for the cause a little. */
static bool news_came(perigee__arena *a) {
  if (a->mesh != NULL)
    (void)!perigee__mesh_wait_any(a->mesh, NULL, 0, a->fate, perigee__deadline_in(NEWS_NS));
  return perigee__fate_failed(a->fate);
}

static int give_up_closed(perigee__arena *a) {
  int closed = -1;
  if (news_came(a))
    return perigee__fate_error(a->fate, a->call->op, a->call->shown_seq, true, a->error);
  perigee__arena_error(a, PERIGEE_EPEERCLOSED, "%s", "");
  for (int r = 0; r < a->n; r++)
    if (atomic_load_explicit(&a->status[r].closed, memory_order_acquire) != 0 && missing(a, r)) {
      closed = closed < 0 ? r : closed;
      perigee__error_add_rank(a->error, r);
    }
  snprintf(a->error->message, sizeof(a->error->message), "rank %d closed the group", closed);
  return perigee__arena_fail_group(a);
}

static int give_up_late(perigee__arena *a) {
  char ranks[96];
  double seconds = (double)a->call->timeout_ns / (double)PERIGEE_NS_PER_SEC;
  perigee__arena_error(a, PERIGEE_ETIMEDOUT, "%s", "");
  for (int r = 0; r < a->n; r++) {
    if (missing(a, r))
      perigee__error_add_rank(a->error, r);
    if (a->call->peer_seen != NULL) /* relaxed: a number for the caller to show */
      a->call->peer_seen[r] = atomic_load_explicit(&a->status[r].entered, memory_order_relaxed);
  }
  perigee__error_ranks_text(a->error, ranks, sizeof(ranks));
  if (a->error->nranks > 0)
    snprintf(a->error->message, sizeof(a->error->message),
             "timed out after %.1f s, missing ranks %s", seconds, ranks);
  else /* mode PARK: the last to arrive has not let the others go */
    snprintf(a->error->message, sizeof(a->error->message),
             "timed out after %.1f s, all ranks had arrived", seconds);
  return perigee__arena_fail_group(a);
}

int perigee__arena_give_up(perigee__arena *a, perigee__arena_reason reason) {
  int rc = perigee__arena_mismatch(a);
  if (rc < 0)
    return rc;
  if (reason == PERIGEE_ARENA_DIFFERS) { /* so far apart that the notes are gone */
    perigee__arena_error(a, PERIGEE_EMISMATCH, "the ranks called different operations");
    return perigee__arena_fail_group(a);
  }
  if (reason == PERIGEE_ARENA_BROKEN)
    return perigee__arena_give_up_broken(a);
  if (reason == PERIGEE_ARENA_CLOSED)
    return give_up_closed(a);
  if (reason == PERIGEE_ARENA_LATE)
    return give_up_late(a);
  return perigee__fate_error(a->fate, a->call->op, a->call->shown_seq, true, a->error);
}

void perigee__arena_break(perigee__arena *a) {
  /* seq_cst, and a fence: nothing the caller does to its buffers from now on is seen before this. Pairs with the fence in
   * perigee__shm_intact of who has read from them. */
  atomic_store(&a->park->broken, 1);
  atomic_thread_fence(memory_order_seq_cst);
  perigee__arena_kick(a);
}

int perigee__arena_give_up_broken(perigee__arena *a) {
  if (news_came(a))
    return perigee__fate_error(a->fate, a->call->op, a->call->shown_seq, true, a->error);
  perigee__arena_error(a, PERIGEE_EABORTED, "another rank left the operation with an error");
  return perigee__arena_fail_group(a);
}

int perigee__arena_unreadable(perigee__arena *a, int rank, int rc) {
  if (news_came(a)) /* it died, or has left with an error of its own */
    return perigee__fate_error(a->fate, a->call->op, a->call->shown_seq, true, a->error);
  perigee__arena_error(a, PERIGEE_EPEERDEAD, "the memory of rank %d is gone: %s", rank,
                       perigee_strerror(rc));
  perigee__error_add_rank(a->error, rank);
  return perigee__arena_fail_group(a);
}
