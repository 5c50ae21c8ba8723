/*
 * Methods of kind ASKED (backend.h): who answers is the first layer that has the method, from the top for callers of the group,
 * from the next layer on for a layer that passes on; without one, the runtime. split has its own in split.c, reconfigure in reconfigure.c.
 */
#include <perigee/group.h>

#include "base/clock.h"
#include "base/error.h"
#include "group/group.h"
#include "group/layers.h"
#include "group/native.h"
#include "group/work.h"

const char *perigee_method_name(int method) {
  static const char *const names[] = {
#define XX(_id, _NAME, _name, _kind) [_id] = #_name,
      PERIGEE_METHOD_MAP(XX)
#undef XX
  };
  return method >= 0 && method < PERIGEE_METHOD_COUNT ? names[method] : NULL;
}

/* ---- rank, size -------------------------------------------------------------------------------- */

static int out_of_range(const perigee_layer *layer, const char *what, int value) {
  return perigee__fail(PERIGEE_ERANGE, "layer '%s': %s %d", layer->name, what, value);
}

static int rank_from(perigee_group *group, int from) {
  if (!(group->methods >> PERIGEE_METHOD_RANK & 1) || perigee__group_enter(group) < 0)
    return group->rank; /* of a closed group as well */
  const perigee_layer *layer = perigee__layer_with(group, from, PERIGEE_METHOD_RANK);
  return perigee__group_leave(group,
                              layer != NULL ? layer->backend->ops.rank(layer->self) : group->rank);
}

static int size_from(perigee_group *group, int from) {
  if (!(group->methods >> PERIGEE_METHOD_SIZE & 1) || perigee__group_enter(group) < 0)
    return group->nranks;
  const perigee_layer *layer = perigee__layer_with(group, from, PERIGEE_METHOD_SIZE);
  int size = layer != NULL ? layer->backend->ops.group_size(layer->self) : group->nranks;
  if (size == 0)
    size = out_of_range(layer, "a size of", size);
  return perigee__group_leave(group, size);
}

/* Asking a layer counts as a call, which changes nothing that callers can see. */
static perigee_group *mutable(const perigee_group *group) { return (perigee_group *)group; }

int perigee_group_rank(const perigee_group *group) { return rank_from(mutable(group), 0); }
int perigee_group_size(const perigee_group *group) { return size_from(mutable(group), 0); }
int perigee_layer_rank(perigee_layer *layer) { return rank_from(layer->group, layer->index + 1); }
int perigee_layer_size(perigee_layer *layer) { return size_from(layer->group, layer->index + 1); }

/* ---- shutdown ---------------------------------------------------------------------------------- */

static bool is_idle(perigee_group *group) {
  return !perigee__group_has_tracked(group) &&
         (!group->native || perigee__native_is_idle(group->layers[group->nlayers - 1].self));
}

/* What is pending has its threads (the progress thread, the I/O thread, a dispatcher): this one only looks. */
static int wait_until_idle(perigee_group *group, int64_t timeout_ns) {
  int64_t deadline = perigee__deadline_in(timeout_ns), pause = 20000;
  while (!is_idle(group)) {
    perigee_error error;
    int rc = perigee_group_failed(group, &error);
    if (rc < 0) /* what is pending ends with that, and so does the wait */
      return perigee__fail_with(&error);
    if (perigee__passed(deadline))
      return perigee__fail(PERIGEE_ETIMEDOUT, "shutdown: operations are pending after %.1f s",
                           (double)timeout_ns / 1e9);
    perigee__sleep_ns(pause);
    pause = pause < PERIGEE_NS_PER_MS ? pause * 2 : pause;
  }
  return 0;
}

static int shutdown_from(perigee_group *group, int from, int64_t timeout_ns) {
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  if (timeout_ns <= 0)
    timeout_ns = atomic_load_explicit(&group->timeout_ns, memory_order_relaxed);
  const perigee_layer *layer = perigee__layer_with(group, from, PERIGEE_METHOD_SHUTDOWN);
  int rc = layer != NULL ? layer->backend->ops.shutdown(layer->self, timeout_ns)
                         : wait_until_idle(group, timeout_ns);
  return perigee__group_leave(group, rc);
}

int perigee_layer_shutdown(perigee_layer *layer, int64_t timeout_ns) {
  return shutdown_from(layer->group, layer->index + 1, timeout_ns);
}

int perigee_group_shutdown(perigee_group *group, int64_t timeout_ns) {
  PERIGEE_TRY(perigee__group_may_block());
  if (perigee_group_is_closed(group))
    return perigee_group_close(group);
  perigee_error error;
  int rc = shutdown_from(group, 0, timeout_ns);
  if (rc < 0)
    error = *perigee_last_error();
  perigee_group_close(group);
  return rc < 0 ? perigee__fail_with(&error) : 0;
}

/* ---- coalescing, as layers see it (coalesce.c has the batches) --------------------------------- */

int perigee_layer_start_coalescing(perigee_layer *layer) {
  perigee_group *group = layer->group;
  PERIGEE_TRY(perigee__group_enter(group));
  const perigee_layer *below =
      perigee__layer_with(group, layer->index + 1, PERIGEE_METHOD_START_COALESCING);
  return perigee__group_leave(
      group, below != NULL ? below->backend->ops.start_coalescing(below->self) : 0);
}

int perigee_layer_end_coalescing(perigee_layer *layer, perigee_work **work_p) {
  perigee_group *group = layer->group;
  PERIGEE_TRY(perigee__group_enter(group));
  const perigee_layer *below =
      perigee__layer_with(group, layer->index + 1, PERIGEE_METHOD_END_COALESCING);
  if (below != NULL)
    return perigee__group_leave(group, below->backend->ops.end_coalescing(below->self, work_p));
  *work_p = perigee_work_done();
  return perigee__group_leave(group, 0);
}
