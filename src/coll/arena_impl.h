/*
 * What an arena is made of: its layout in memory, this rank's view of it, and the meeting that all paths are built on.
 * Included by arena*.c, shm_*.c and their tests only.
 */
#ifndef PERIGEE_COLL_ARENA_IMPL_H
#define PERIGEE_COLL_ARENA_IMPL_H

#include <sched.h>
#include <stdalign.h>

#include "base/attr.h"
#include "coll/arena.h"
#include "coll/shm_table.h"
#include "coll/segments.h"
#include "transport/vm.h"

/* LINES, BUFFERS: powers of two, so that an epoch modulo them has no seam where epochs wrap. INLINE: bytes of payload in a line.
 * SMALL: bytes of a small buffer, of which there are as many as lines. */
enum {
#ifdef PERIGEE_HOSTILE
  PERIGEE_ARENA_LINES = 4,
  PERIGEE_ARENA_SMALL = 64,
#else
  PERIGEE_ARENA_LINES = 16,
  PERIGEE_ARENA_SMALL = 4096,
#endif
  PERIGEE_ARENA_BUFFERS = 4,
  PERIGEE_ARENA_INLINE = 48,
  /* How many epochs back all ranks must be known to have arrived (arena.h, Reuse): before a line or small buffer, and before a buffer or an
   * arrival counter, is used again. */
  PERIGEE_ARENA_LINE_ROOM = PERIGEE_ARENA_LINES - 1,
  PERIGEE_ARENA_BUFFER_ROOM = PERIGEE_ARENA_BUFFERS - 2
};
#define PERIGEE_ARENA_EPOCHS UINT32_C(0x7fffffff) /* mask of an epoch */
#define PERIGEE_ARENA_WAITERS UINT32_C(1)         /* in a word: somebody sleeps on it */

typedef enum perigee__arena_mode {
  PERIGEE_ARENA_SPIN = 1,
  PERIGEE_ARENA_PARK = 2
} perigee__arena_mode;

/* ---- in shared memory -------------------------------------------------------------------------- */

typedef struct perigee__arena_header {
  uint64_t magic;
  uint32_t version;
  uint32_t n;
  uint32_t mode;
  uint32_t first_epoch; /* words start here; the first meeting takes the epoch after it */
  uint32_t path;        /* perigee__arena_path */
  uint32_t unused;
  uint64_t buffer_bytes;
} perigee__arena_header;

typedef struct perigee__arena_line {
  _Atomic uint32_t word;
  uint32_t aux;
  uint64_t check; /* perigee__arena.check */
  unsigned char payload[PERIGEE_ARENA_INLINE];
} perigee__arena_line; /* in shared memory followed by sizes */
_Static_assert(sizeof(perigee__arena_line) == PERIGEE_CACHE_LINE,
               "what a waiting rank gets at once");

/* What a rank did in an epoch, for who finds that something is wrong: LINES of them per rank, written by it alone and at any time. A reader
 * believes what it has read when epoch was the same before and after (arena_fail.c). */
typedef struct perigee__arena_note {
  _Atomic uint32_t epoch; /* WRITTEN while the rest changes */
  uint32_t unused;
  _Atomic uint64_t fp, check; /* relaxed */
} perigee__arena_note;
#define PERIGEE_ARENA_WRITTEN UINT32_MAX /* no epoch */

typedef struct perigee__arena_park {
  alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t arrivals[PERIGEE_ARENA_BUFFERS];
  /* The release line. Written by the last to arrive at e, read before its reader arrives at e+1: one is enough. */
  alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t released; /* a word as in lines */
  uint32_t same;                               /* all checks of the meeting are equal */
  uint32_t source;                             /* rank whose buffer holds the combined result */
  uint32_t aux_any, aux_all;                   /* or, and of the aux of all lines */
  unsigned char payload[PERIGEE_ARENA_INLINE]; /* combined result that fits */
  /* Set by a rank that leaves a collective with an error, before its caller has its buffers back: what others have read from
   * them since is worth nothing. Never reset; in every cache until then. */
  alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t broken;
} perigee__arena_park;

typedef struct perigee__arena_status {
  alignas(PERIGEE_FALSE_SHARING) _Atomic uint64_t entered; /* relaxed: only shown in errors */
  _Atomic uint32_t
      staging; /* epoch it last staged data for as the one rank the others need; relaxed: a hint */
  /* Seldom written, and read by who waits: it stays in all caches. */
  alignas(PERIGEE_FALSE_SHARING) _Atomic int32_t cpu; /* last seen on; relaxed: a hint */
  _Atomic uint32_t closed;                            /* release when set, acquire in who waits */
  /* Words, as in lines, that count what this rank has handed to the root of a gather besides its line, and what roots have taken of it
   * (shm_gather.c). taken is written by the root. */
  alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t given;
  alignas(PERIGEE_FALSE_SHARING) _Atomic uint32_t taken;
  _Atomic uint32_t returned; /* likewise: how many have read what this rank lends to all */
  /* Written before the members agree. */
  perigee__vm_face face; /* for reading this rank's memory */
  uint32_t slow;         /* it finds reading others slow */
} perigee__arena_status;

/* ---- this rank's view --------------------------------------------------------------------------- */

/** How the tensors of all ranks in a collective are reached: base is NULL when they are not in one symmetric segment. */
typedef struct perigee__reach {
  char *base; /* of rank 0's part */
  size_t stride;
} perigee__reach;

/** What has come after the last barriers (shm_barrier.c). The same on all ranks, as what they call is. */
typedef struct perigee__arena_habit {
  bool at_barrier; /* the last call was one */
  int root;  /* of the collective behind the last one, when its others wait for its root; else -1 */
  int times; /* in a row */
} perigee__arena_habit;

/** Where things are, from n and the size of a buffer alone. */
typedef struct perigee__arena_layout {
  size_t park, status, notes, lines, line_stride, small, slots, total; /* bytes from the start */
} perigee__arena_layout;

struct perigee__arena {
  /* immutable after create */
  perigee__mesh *mesh; /* NULL: failures stay on this rank */
  perigee__fate *fate;
  int me, n;
  perigee__arena_mode mode;
  size_t buffer_bytes;
  perigee__arena_layout layout;
  char *base;
  perigee__arena_park *park;
  perigee__arena_status *status; /* of rank 0; one per rank */
  bool mapped;                   /* base is ours to unmap */
  int64_t spin_ns;               /* SPIN: PAUSE polls before sleeping */
  int bare_polls;                /* of a line, before anything else */
  int yields;                    /* PARK: before sleeping */
  perigee__arena_path path;
  const perigee__tuning *tuning; /* borrowed */
  perigee__shm_table table;      /* from the rules, n, mode, path, cma and buffer_bytes */
  /* reach.h */
  bool cma;      /* every rank can read every other's memory */
  bool slow;     /* for one of them that takes several times as long as copying */
  int32_t *pids; /* n */
  uint64_t probe;
  perigee__segments *segments; /* symmetric memory; never NULL */
  uint32_t last_segment;       /* id; the same on all ranks */
  /* of the call that runs; calls of one group come one at a time */
  const perigee__coll_call *call;
  perigee_error *error;
  uint32_t epoch;  /* the last one this rank has arrived at */
  uint32_t before; /* what that was when the call began */
  uint32_t known;  /* the last one that this rank knows all have arrived at */
  uint64_t check;  /* all this rank has done up to epoch: the fingerprint of every epoch, mixed */
  perigee__arena_habit habit;
  int awaited;                    /* who the wait that goes on is for: a rank, ALL or READERS */
  _Atomic uint32_t *awaited_word; /* of the awaited rank, and the value it is to come to */
  uint32_t awaited_value;
  /* This rank's line without the word: the payload of the one to come once somebody has written to it, all of the last one otherwise. Arriving
   * copies what was written. */
  alignas(PERIGEE_CACHE_LINE) perigee__arena_line own;
  size_t own_bytes; /* of the payload written since */
  uint32_t aux;     /* for the line of the next meeting, which takes it */
  uint32_t aux_any,
      aux_all;            /* or, and of all ranks' in the last meeting that this rank waited for */
  perigee__reach in, out; /* of the call; set by perigee__shm_reach */
  int64_t work_ns;   /* what the others may take for their part of the call: added to spin_ns */
  bool past_caches;  /* the call moves so much that outputs are not worth keeping in caches */
  unsigned crowded;  /* SPIN: waits in a row that a yield has ended; PARK: all waits */
  int cpu;           /* what the others have been told */
  const void **srcs; /* n, for reductions */
};

perigee__arena_layout perigee__arena_layout_for(int n, size_t buffer_bytes);
/** Bytes of a buffer by PERIGEE_SHM_SLOT, at least one element of any dtype for each of n ranks. */
size_t perigee__arena_buffer_bytes(int n);
/** Write the header and the first epoch into zeroed memory of layout.total bytes. Before it is shared. */
void perigee__arena_format(void *base, int n, perigee__arena_mode mode, size_t buffer_bytes,
                           uint32_t first_epoch);
/** By its name in PERIGEE_PATH, AUTO when it is none of these. */
perigee__arena_path perigee__arena_path_named(const char *name);
/** Sift the rules for this arena as it is; again when path or cma has changed. */
void perigee__arena_sift(perigee__arena *a);
/** An arena over memory that was formatted by somebody and is visible to all ranks; the caller keeps the memory. mesh may be NULL. */
PERIGEE_MUST_CHECK int perigee__arena_create_over(void *base, size_t bytes, perigee__mesh *mesh,
                                                  perigee__fate *fate, perigee__arena **arena_p);

/** Whether all members say yes. All of them together; waits. Takes messages with sequence number 0, which no collective has. */
PERIGEE_MUST_CHECK int perigee__arena_agree(perigee__mesh *mesh, perigee__fate *fate,
                                            int64_t deadline_ns, bool mine, bool *all_p);

/** The same, and that all who say yes mean the same: mine is 0 for no. EMISMATCH, on all, when they do not. */
PERIGEE_MUST_CHECK int perigee__arena_agree_on(perigee__mesh *mesh, perigee__fate *fate,
                                               int64_t deadline_ns, uint64_t mine, bool *all_p);

static inline perigee__arena_line *perigee__arena_line_at(const perigee__arena *a, int rank,
                                                          uint32_t epoch) {
  size_t index = (epoch % PERIGEE_ARENA_LINES) * (size_t)a->n + (size_t)rank;
  return (perigee__arena_line *)(void *)(a->base + a->layout.lines + index * a->layout.line_stride);
}
static inline char *perigee__arena_slot_at(const perigee__arena *a, int rank, uint32_t epoch) {
  size_t index = (size_t)rank * PERIGEE_ARENA_BUFFERS + epoch % PERIGEE_ARENA_BUFFERS;
  return a->base + a->layout.slots + index * a->buffer_bytes;
}
/** The epoch after this one. */
static inline uint32_t perigee__arena_epoch_after(uint32_t epoch) {
  return (epoch + 1) & PERIGEE_ARENA_EPOCHS;
}
/** Own line for the meeting to come. */
static inline perigee__arena_line *perigee__arena_next_line(const perigee__arena *a) {
  return perigee__arena_line_at(a, a->me, perigee__arena_epoch_after(a->epoch));
}
/** Where to write the first `bytes` of the payload of that line, at most INLINE. */
static inline unsigned char *perigee__arena_next_payload(perigee__arena *a, size_t bytes) {
  a->own_bytes = bytes > a->own_bytes ? bytes : a->own_bytes;
  return a->own.payload;
}
/** Its own small buffer of an epoch. */
static inline char *perigee__arena_small_at(const perigee__arena *a, int rank, uint32_t epoch) {
  size_t index = (size_t)rank * PERIGEE_ARENA_LINES + epoch % PERIGEE_ARENA_LINES;
  return a->base + a->layout.small + index * PERIGEE_ARENA_SMALL;
}
static inline perigee__arena_note *perigee__arena_note_at(const perigee__arena *a, int rank,
                                                          uint32_t epoch) {
  size_t index = (size_t)rank * PERIGEE_ARENA_LINES + epoch % PERIGEE_ARENA_LINES;
  return (perigee__arena_note *)(void *)(a->base + a->layout.notes) + index;
}
/** Behind a line: n sent, n received; n addresses of blocks sent. */
static inline uint64_t *perigee__arena_sizes_at(const perigee__arena *a, int rank, uint32_t epoch) {
  return (uint64_t *)(void *)(perigee__arena_line_at(a, rank, epoch) + 1);
}
static inline uint64_t *perigee__arena_next_sizes(const perigee__arena *a) {
  return perigee__arena_sizes_at(a, a->me, perigee__arena_epoch_after(a->epoch));
}
static inline const uint64_t *perigee__arena_sizes_of(const perigee__arena *a, int rank) {
  return perigee__arena_sizes_at(a, rank, a->epoch);
}
/** Buffer of a rank for the meeting to come. */
static inline char *perigee__arena_next_slot(const perigee__arena *a, int rank) {
  return perigee__arena_slot_at(a, rank, perigee__arena_epoch_after(a->epoch));
}
/** Line of a rank in the last meeting, without the word. This rank's own is its private copy: the shared one is on its way to those
 *  who read it, and having it back takes as long as a line of theirs. */
static inline const perigee__arena_line *perigee__arena_line_of(const perigee__arena *a, int rank) {
  return rank == a->me ? &a->own : perigee__arena_line_at(a, rank, a->epoch);
}
/** Buffer of a rank of the last meeting (age 0) or the one before it (age 1). */
static inline char *perigee__arena_slot_of(const perigee__arena *a, int rank, uint32_t age) {
  return perigee__arena_slot_at(a, rank, (a->epoch - age) & PERIGEE_ARENA_EPOCHS);
}

/* ---- meeting (arena_meet.c) ---------------------------------------------------------------------- */

/** What the last to arrive does for all in mode PARK: reads lines and buffers of the meeting, writes park->payload or a buffer of
 *  its own and park->source. */
typedef void (*perigee__arena_combine_fn)(perigee__arena *a, void *arg);

/**
 * Arrive at the next epoch and wait until all ranks have. combine may be NULL; in mode SPIN it is not called.
 * Errors, with *a->error filled and the group failed: EMISMATCH, ETIMEDOUT, EPEERCLOSED, and what the fate says.
 */
PERIGEE_MUST_CHECK int perigee__arena_meet(perigee__arena *a, perigee__arena_combine_fn combine,
                                           void *arg);
/** The same, without combine: root alone waits for all and lets them go, and is the first to go on. */
PERIGEE_MUST_CHECK int perigee__arena_meet_root(perigee__arena *a, int root);
/**
 * Arrive at the next epoch without waiting for it: what the others read of this rank's memory they have read. Only as the last
 * step of a collective whose meetings before it were waited for: the next one waits again, so that a rank is never two ahead.
 */
void perigee__arena_depart(perigee__arena *a);
/**
 * Running ahead (arena.h): a phase in which not all wait for all.
 *   give        arrive, and wait for nobody: what the others need is in this rank's line and buffers
 *   await       after give: wait for one rank's line, compare
 *   await_all   after give: for all of them; sets aux_any and aux_all
 * Errors as of meet.
 */
void perigee__arena_give(perigee__arena *a);
PERIGEE_MUST_CHECK int perigee__arena_await(perigee__arena *a, int rank);
PERIGEE_MUST_CHECK int perigee__arena_await_all(perigee__arena *a);
/** Before this rank, which all others need and none else, copies what it gives next: who waits for it on another core stays there. */
static inline void perigee__arena_stages(perigee__arena *a) {
  atomic_store_explicit(&a->status[a->me].staging, perigee__arena_epoch_after(a->epoch),
                        memory_order_relaxed);
}
/** Wait until the word of a rank has come to value; what for is the caller's. Errors as of meet. */
PERIGEE_MUST_CHECK int perigee__arena_await_word(perigee__arena *a, int rank,
                                                 _Atomic uint32_t *word, uint32_t value);
/**
 * Lending in a phase from root (broadcast, scatter): the others read the root's memory where it is.
 *   lend            root, before give
 *   give_back       another rank, when it has read
 *   await_returned  root, before its caller has its memory back: until all others have. Errors as of meet
 */
void perigee__arena_lend(perigee__arena *a);
void perigee__arena_give_back(perigee__arena *a, int root);
PERIGEE_MUST_CHECK int perigee__arena_await_returned(perigee__arena *a);
/** perigee__arena_room, when it has to wait. */
PERIGEE_MUST_CHECK int perigee__arena_settle(perigee__arena *a);
/** Before the line and buffers of the next epoch are written: all have left the ones used before. back: one of the two ROOMs. */
static inline int perigee__arena_room(perigee__arena *a, uint32_t back) {
  return PERIGEE_LIKELY(((a->epoch + 1 - a->known) & PERIGEE_ARENA_EPOCHS) <= back)
             ? 0
             : perigee__arena_settle(a);
}
/** Mode PARK: all others have arrived at the next meeting, so this rank will combine. */
bool perigee__arena_will_be_last(const perigee__arena *a);

/* ---- words and waits (arena_wait.c) -------------------------------------------------------------- */

typedef enum perigee__arena_reason { /* why a wait ended without what it waited for */
  PERIGEE_ARENA_GO_ON,
  PERIGEE_ARENA_FAILED,  /* the fate */
  PERIGEE_ARENA_CLOSED,  /* a rank that has not arrived has closed the group */
  PERIGEE_ARENA_LATE,    /* the deadline has passed */
  PERIGEE_ARENA_DIFFERS, /* a rank has done something else */
  PERIGEE_ARENA_BROKEN /* a rank has left a collective with an error while this one waited for one rank */
} perigee__arena_reason;

enum {
  /* perigee__arena.awaited: the meeting this rank has arrived at; all who read what it has lent in this phase */
  PERIGEE_ARENA_ALL = -1,
  PERIGEE_ARENA_READERS = -2
};

/** Tell the others which core this rank is on. */
static inline int perigee__arena_here(perigee__arena *a) {
  int cpu = sched_getcpu();
  if (PERIGEE_UNLIKELY(cpu != a->cpu)) {
    a->cpu = cpu;
    atomic_store_explicit(&a->status[a->me].cpu, cpu, memory_order_relaxed); /* a hint */
  }
  return cpu;
}
/** Wake who sleeps on a word. */
void perigee__arena_wake(_Atomic uint32_t *word);
/** Move a word on, to an epoch or a count, and wake who sleeps on it. */
static inline void perigee__arena_publish(_Atomic uint32_t *word, uint32_t value) {
  /* release: pairs with the acquire in perigee__arena_word_reached of those who see the value */
  uint32_t old = atomic_exchange_explicit(word, value << 1, memory_order_release);
  if (PERIGEE_UNLIKELY(old & PERIGEE_ARENA_WAITERS))
    perigee__arena_wake(word);
}
/** Whether a word has come to epoch. */
static inline bool perigee__arena_reached(uint32_t word, uint32_t epoch) {
  return (((word >> 1) - epoch) & PERIGEE_ARENA_EPOCHS) <= PERIGEE_ARENA_EPOCHS / 2;
}
static inline bool perigee__arena_word_reached(_Atomic uint32_t *word, uint32_t epoch) {
  /* acquire: pairs with the release in perigee__arena_publish */
  return perigee__arena_reached(atomic_load_explicit(word, memory_order_acquire), epoch);
}
/** It was not there at once: wait for it. rank: whose word it is, ALL or READERS. */
perigee__arena_reason perigee__arena_wait(perigee__arena *a, int rank, _Atomic uint32_t *word,
                                          uint32_t epoch);
/** Make everybody who sleeps on a word of this arena look around: something other than an arrival has happened. Any thread. */
void perigee__arena_kick(const perigee__arena *a);

/* ---- failing (arena_fail.c) ---------------------------------------------------------------------- */

/** Reason to give up the wait that goes on. */
perigee__arena_reason perigee__arena_look(const perigee__arena *a);
/** Whether a rank is seen to have done something else than this one, in this epoch or one before. */
bool perigee__arena_differs(const perigee__arena *a);
/** The error for it in *a->error; fails the group. Returns the code. */
int perigee__arena_give_up(perigee__arena *a, perigee__arena_reason reason);
/** A rank has left the collective with an error: the error of this one. */
int perigee__arena_give_up_broken(perigee__arena *a);
/** Reading a rank's memory failed with this -errno: the error, after waiting a little for the cause. */
int perigee__arena_unreadable(perigee__arena *a, int rank, int rc);
/** Tell those who read this rank's buffers that they are going. */
void perigee__arena_break(perigee__arena *a);
/** EMISMATCH: names the first rank that has done something else, and what each did. 0 when none of those that have arrived. */
int perigee__arena_mismatch(perigee__arena *a);
/** Start *a->error: code, message, and what is known of the call. Add culprits, then perigee__arena_fail_group. */
void perigee__arena_error(perigee__arena *a, int code, const char *fmt, ...) PERIGEE_PRINTF(3, 4);
/** Fail the group with *a->error on all ranks (without a mesh: on this one). Returns the error's code. */
int perigee__arena_fail_group(perigee__arena *a);

#endif
