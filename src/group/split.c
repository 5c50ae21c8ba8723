/*
 * Subgroups. Who belongs to one is agreed on the store, not by a collective, so that it works whatever the layers override and
 * so that the error names who did not come. All members derive the same id and name from the parent's:
 *   split     id from (k, color), name "<parent>/s<k>.<color>": k counts the splits of the parent, which all its ranks make in
 *             the same order
 *   subgroup  id from (hash of the list, k), name "<parent>/g<hash>.<k>": k counts the uses of this list on the parent, which
 *             all members make alike
 * A name given by the caller stands in place of "s" or "g<hash>". A subgroup of the layers below one layer is a subgroup whose hash also
 * covers that layer's place.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "coll/fingerprint.h"
#include "group/closing.h"
#include "group/group.h"
#include "group/layers.h"

#define SLICE_NS (100 * PERIGEE_NS_PER_MS)

struct perigee__subgroup_count {
  struct perigee__subgroup_count *next;
  uint64_t hash;
  unsigned uses;
};

void perigee__subgroup_counts_free(struct perigee__subgroup_count *list) {
  while (list != NULL) {
    struct perigee__subgroup_count *next = list->next;
    free(list);
    list = next;
  }
}

static int count_use(perigee_group *group, uint64_t hash, unsigned *uses_p) {
  perigee__lock(&group->mutex);
  struct perigee__subgroup_count *it = group->subgroups;
  while (it != NULL && it->hash != hash)
    it = it->next;
  if (it == NULL && (it = perigee__calloc(1, sizeof(*it))) != NULL) {
    it->hash = hash;
    it->next = group->subgroups;
    group->subgroups = it;
  }
  if (it != NULL)
    *uses_p = ++it->uses;
  perigee__unlock(&group->mutex);
  return it != NULL ? 0 : perigee__fail(PERIGEE_ENOMEM, "no memory for a subgroup");
}

int perigee__group_of_members(perigee_group *parent, int first, const char *name, uint64_t id,
                              const int *ranks, int n, int me, int64_t deadline_ns,
                              perigee_group **group_p) {
  int *members = perigee__calloc((size_t)n, sizeof(int));
  if (members == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %d ranks", n);
  for (int i = 0; i < n; i++)
    members[i] = parent->members[ranks[i]];
  const perigee__group_params params = {
      .name = name,
      .id = id,
      .rank = me,
      .nranks = n,
      .members = members,
      .world = parent->world,
      .stack = parent->stack,
      .timeout_ns = atomic_load_explicit(&parent->timeout_ns, memory_order_relaxed),
      .deadline_ns = deadline_ns,
      .parent = parent,
      .first = first,
      .layer_options = parent->layer_options,
      .tuning = parent->tuning,
  };
  int rc = perigee__group_open(&params, group_p);
  free(members);
  return rc;
}

/* ---- subgroup ---------------------------------------------------------------------------------- */

static int check_ranks(const perigee_group *group, const int *ranks, int n) {
  if (n < 1)
    return perigee__fail(PERIGEE_EINVAL, "subgroup: an empty list of ranks");
  for (int i = 0; i < n; i++) {
    if (ranks[i] < 0 || ranks[i] >= group->nranks)
      return perigee__fail(PERIGEE_ERANGE,
                           "subgroup: ranks[%d] is %d, not a rank of this group (0 to %d)", i + 1,
                           ranks[i], group->nranks - 1);
    for (int j = 0; j < i; j++)
      if (ranks[j] == ranks[i])
        return perigee__fail(PERIGEE_EINVAL, "subgroup: rank %d is in the list twice", ranks[i]);
  }
  return 0;
}

static int subgroup(perigee_group *group, int first, const int *ranks, int n, const char *name,
                    perigee_group **group_p) {
  PERIGEE_TRY(check_ranks(group, ranks, n));
  int me = -1;
  uint64_t hash = (uint64_t)n;
  for (int i = 0; i < n; i++) {
    hash = perigee__hash_mix(hash, (uint64_t)ranks[i]);
    if (ranks[i] == group->rank)
      me = i;
  }
  for (const char *c = name; c != NULL && *c != '\0'; c++)
    hash = perigee__hash_mix(hash, (uint64_t)(unsigned char)*c);
  if (first > 0)
    hash = perigee__hash_mix(hash, (uint64_t)first << 32);
  if (me < 0) {
    *group_p = NULL;
    return 0;
  }
  unsigned uses = 0;
  PERIGEE_TRY(count_use(group, hash, &uses));
  char full[64];
  if (name != NULL)
    snprintf(full, sizeof(full), "%.24s/%.24s.%u", group->name, name, uses);
  else
    snprintf(full, sizeof(full), "%.32s/g%08" PRIx64 ".%u", group->name, hash & 0xffffffffu, uses);
  int64_t deadline =
      perigee__deadline_in(atomic_load_explicit(&group->timeout_ns, memory_order_relaxed));
  /* A layer that makes one in its open has the time that opening has. */
  if (first > 0 && group->open_deadline_ns < deadline && !perigee__passed(group->open_deadline_ns))
    deadline = group->open_deadline_ns;
  uint64_t id = perigee__hash_mix(perigee__hash_mix(group->id, hash), uses);
  return perigee__group_of_members(group, first, full, id, ranks, n, me, deadline, group_p);
}

int perigee_group_subgroup(perigee_group *group, const int *ranks, int n, const char *name,
                           perigee_group **group_p) {
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  return perigee__group_leave(group, subgroup(group, 0, ranks, n, name, group_p));
}

int perigee_layer_subgroup(perigee_layer *layer, const int *ranks, int n, const char *name,
                           perigee_group **group_p) {
  perigee_group *group = layer->group;
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  int first = layer->index + 1;
  int rc = first < group->nlayers
               ? subgroup(group, first, ranks, n, name, group_p)
               : perigee__fail(PERIGEE_ENOTSUP, "subgroup: there is no layer below '%s'",
                               layer->backend->name);
  return perigee__group_leave(group, rc);
}

/* ---- split ------------------------------------------------------------------------------------- */

typedef struct place {
  int color, key, rank;
} place;

static int by_key(const void *a, const void *b) {
  const place *x = a, *y = b;
  return x->key != y->key ? (x->key < y->key ? -1 : 1) : x->rank - y->rank;
}

/* Whether waiting for the others makes sense: not when this rank closes the group, or one of them is dead. */
static int check_alive(perigee_group *group) {
  perigee_error error;
  int rc = perigee_group_failed(group, &error);
  return rc == PERIGEE_ECLOSED || rc == PERIGEE_EPEERDEAD ? perigee__fail_with(&error) : 0;
}

/* What rank r wrote. Waits in slices, so that the end of the group ends the wait. */
static int read_place(perigee_group *group, const char *key, int64_t deadline_ns,
                      perigee_bytes *bytes) {
  for (;;) {
    PERIGEE_TRY(check_alive(group));
    /* When time is over: one look all the same, so that all that are missing are named and no other. */
    int64_t left = perigee__time_left(deadline_ns);
    int64_t slice = left < SLICE_NS ? left : SLICE_NS;
    int rc = perigee_store_get(group->store, key,
                               slice > PERIGEE_NS_PER_MS ? slice : PERIGEE_NS_PER_MS, bytes);
    if (rc != PERIGEE_ETIMEDOUT || perigee__passed(deadline_ns))
      return rc;
  }
}

/* Tell the others this rank's color and key and read theirs. */
static int exchange(perigee_group *group, unsigned k, place *places, int64_t deadline_ns) {
  char key[64], value[64];
  snprintf(key, sizeof(key), "split%u/%d", k, group->rank);
  int len =
      snprintf(value, sizeof(value), "%d %d", places[group->rank].color, places[group->rank].key);
  PERIGEE_TRY(perigee_store_set(group->store, key, value, (size_t)len));
  perigee_error late;
  perigee__error_init(&late);
  for (int r = 0; r < group->nranks; r++) {
    perigee_bytes bytes;
    snprintf(key, sizeof(key), "split%u/%d", k, r);
    int rc = read_place(group, key, deadline_ns, &bytes);
    if (rc == PERIGEE_ETIMEDOUT) {
      perigee__error_add_rank(&late, r);
      continue;
    }
    PERIGEE_TRY(rc);
    snprintf(value, sizeof(value), "%.*s", (int)bytes.size, bytes.data);
    perigee_bytes_free(&bytes);
    places[r].rank = r;
    if (sscanf(value, "%d %d", &places[r].color, &places[r].key) != 2)
      return perigee__fail(PERIGEE_EPROTO, "split: rank %d wrote '%s'", r, value);
  }
  if (late.nranks == 0)
    return 0;
  char ranks[128];
  perigee__error_ranks_text(&late, ranks, sizeof(ranks));
  snprintf(late.message, sizeof(late.message), "split: timed out, missing ranks %s", ranks);
  late.code = PERIGEE_ETIMEDOUT;
  late.rank = group->rank;
  snprintf(late.group, sizeof(late.group), "%s", group->name);
  return perigee__fail_with(&late);
}

static int split(perigee_group *group, int color, int key, const char *name,
                 perigee_group **group_p) {
  perigee__lock(&group->mutex);
  unsigned k = ++group->splits;
  perigee__unlock(&group->mutex);
  place *places = perigee__calloc((size_t)group->nranks, sizeof(*places));
  int *ranks = perigee__calloc((size_t)group->nranks, sizeof(*ranks));
  int rc = 0;
  if (places == NULL || ranks == NULL)
    PERIGEE_TRY_GOTO(perigee__fail(PERIGEE_ENOMEM, "no memory for a split"), out);
  /* Without a store there are no other processes: every rank does what this one does. */
  for (int r = 0; r < group->nranks; r++)
    places[r] = (place){color, key, r};
  int64_t deadline =
      perigee__deadline_in(atomic_load_explicit(&group->timeout_ns, memory_order_relaxed));
  if (group->nranks > 1 && group->store != NULL)
    PERIGEE_TRY_GOTO(exchange(group, k, places, deadline), out);
  if (color < 0) {
    *group_p = NULL;
    goto out;
  }
  int n = 0;
  for (int r = 0; r < group->nranks; r++)
    if (places[r].color == color)
      places[n++] = places[r];
  qsort(places, (size_t)n, sizeof(*places), by_key);
  int me = 0;
  for (int i = 0; i < n; i++) {
    ranks[i] = places[i].rank;
    if (ranks[i] == group->rank)
      me = i;
  }
  char full[64];
  snprintf(full, sizeof(full), "%.32s/%.12s%u.%d", group->name, name != NULL ? name : "s", k,
           color);
  uint64_t id = perigee__hash_mix(perigee__hash_mix(group->id, ((uint64_t)k << 32) | 1u),
                                  (uint64_t)(unsigned)color);
  rc = perigee__group_of_members(group, 0, full, id, ranks, n, me, deadline, group_p);
out:
  free(places);
  free(ranks);
  return rc;
}

/* from: index of the first layer that may have an override. */
static int split_from(perigee_group *group, int from, int color, int key, const char *name,
                      perigee_group **group_p) {
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  const perigee_layer *layer = perigee__layer_with(group, from, PERIGEE_METHOD_SPLIT);
  if (layer == NULL)
    return perigee__group_leave(group, split(group, color, key, name, group_p));
  perigee_group *made = NULL;
  int rc = layer->backend->ops.split_group(layer->self, color, key, name, &made);
  if (rc == 0 && made == NULL && color >= 0)
    rc = perigee__fail(PERIGEE_EINVAL, "split: layer '%s' made no group for color %d", layer->name,
                       color);
  if (rc == 0)
    *group_p = made;
  return perigee__group_leave(group, rc);
}

int perigee_group_split(perigee_group *group, int color, int key, const char *name,
                        perigee_group **group_p) {
  return split_from(group, 0, color, key, name, group_p);
}

int perigee_layer_split(perigee_layer *layer, int color, int key, const char *name,
                        perigee_group **group_p) {
  return split_from(layer->group, layer->index + 1, color, key, name, group_p);
}
