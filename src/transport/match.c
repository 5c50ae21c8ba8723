#include "transport/match.h"

static bool same_key(const perigee__key *a, const perigee__key *b) {
  return a->tag == b->tag && a->group == b->group && a->kind == b->kind;
}

static unsigned bucket_of(int peer, const perigee__key *key) {
  uint64_t h =
      key->tag * UINT64_C(0x9e3779b97f4a7c15) ^ (key->group + (uint64_t)(unsigned)peer * 31);
  h ^= h >> 29;
  h *= UINT64_C(0xbf58476d1ce4e5b9);
  return (unsigned)(h >> 40) % PERIGEE_MATCH_BUCKETS;
}

static perigee__xfer *xfer_of(perigee__node *node) {
  return PERIGEE_CONTAINER_OF(node, perigee__xfer, node);
}

void perigee__match_init(perigee__match *m) {
  for (int i = 0; i < PERIGEE_MATCH_BUCKETS; i++) {
    perigee__list_init(&m->posted[i]);
    perigee__list_init(&m->early[i]);
  }
  perigee__list_init(&m->posted_any);
  perigee__list_init(&m->arrivals);
  m->order = 0;
}

perigee__xfer *perigee__match_arrived(perigee__match *m, int peer, const perigee__key *key) {
  perigee__xfer *best = NULL;
  PERIGEE_LIST_EACH(it, &m->posted[bucket_of(peer, key)]) {
    perigee__xfer *x = xfer_of(it);
    if (x->peer == peer && same_key(&x->key, key)) {
      best = x;
      break;
    }
  }
  PERIGEE_LIST_EACH(it, &m->posted_any) {
    perigee__xfer *x = xfer_of(it);
    if (same_key(&x->key, key)) {
      if (best == NULL || x->id < best->id)
        best = x;
      break;
    }
  }
  if (best != NULL)
    perigee__list_remove(&best->node);
  return best;
}

void perigee__match_keep(perigee__match *m, perigee__early *early) {
  perigee__list_append(&m->early[bucket_of(early->peer, &early->key)], &early->bucket);
  perigee__list_append(&m->arrivals, &early->arrival);
}

void perigee__match_drop(perigee__early *early) {
  perigee__list_remove(&early->bucket);
  perigee__list_remove(&early->arrival);
}

perigee__early *perigee__match_wanted(perigee__match *m, const perigee__xfer *recv) {
  if (recv->peer >= 0) {
    PERIGEE_LIST_EACH(it, &m->early[bucket_of(recv->peer, &recv->key)]) {
      perigee__early *e = PERIGEE_CONTAINER_OF(it, perigee__early, bucket);
      if (e->peer == recv->peer && same_key(&e->key, &recv->key)) {
        perigee__match_drop(e);
        return e;
      }
    }
    return NULL;
  }
  PERIGEE_LIST_EACH(it, &m->arrivals) {
    perigee__early *e = PERIGEE_CONTAINER_OF(it, perigee__early, arrival);
    if (same_key(&e->key, &recv->key)) {
      perigee__match_drop(e);
      return e;
    }
  }
  return NULL;
}

void perigee__match_post(perigee__match *m, perigee__xfer *recv) {
  recv->id = ++m->order;
  perigee__list_append(recv->peer >= 0 ? &m->posted[bucket_of(recv->peer, &recv->key)]
                                       : &m->posted_any,
                       &recv->node);
}

void perigee__match_each_posted(perigee__match *m, void (*fn)(void *arg, perigee__xfer *recv),
                                void *arg) {
  for (int i = 0; i <= PERIGEE_MATCH_BUCKETS; i++) {
    perigee__node *head = i < PERIGEE_MATCH_BUCKETS ? &m->posted[i] : &m->posted_any;
    PERIGEE_LIST_EACH_SAFE(it, next, head) fn(arg, xfer_of(it));
  }
}
