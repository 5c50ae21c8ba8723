/*
 * The inside of a group: its layers and routes.
 *
 * A layer of index i handles an operation or leaves it to the layers below (i + 1 ...). Who handles it is found once, when
 * the group opens: route[op] is the first layer, seen from above, that does. An operation that no layer but the bottom handles goes
 * straight there.
 *
 * Thread-safety: everything is immutable once open, but
 *   seq, timeout_ns, state, calls, hooked: atomic.
 *   tracked: under mutex (rank GROUP). Works of scripted layers in flight, so that abort and close end them.
 *   layers[].self: freed by close. Who uses it is counted in `calls` (perigee__group_enter), which close waits for.
 */
#ifndef PERIGEE_GROUP_GROUP_H
#define PERIGEE_GROUP_GROUP_H

#include <stdatomic.h>

#include <perigee/group.h>

#include "base/list.h"
#include "base/thread.h"
#include "group/registry.h"
#include "group/world.h"

struct perigee_layer {
  perigee_group *group;
  perigee__backend *backend; /* one reference */
  void *self;
  int index;
  uint32_t handles;                /* bit per operation this layer takes itself */
  uint32_t methods;                /* bit per method of kind ASKED it has */
  char name[PERIGEE_NAME_MAX + 1]; /* shown in stack strings */
  char *below;                     /* text of the stack below */
  int8_t route[PERIGEE_OP_COUNT];  /* index of the layer below that handles it, -1 none */
};

_Static_assert(PERIGEE_OP_COUNT <= 32, "perigee_layer.handles has a bit for each operation");
_Static_assert(PERIGEE_METHOD_COUNT <= 32, "perigee_layer.methods has a bit for each method");

typedef enum perigee__group_state {
  PERIGEE_GROUP_OPEN,
  PERIGEE_GROUP_CLOSING,
  PERIGEE_GROUP_CLOSED
} perigee__group_state;

struct perigee_group {
  _Atomic uint32_t refs;
  _Atomic uint32_t state;    /* perigee__group_state; futex word of who waits for the end */
  _Atomic uint32_t calls;    /* threads inside submit or run; close waits until they have left */
  _Atomic uint32_t batches;  /* batches open on any thread; relaxed: a thread looks for its own */
  _Atomic uint64_t seq;      /* collectives accepted */
  _Atomic uint64_t messages; /* point-to-point operations accepted */
  _Atomic int64_t timeout_ns;
  _Atomic bool
      hooked; /* hooks want to know of operations; relaxed, written under the hooks' mutex */
  struct perigee__hooks *hooks; /* who is told, and what is under way (hooks.h); one reference */
  char name[64];                /* for people; may be cut */
  uint64_t id;                  /* same on all members, distinct within a world */
  int rank, nranks;
  int *members; /* world rank of each rank */
  perigee__world *world;
  perigee_store *store;          /* prefixed for this group, or NULL */
  char *stack;                   /* "log(fp16(native))" */
  char *spec;                    /* the same with the registered names: opens it again */
  uint32_t methods;              /* bit per method of kind ASKED that any layer has */
  perigee_shared *layer_options; /* one reference, or NULL */
  char *tuning;                  /* rules of the group (coll/select.h), or NULL */
  perigee_layer layers[PERIGEE_LAYERS_MAX];
  int nlayers;
  bool native;              /* the bottom is the built-in backend */
  int64_t open_deadline_ns; /* for the layers' open */
  int8_t route[PERIGEE_OP_COUNT];
  perigee_mutex mutex;
  perigee__node tracked;
  uint32_t splits;       /* under mutex: splits made, names them */
  uint32_t shrinks;      /* under mutex: the same for shrink */
  uint32_t attempts;     /* under mutex: configurations tried after this one */
  uint32_t generation;   /* configurations of this lineage on `origin` before this one */
  perigee_store *origin; /* where the lineage's configurations meet, or NULL: `store` */
  struct perigee__subgroup_count *subgroups; /* under mutex: how often each list was used */
};

typedef struct perigee__group_params {
  const char *name;
  uint64_t id;
  int rank, nranks;
  const int *members;    /* world ranks */
  perigee__world *world; /* one reference is taken */
  const char *stack;
  int64_t timeout_ns;            /* default of operations */
  int64_t deadline_ns;           /* of opening */
  const perigee_group *parent;   /* layers are split from it; NULL: opened */
  int first;                     /* index of the parent's first layer that is taken */
  perigee_shared *layer_options; /* one reference is taken; may be NULL */
  const char *tuning;            /* rules of the group, or NULL */
} perigee__group_params;

/** Open a group. Waits for all members (the bottom sets itself up with its peers). */
PERIGEE_MUST_CHECK int perigee__group_open(const perigee__group_params *params,
                                           perigee_group **group_p);

/** A subgroup of these ranks, given its whole name and id; first: index of the first of the parent's layers it takes. Waits. (split.c) */
PERIGEE_MUST_CHECK int perigee__group_of_members(perigee_group *parent, int first, const char *name,
                                                 uint64_t id, const int *ranks, int n, int me,
                                                 int64_t deadline_ns, perigee_group **group_p);

/** See that a scripted layer's work ends with the group, and at its operation's deadline. */
PERIGEE_MUST_CHECK int perigee__group_track(perigee_group *group, perigee_work *work,
                                            int64_t deadline_ns);
/** Whether a scripted layer's work is pending. */
bool perigee__group_has_tracked(perigee_group *group);

/** Check req and that a layer takes it, inside of enter. The error names the group. */
PERIGEE_MUST_CHECK int perigee__group_check(perigee_group *group, const perigee_request *req);

/** Bracket a use of the group's layers: ECLOSED when it is being closed. leave returns rc. */
PERIGEE_MUST_CHECK int perigee__group_enter(perigee_group *group);
int perigee__group_leave(perigee_group *group, int rc);
/** EDEADLK where a blocking call would wait for its own thread: in callbacks and reduce functions. */
PERIGEE_MUST_CHECK int perigee__group_may_block(void);

/** Deadline of a request made now: its own timeout or the group's default. */
int64_t perigee__request_deadline(const perigee_request *req, int64_t default_ns);

/** Check req against the row of its operation and the group's shape (validate.c). The error names the argument. */
PERIGEE_MUST_CHECK int perigee__request_check(const perigee_request *req, int rank, int nranks);

#endif
