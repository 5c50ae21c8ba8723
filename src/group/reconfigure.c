/*
 * reconfigure: the same stack of layers, opened anew for other ranks.
 *
 * The ranks of the new configuration meet under "reconfigure/<id>" of a store: one given, or the group's. A group that was made so keeps
 * the store of the first one (`origin`) and its number on it (`generation`), which names the next configuration when no id is given.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "group/group.h"
#include "group/layers.h"

void perigee_reconfigure_options_init(perigee_reconfigure_options *opts) {
  memset(opts, 0, sizeof(*opts));
  opts->size = sizeof(*opts);
  opts->rank = opts->nranks = -1;
}

static int check(const perigee_reconfigure_options *opts) {
  if ((opts->rank < 0) != (opts->nranks < 0))
    return perigee__fail(PERIGEE_EINVAL, "reconfigure: give both rank and size, or neither");
  if (opts->rank >= 0 && opts->rank >= opts->nranks)
    return perigee__fail(PERIGEE_ERANGE, "reconfigure: rank %d does not exist in a group of %d",
                         opts->rank, opts->nranks);
  if (opts->id != NULL && (opts->id[0] == '\0' || strlen(opts->id) > 128))
    return perigee__fail(PERIGEE_EINVAL, "reconfigure: id: 1 to 128 characters expected");
  return 0;
}

/* The prefixed store of the configuration; NULL when the group has none. */
static int meeting_place(perigee_store *origin, const perigee_reconfigure_options *opts,
                         unsigned generation, perigee_store **store_p) {
  char prefix[160];
  if (origin == NULL) {
    *store_p = NULL;
    return 0;
  }
  if (opts->id != NULL)
    snprintf(prefix, sizeof(prefix), "reconfigure/%s", opts->id);
  else
    snprintf(prefix, sizeof(prefix), "reconfigure/%u", generation);
  return perigee_store_prefix_create(prefix, origin, store_p);
}

static int open_anew(perigee_group *old, const perigee_reconfigure_options *opts, int rank,
                     int nranks, perigee_group **group_p) {
  perigee_store *origin = opts->store != NULL   ? opts->store
                          : old->origin != NULL ? old->origin
                                                : old->store;
  perigee__lock(&old->mutex);
  unsigned generation = opts->store != NULL ? 0 : old->generation + ++old->attempts;
  perigee__unlock(&old->mutex);
  int64_t init_timeout = opts->init_timeout_ns > 0 ? opts->init_timeout_ns
                                                   : perigee__env_seconds("PERIGEE_INIT_TIMEOUT");
  perigee__group_params params = {
      .name = old->name,
      .id = 1, /* in a world of its own */
      .rank = rank,
      .nranks = nranks,
      .stack = old->spec,
      .timeout_ns = opts->timeout_ns > 0
                        ? opts->timeout_ns
                        : atomic_load_explicit(&old->timeout_ns, memory_order_relaxed),
      .deadline_ns = perigee__deadline_in(init_timeout),
      .layer_options = old->layer_options,
      .tuning = old->tuning,
  };
  int *members = perigee__calloc((size_t)nranks, sizeof(int));
  if (members == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %d ranks", nranks);
  for (int r = 0; r < nranks; r++)
    members[r] = r;
  params.members = members;
  perigee_store *store = NULL;
  int rc = meeting_place(origin, opts, generation, &store);
  if (rc == 0)
    rc = perigee__world_meet(store, params.stack, rank, nranks, params.deadline_ns, &params.world);
  if (rc == 0) {
    rc = perigee__group_open(&params, group_p);
    perigee__world_unref(params.world, params.deadline_ns);
  }
  if (rc == 0 && origin != NULL) {
    (*group_p)->origin = perigee_store_ref(origin);
    (*group_p)->generation = generation;
  }
  free(members);
  return rc;
}

static int reform(perigee_group *old, const perigee_reconfigure_options *opts,
                  perigee_group **group_p) {
  PERIGEE_TRY(check(opts));
  bool same = opts->rank < 0;
  return open_anew(old, opts, same ? old->rank : opts->rank, same ? old->nranks : opts->nranks,
                   group_p);
}

int perigee_layer_reconfigure(perigee_layer *layer, const perigee_reconfigure_options *opts,
                              perigee_group **group_p) {
  perigee_group *group = layer->group;
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  const perigee_layer *below =
      perigee__layer_with(group, layer->index + 1, PERIGEE_METHOD_RECONFIGURE);
  return perigee__group_leave(
      group, below != NULL ? below->backend->ops.reconfigure(below->self, opts, group_p)
                           : reform(group, opts, group_p));
}

/* Whether a layer has an override; *rc_p: what it said, and *made_p. */
static bool overridden(perigee_group *group, const perigee_reconfigure_options *opts,
                       perigee_group **made_p, int *rc_p) {
  if (perigee__group_enter(group) < 0)
    return false; /* closed: its layers are gone */
  const perigee_layer *layer = perigee__layer_with(group, 0, PERIGEE_METHOD_RECONFIGURE);
  if (layer != NULL)
    *rc_p = layer->backend->ops.reconfigure(layer->self, opts, made_p);
  perigee__group_leave(group, 0);
  return layer != NULL;
}

int perigee_group_reconfigure(perigee_group *group, const perigee_reconfigure_options *opts,
                              perigee_group **group_p) {
  perigee_reconfigure_options defaults;
  if (opts == NULL) {
    perigee_reconfigure_options_init(&defaults);
    opts = &defaults;
  }
  PERIGEE_TRY(perigee__group_may_block());
  perigee_group *made = NULL;
  int rc = 0;
  if (overridden(group, opts, &made, &rc)) {
    PERIGEE_TRY(rc);
    if (made != NULL)
      perigee_group_close(group);
  } else {
    PERIGEE_TRY(check(opts));
    perigee_group_close(group); /* frees what the new one needs: threads, shared memory */
    PERIGEE_TRY(reform(group, opts, &made));
  }
  *group_p = made;
  return 0;
}
