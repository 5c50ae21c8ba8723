#include "group/group.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/futex.h"
#include "base/log.h"
#include "group/closing.h"
#include "group/coalesce.h"
#include "group/hooks.h"
#include "group/layers.h"
#include "group/native.h"
#include "group/work.h"

/* A work of a scripted layer in flight; ended by abort and close. */
typedef struct tracked {
  perigee__node node;   /* in group->tracked, under its mutex */
  perigee_group *group; /* one reference */
  perigee_work *work;   /* one reference */
} tracked;

/* ---- opening ----------------------------------------------------------------------------------- */

static void group_free(perigee_group *group) {
  perigee__hooks_unref(group->hooks);
  perigee__subgroup_counts_free(group->subgroups);
  perigee_store_unref(group->store);
  if (group->layer_options != NULL)
    group->layer_options->unref(group->layer_options);
  perigee__world_unref(group->world, perigee__deadline_in(0));
  free(group->members);
  perigee_store_unref(group->origin);
  free(group->stack);
  free(group->spec);
  free(group->tuning);
  perigee__mutex_fini(&group->mutex);
  free(group);
}

int perigee__group_open(const perigee__group_params *params, perigee_group **group_p) {
  perigee_group *group = perigee__calloc(1, sizeof(*group));
  if (group == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a group");
  atomic_init(&group->refs, 1);
  atomic_init(&group->timeout_ns, params->timeout_ns);
  snprintf(group->name, sizeof(group->name), "%s", params->name);
  group->id = params->id;
  group->rank = params->rank;
  group->nranks = params->nranks;
  group->world = perigee__world_ref(params->world);
  group->open_deadline_ns = params->deadline_ns;
  group->layer_options = params->layer_options;
  if (group->layer_options != NULL)
    group->layer_options->ref(group->layer_options);
  perigee__mutex_init(&group->mutex, PERIGEE_LOCK_GROUP, "group");
  perigee__list_init(&group->tracked);
  group->stack = perigee__strdup(params->stack);
  group->members = perigee__calloc((size_t)params->nranks, sizeof(int));
  if (params->tuning != NULL)
    group->tuning = perigee__strdup(params->tuning);
  int rc = 0;
  if (group->stack == NULL || group->members == NULL ||
      (params->tuning != NULL && group->tuning == NULL))
    PERIGEE_TRY_GOTO(perigee__fail(PERIGEE_ENOMEM, "no memory for a group"), err_free);
  PERIGEE_TRY_GOTO(perigee__hooks_create(group, &group->hooks), err_free);
  memcpy(group->members, params->members, (size_t)params->nranks * sizeof(int));
  if (group->world->store != NULL) {
    char prefix[128]; /* the id, because a name may have been cut */
    snprintf(prefix, sizeof(prefix), "%s.%016" PRIx64, group->name, group->id);
    PERIGEE_TRY_GOTO(perigee_store_prefix_create(prefix, group->world->store, &group->store),
                     err_free);
  }
  PERIGEE_TRY_GOTO(perigee__layers_open(group, params->parent, params->first), err_free);
  rc = perigee__closing_register(group);
  if (rc < 0) {
    perigee__layers_close(group);
    goto err_free;
  }
  *group_p = group;
  return 0;
err_free:
  group_free(group);
  return rc;
}

perigee_group *perigee_group_ref(perigee_group *group) {
  atomic_fetch_add_explicit(&group->refs, 1, memory_order_relaxed);
  return group;
}

void perigee_group_unref(perigee_group *group) {
  if (group == NULL)
    return;
  /* An open group has one reference of its own (closing.h). When ours is the last besides that one nobody could close it any
   * more: ours goes to a thread that does, because unref never blocks. state is looked at while ours keeps the group. */
  uint32_t refs = atomic_load_explicit(&group->refs, memory_order_relaxed);
  do {
    if (refs == 2 && atomic_load(&group->state) == PERIGEE_GROUP_OPEN) {
      perigee__closing_defer(group);
      return;
    }
    /* acq_rel: the last owner sees what the others wrote */
  } while (!atomic_compare_exchange_weak_explicit(&group->refs, &refs, refs - 1,
                                                  memory_order_acq_rel, memory_order_relaxed));
  if (refs == 1)
    group_free(group);
}

/* ---- calls ------------------------------------------------------------------------------------- */

/* Groups whose calls this thread is inside of: such a thread must not wait for a group's calls to end. */
static _Thread_local int inside;

bool perigee__group_inside_call(void) { return inside > 0 || perigee__work_in_callback(); }

int perigee__group_may_block(void) {
  return perigee__work_in_callback()
             ? perigee__fail(PERIGEE_EDEADLK,
                             "a blocking call in a callback or a reduce function would deadlock")
             : 0;
}

int perigee__group_leave(perigee_group *group, int rc) {
  inside--;
  /* release: what the call did happens before close frees it. The closer polls calls. */
  atomic_fetch_sub_explicit(&group->calls, 1, memory_order_release);
  return rc;
}

static int refused(perigee_group *group) {
  int rc = perigee__fail(PERIGEE_ECLOSED, "the group is closed");
  snprintf(perigee__last_error()->group, sizeof(group->name), "%s", group->name);
  perigee__last_error()->rank = group->rank;
  return rc;
}

int perigee__group_enter(perigee_group *group) {
  /* seq_cst: pairs with state = CLOSING, then the look at calls, in close: one of the two sees the other. */
  atomic_fetch_add(&group->calls, 1);
  inside++;
  if (PERIGEE_UNLIKELY(atomic_load(&group->state) != PERIGEE_GROUP_OPEN))
    return perigee__group_leave(group, refused(group));
  return 0;
}

/* Fill in what an error does not know yet about the call it belongs to. */
static int decorate(perigee_group *group, const perigee_request *req) {
  perigee_error *error = perigee__last_error();
  if (error->op < 0)
    error->op = req->op;
  if (error->seq == 0)
    error->seq = req->seq;
  if (error->rank < 0)
    error->rank = group->rank;
  if (error->group[0] == '\0')
    snprintf(error->group, sizeof(error->group), "%s", group->name);
  return error->code;
}

int perigee__group_check(perigee_group *group, const perigee_request *req) {
  int rc = perigee__request_check(req, group->rank, group->nranks);
  if (rc == 0 && group->route[req->op] < 0)
    rc = perigee__fail(PERIGEE_ENOTSUP, "%s: no layer of '%s' takes it", perigee_op_name(req->op),
                       group->stack);
  if (rc < 0) {
    perigee_error *error = perigee__last_error();
    error->rank = group->rank;
    snprintf(error->group, sizeof(error->group), "%s", group->name);
    if (atomic_load_explicit(&group->hooked, memory_order_relaxed))
      perigee__hooks_refused(group, req);
  }
  return rc;
}

/* The choke point: every operation that a caller starts comes through here. *op_p: for hooks, NULL when there are none. */
static int begin(perigee_group *group, const perigee_request *req, bool async,
                 perigee_request *mine, perigee__observed **op_p) {
  PERIGEE_TRY(perigee__group_enter(group));
  int rc = perigee__group_check(group, req);
  if (rc < 0)
    return perigee__group_leave(group, rc);
  *mine = *req;
  *op_p = NULL;
  /* Messages count for themselves: the numbers of collectives are the same on all ranks. */
  bool message = perigee_op_get(req->op)->opts & PERIGEE_OPT_TAG;
  _Atomic uint64_t *counter = message ? &group->messages : &group->seq;
  if (PERIGEE_UNLIKELY(atomic_load_explicit(&group->hooked, memory_order_relaxed))) {
    rc = perigee__hooks_begin(group, mine, counter, async, op_p);
    return rc < 0 ? perigee__group_leave(group, rc) : 0;
  }
  uint64_t seq = atomic_fetch_add_explicit(counter, 1, memory_order_relaxed) + 1;
  if (mine->seq == 0)
    mine->seq = seq;
  return 0;
}

int perigee_group_run(perigee_group *group, const perigee_request *req) {
  perigee_request mine;
  perigee__batch *batch = perigee__batch_here(group);
  if (PERIGEE_UNLIKELY(batch != NULL)) {
    perigee_work *part;
    PERIGEE_TRY(perigee__batch_add(batch, req, &part));
    perigee_work_unref(part);
    return 0;
  }
  perigee__observed *op;
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(begin(group, req, false, &mine, &op));
  perigee_error error;
  int rc = perigee__layer_run_at(group, group->route[req->op], &mine, &error);
  if (PERIGEE_UNLIKELY(rc < 0)) {
    perigee__fail_with(&error);
    decorate(group, &mine);
  }
  if (PERIGEE_UNLIKELY(op != NULL))
    perigee__hooks_end(op, rc < 0 ? perigee_last_error() : NULL);
  return perigee__group_leave(group, rc);
}

static void untrack(perigee_work *work, void *arg) {
  tracked *entry = arg;
  perigee_group *group = entry->group;
  perigee__lock(&group->mutex);
  perigee__list_remove(&entry->node);
  perigee__unlock(&group->mutex);
  perigee_work_unref(work);
  free(entry);
  perigee_group_unref(group);
}

bool perigee__group_has_tracked(perigee_group *group) {
  perigee__lock(&group->mutex);
  bool any = !perigee__list_empty(&group->tracked);
  perigee__unlock(&group->mutex);
  return any;
}

/* Remember a scripted layer's work, and give it the operation's deadline when it has none of its own. */
int perigee__group_track(perigee_group *group, perigee_work *work, int64_t deadline_ns) {
  if (perigee__work_ended(work) || work->ops != NULL)
    return 0;
  tracked *entry = malloc(sizeof(*entry));
  if (entry == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory to follow a work");
  *entry = (tracked){.group = perigee_group_ref(group), .work = perigee_work_ref(work)};
  perigee__lock(&group->mutex);
  perigee__list_append(&group->tracked, &entry->node);
  perigee__unlock(&group->mutex);
  int rc = perigee_work_on_done(work, untrack, entry);
  if (rc < 0) {
    untrack(work, entry);
    return rc;
  }
  int64_t slack = perigee__work_slack(work);
  if (deadline_ns < PERIGEE_NEVER - slack && !atomic_load(&work->watched)) {
    work->slack_ns = slack;
    return perigee__deadline_watch(work, deadline_ns + slack, perigee__work_late);
  }
  return 0;
}

int perigee_group_submit(perigee_group *group, const perigee_request *req, perigee_work **work_p) {
  perigee_request mine;
  perigee__batch *batch = perigee__batch_here(group);
  if (PERIGEE_UNLIKELY(batch != NULL))
    return perigee__batch_add(batch, req, work_p);
  perigee__observed *op;
  PERIGEE_TRY(begin(group, req, true, &mine, &op));
  int index = group->route[req->op];
  perigee_work *work = NULL;
  int rc = perigee__layer_submit_at(group, index, &mine, &work);
  if (rc == 0 && index != group->nlayers - 1) {
    rc = perigee__group_track(
        group, work,
        perigee__request_deadline(&mine,
                                  atomic_load_explicit(&group->timeout_ns, memory_order_relaxed)));
    if (rc < 0)
      perigee_work_unref(work);
  }
  if (rc < 0) {
    decorate(group, &mine);
    if (op != NULL)
      perigee__hooks_end(op, perigee_last_error());
  } else {
    perigee__hooks_follow(group, op, work);
    *work_p = work;
  }
  return perigee__group_leave(group, rc);
}

/* ---- ending ------------------------------------------------------------------------------------ */

static void end_tracked(perigee_group *group, const perigee_error *error) {
  for (;;) {
    perigee_work *work = NULL;
    perigee__lock(&group->mutex);
    if (!perigee__list_empty(&group->tracked)) {
      tracked *entry = PERIGEE_CONTAINER_OF(group->tracked.next, tracked, node);
      work = perigee_work_ref(entry->work);
      /* untrack removes it again, which does no harm; here so that the next turn finds another one */
      perigee__list_remove(&entry->node);
    }
    perigee__unlock(&group->mutex);
    if (work == NULL)
      return;
    perigee__work_finish(work, error, -1);
    perigee_work_unref(work);
  }
}

int perigee_group_abort(perigee_group *group, const char *reason) {
  PERIGEE_TRY(perigee__group_enter(group));
  perigee_error error;
  perigee__error_set(&error, PERIGEE_EABORTED, "aborted by rank %d: %s", group->rank,
                     reason != NULL && reason[0] != '\0' ? reason : "no reason given");
  error.rank = error.origin = group->rank;
  snprintf(error.group, sizeof(error.group), "%s", group->name);
  perigee__layers_abort(group, &error);
  end_tracked(group, &error);
  perigee__hooks_failed(group->hooks, &error);
  return perigee__group_leave(group, 0);
}

/* Looking at the bottom counts as a call, which changes nothing that callers can see. */
static perigee_group *mutable(const perigee_group *group) { return (perigee_group *)group; }

int perigee_group_failed(const perigee_group *group, perigee_error *error_p) {
  int rc = perigee__group_enter(mutable(group));
  if (rc < 0) {
    if (error_p != NULL)
      *error_p = *perigee_last_error();
    return rc;
  }
  if (group->native)
    rc = perigee__native_failed(group->layers[group->nlayers - 1].self, error_p);
  return perigee__group_leave(mutable(group), rc);
}

/* The part of close that waits; the state is CLOSING and this thread is the only one here. */
void perigee__group_close_now(perigee_group *group) {
  int64_t deadline = perigee__deadline_in(2 * PERIGEE_NS_PER_SEC);
  perigee_error error;
  perigee__error_set(&error, PERIGEE_ECLOSED, "the group was closed");
  error.rank = group->rank;
  snprintf(error.group, sizeof(error.group), "%s", group->name);
  perigee__layers_abort(group, &error);
  end_tracked(group, &error);
  int64_t pause = 1000;
  bool warned = false;
  while (atomic_load(&group->calls) > 0) {
    /* Only a script that does not return keeps a call inside for long; freeing what it uses is worse than waiting. */
    if (perigee__passed(deadline) && !warned) {
      perigee__log(PERIGEE_LOG_WARN, "group %s: a call does not return; its close waits for it",
                   group->name);
      warned = true;
    }
    perigee__sleep_ns(pause);
    pause = pause < PERIGEE_NS_PER_MS ? pause * 2 : pause;
  }
  perigee__hooks_mute(group);
  perigee__layers_close(group);
  end_tracked(group, &error);
  perigee__hooks_close(group->hooks, deadline);
  perigee__world *world = group->world;
  group->world = NULL;
  perigee__world_unref(world, deadline);
  atomic_store(&group->state, PERIGEE_GROUP_CLOSED);
  perigee__futex_wake(&group->state, INT_MAX, false);
}

int perigee_group_close(perigee_group *group) {
  if (perigee__group_inside_call()) {
    perigee__closing_defer(perigee_group_ref(group));
    return 0;
  }
  uint32_t open = PERIGEE_GROUP_OPEN;
  if (atomic_compare_exchange_strong(&group->state, &open, PERIGEE_GROUP_CLOSING)) {
    perigee__group_close_now(group);
    perigee__closing_forget(group);
    return 0;
  }
  /* Another thread closes it: come back when it has. */
  int64_t deadline = perigee__deadline_in(3 * PERIGEE_NS_PER_SEC);
  while (atomic_load(&group->state) == PERIGEE_GROUP_CLOSING && !perigee__passed(deadline))
    perigee__futex_wait(&group->state, PERIGEE_GROUP_CLOSING, deadline, false);
  return 0;
}

/* ---- looking ----------------------------------------------------------------------------------- */

bool perigee_group_is_closed(const perigee_group *group) {
  return atomic_load(&group->state) != PERIGEE_GROUP_OPEN;
}
const char *perigee_group_name(const perigee_group *group) { return group->name; }
const char *perigee_group_backend(const perigee_group *group) { return group->stack; }
perigee_store *perigee_group_store(const perigee_group *group) { return group->store; }

const char *perigee_group_transport(const perigee_group *group) {
  if (!group->native || perigee__group_enter(mutable(group)) < 0)
    return "";
  const char *name = perigee__native_transport(group->layers[group->nlayers - 1].self);
  perigee__group_leave(mutable(group), 0);
  return name;
}

int perigee_group_to_world(const perigee_group *group, int rank) {
  return rank >= 0 && rank < group->nranks ? group->members[rank] : -1;
}

int perigee_group_from_world(const perigee_group *group, int world_rank) {
  for (int r = 0; r < group->nranks; r++)
    if (group->members[r] == world_rank)
      return r;
  return -1;
}

uint64_t perigee_group_seq(const perigee_group *group) {
  return atomic_load_explicit(&group->seq, memory_order_relaxed);
}

int64_t perigee_group_timeout(const perigee_group *group) {
  return atomic_load_explicit(&group->timeout_ns, memory_order_relaxed);
}

int perigee_group_set_timeout(perigee_group *group, int64_t timeout_ns) {
  if (timeout_ns <= 0)
    return perigee__fail(PERIGEE_ERANGE, "timeout must be positive");
  PERIGEE_TRY(perigee__group_enter(group));
  atomic_store_explicit(&group->timeout_ns, timeout_ns, memory_order_relaxed);
  for (int i = 0; i < group->nlayers; i++)
    if (group->layers[i].backend->ops.set_timeout != NULL)
      group->layers[i].backend->ops.set_timeout(group->layers[i].self, timeout_ns);
  return perigee__group_leave(group, 0);
}

bool perigee_group_is_direct(const perigee_group *group, int op) {
  return op >= 0 && op < PERIGEE_OP_COUNT && group->route[op] == group->nlayers - 1;
}
