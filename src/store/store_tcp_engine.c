#include "store/store_tcp_engine.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"

/* How long the one woken by a push may take to fetch the item: a round trip with room to spare. */
#define BATON_NS (100 * PERIGEE_NS_PER_MS)
/* Replies that a peer may leave unread. One reply of any size is let through when nothing else waits. */
enum {
  OUT_MAX = 32 << 20
};

/* ---- replies ---- */

static void announce(perigee__peer *peer) {
  if (perigee__list_empty(&peer->ready))
    perigee__list_append(&peer->engine->ready, &peer->ready);
}

static void reply_u8(perigee__peer *peer, uint8_t v) {
  perigee__buf_u8(&peer->out, v);
  announce(peer);
}

static void reply_i64(perigee__peer *peer, int64_t v) {
  perigee__buf_i64(&peer->out, v);
  announce(peer);
}

/* backlog: what was unread before this request's reply was begun. */
static int reply_bytes(perigee__peer *peer, size_t backlog, const void *data, size_t size) {
  if (peer->out.size + size > PERIGEE__WIRE_REQUEST_MAX)
    return perigee__fail(PERIGEE_ELIMIT, "reply of more than %d bytes", PERIGEE__WIRE_REQUEST_MAX);
  if (backlog > 0 && peer->out.size + peer->in_flight + size > OUT_MAX)
    return perigee__fail(PERIGEE_ELIMIT, "it leaves more than %d bytes of replies unread", OUT_MAX);
  perigee__buf_bytes(&peer->out, data, size);
  announce(peer);
  return 0;
}

static size_t backlog_of(const perigee__peer *peer) { return peer->out.size + peer->in_flight; }

/* ---- waiting ---- */

/* End the peer's wait without a word. */
static void wait_drop(perigee__peer *peer) {
  for (size_t i = 0; i < peer->nwaiters; i++) {
    perigee__waiter *w = &peer->waiters[i];
    perigee__list_remove(&w->node);
    perigee__table_release(&peer->engine->table, w->entry);
  }
  free(peer->waiters);
  peer->waiters = NULL;
  peer->nwaiters = peer->missing = 0;
}

/*
 * Take a waiter off its list. Returns whether that ended its peer's wait. The entry w is on must be kept by the caller;
 * other entries of the wait may go.
 */
static bool serve(perigee__waiter *w) {
  perigee__peer *peer = w->peer;
  perigee__list_remove(&w->node);
  w->entry = NULL; /* it may go before the wait does */
  if (--peer->missing > 0)
    return false;
  wait_drop(peer);
  reply_u8(peer, PERIGEE__WIRE_STOP_WAITING);
  return true;
}

/* The first waiter of the kind on the entry, NULL when there is none. */
static perigee__waiter *waiter_on(perigee__entry *e, bool barrier) {
  PERIGEE_LIST_EACH(node, &e->waiters) {
    perigee__waiter *w = PERIGEE_CONTAINER_OF(node, perigee__waiter, node);
    if (w->barrier == barrier)
      return w;
  }
  return NULL;
}

static void wake_all(perigee__entry *e, bool barrier) {
  e->pins++;
  for (perigee__waiter *w; (w = waiter_on(e, barrier)) != NULL;)
    serve(w);
  e->pins--;
}

/* Wake waiters until one is free to fetch an item; it gets the baton. */
static void wake_one(perigee__entry *e) {
  e->pins++;
  for (perigee__waiter *w; (w = waiter_on(e, false)) != NULL;) {
    perigee__peer *peer = w->peer;
    if (!serve(w))
      continue;
    if (peer->baton_entry == NULL) {
      e->pins++;
      peer->baton_entry = e;
      peer->baton_due_ns = perigee__now_ns() + BATON_NS;
      perigee__list_append(&peer->engine->batons, &peer->baton);
      break;
    }
  }
  e->pins--;
}

/* Give up the baton: whoever comes next is woken if there is something left for it. */
static void baton_pass(perigee__peer *peer) {
  perigee__entry *e = peer->baton_entry;
  if (e == NULL)
    return;
  peer->baton_entry = NULL;
  perigee__list_remove(&peer->baton);
  if (e->queue_len > 0)
    wake_one(e);
  e->pins--;
  perigee__table_release(&peer->engine->table, e);
}

/* After a write to the plain key: who waits for it to exist, and who is in a barrier on it, is served. existed: it had a value
 * (if it only had a queue, those left waiting are waiting for an item promised to another). */
static void written(perigee__entry *e, bool existed) {
  if (!existed)
    wake_all(e, false);
  wake_all(e, true);
}

static int wait_register(perigee__peer *peer, perigee__entry **entries, size_t n, bool barrier) {
  perigee__waiter *waiters = perigee__calloc(n, sizeof(*waiters));
  if (waiters == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory to wait for %zu keys", n);
  for (size_t i = 0; i < n; i++) {
    waiters[i] = (perigee__waiter){.entry = entries[i], .peer = peer, .barrier = barrier};
    perigee__list_append(&entries[i]->waiters, &waiters[i].node);
  }
  peer->waiters = waiters;
  peer->nwaiters = peer->missing = n;
  return 0;
}

/* Entries of the request's keys that do not exist, in list; their number in *n_p. On failure those obtained are released. */
static int missing_keys(perigee__peer *peer, perigee__entry **list, size_t *n_p) {
  perigee__table *t = &peer->engine->table;
  const perigee__parser *p = &peer->parser;
  size_t n = 0;
  for (size_t i = 0; i < p->nspans; i++) {
    perigee__entry *e = perigee__table_obtain(t, perigee__parser_text(p, i), p->spans[i].size);
    if (e == NULL) {
      while (n > 0) {
        n--;
        list[n]->pins--;
        perigee__table_release(t, list[n]);
      }
      return perigee_last_error()->code;
    }
    if (perigee__entry_exists(e))
      continue;
    e->pins++; /* the same key may come twice: a release in between must not free it */
    list[n++] = e;
  }
  *n_p = n;
  return 0;
}

static int do_wait(perigee__peer *peer) {
  size_t n = 0;
  if (peer->waiters != NULL)
    return perigee__fail(PERIGEE_EPROTO, "WAIT while another WAIT or BARRIER is pending");
  perigee__entry **list = perigee__calloc(peer->parser.nspans, sizeof(*list));
  if (list == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory to wait for %zu keys", peer->parser.nspans);
  int rc = missing_keys(peer, list, &n);
  if (rc == 0 && n == 0)
    reply_u8(peer, PERIGEE__WIRE_STOP_WAITING);
  else if (rc == 0) {
    rc = wait_register(peer, list, n, false);
    for (size_t i = 0; i < n; i++) {
      list[i]->pins--;
      if (rc < 0)
        perigee__table_release(&peer->engine->table, list[i]);
    }
  }
  free(list);
  return rc;
}

static int do_barrier(perigee__peer *peer, perigee__entry *e) {
  int64_t arrived;
  if (peer->waiters != NULL)
    return perigee__fail(PERIGEE_EPROTO, "BARRIER while another WAIT or BARRIER is pending");
  bool existed = e->value != NULL;
  PERIGEE_TRY(perigee__entry_add(&peer->engine->table, e, 1, &arrived));
  if (!existed)
    wake_all(e, false);
  if (arrived < peer->parser.number)
    return wait_register(peer, &e, 1, true);
  wake_all(e, true);
  reply_u8(peer, PERIGEE__WIRE_STOP_WAITING);
  return 0;
}

/* ---- requests ---- */

static perigee__entry *find(const perigee__peer *peer, size_t span) {
  const perigee__parser *p = &peer->parser;
  return perigee__table_find(&peer->engine->table, perigee__parser_text(p, span),
                             p->spans[span].size);
}

static int do_get(perigee__peer *peer) {
  size_t backlog = backlog_of(peer);
  for (size_t i = 0; i < peer->parser.nspans; i++) {
    const perigee__entry *e = find(peer, i);
    bool present = e != NULL && e->value != NULL;
    PERIGEE_TRY(reply_bytes(peer, backlog, present ? e->value : "", present ? e->size : 0));
  }
  return 0;
}

static void do_check(perigee__peer *peer) {
  bool all = true;
  for (size_t i = 0; i < peer->parser.nspans && all; i++)
    all = perigee__entry_exists(find(peer, i));
  reply_u8(peer, all ? PERIGEE__WIRE_READY : PERIGEE__WIRE_NOT_READY);
}

static void do_delete(perigee__peer *peer) {
  perigee__entry *e = find(peer, 0);
  bool deleted = e != NULL && perigee__entry_unset(&peer->engine->table, e);
  perigee__table_release(&peer->engine->table, e);
  reply_i64(peer, deleted);
}

static int do_pop(perigee__peer *peer) {
  perigee__entry *e = find(peer, 0);
  size_t backlog = backlog_of(peer);
  int64_t len = e != NULL ? e->queue_len : 0;
  reply_i64(peer, len);
  if (len == 0)
    return 0;
  perigee__item *item = perigee__entry_pop(&peer->engine->table, e);
  int rc = reply_bytes(peer, backlog, item->data, item->size);
  free(item);
  perigee__table_release(&peer->engine->table, e);
  return rc;
}

typedef struct listing {
  perigee__peer *peer;
  size_t backlog;
  int rc;
} listing;

static void list_one(const perigee__entry *e, void *arg) {
  listing *l = arg;
  if (e->value != NULL && l->rc == 0)
    l->rc = reply_bytes(l->peer, l->backlog, e->key, e->key_size);
}

static int do_list(perigee__peer *peer) {
  listing l = {.peer = peer, .backlog = backlog_of(peer)};
  reply_i64(peer, (int64_t)peer->engine->table.nvalues);
  perigee__table_each(&peer->engine->table, list_one, &l);
  return l.rc;
}

static int do_compare_set(perigee__peer *peer, perigee__entry *e) {
  const perigee__parser *p = &peer->parser;
  const char *expected = perigee__parser_text(p, 1), *desired = perigee__parser_text(p, 2);
  size_t backlog = backlog_of(peer);
  bool existed = e->value != NULL;
  if (!perigee__entry_matches(e, expected, p->spans[1].size))
    /* a missing key replies what was expected: nothing was stored, and nobody is woken */
    return e->value != NULL ? reply_bytes(peer, backlog, e->value, e->size)
                            : reply_bytes(peer, backlog, expected, p->spans[1].size);
  PERIGEE_TRY(perigee__entry_set(&peer->engine->table, e, desired, p->spans[2].size));
  written(e, existed);
  return reply_bytes(peer, backlog, desired, p->spans[2].size);
}

/* Requests that may change the entry of their first key, or of each key of a MULTI_SET (span: that key). */
static int change(perigee__peer *peer, perigee__entry *e, size_t span) {
  perigee__table *t = &peer->engine->table;
  const perigee__parser *p = &peer->parser;
  bool existed = e->value != NULL;
  const char *value = span + 1 < p->nspans ? perigee__parser_text(p, span + 1) : "";
  size_t size = span + 1 < p->nspans ? p->spans[span + 1].size : 0;
  int64_t sum = 0;
  switch (p->code) {
  case PERIGEE__REQ_SET:
  case PERIGEE__REQ_MULTI_SET:
    PERIGEE_TRY(perigee__entry_set(t, e, value, size));
    break;
  case PERIGEE__REQ_APPEND:
    PERIGEE_TRY(perigee__entry_append(t, e, value, size));
    break;
  case PERIGEE__REQ_ADD:
    PERIGEE_TRY(perigee__entry_add(t, e, p->number, &sum));
    reply_i64(peer, sum);
    break;
  case PERIGEE__REQ_QUEUE_PUSH:
    PERIGEE_TRY(perigee__entry_push(t, e, value, size));
    wake_one(e);
    return 0;
  case PERIGEE__REQ_COMPARE_SET:
    return do_compare_set(peer, e);
  default:
    return do_barrier(peer, e);
  }
  written(e, existed);
  return 0;
}

static int do_change(perigee__peer *peer) {
  perigee__table *t = &peer->engine->table;
  const perigee__parser *p = &peer->parser;
  size_t step = p->code == PERIGEE__REQ_MULTI_SET ? 2 : p->nspans;
  int rc = 0;
  for (size_t i = 0; i < p->nspans && rc == 0; i += step) {
    perigee__entry *e = perigee__table_obtain(t, perigee__parser_text(p, i), p->spans[i].size);
    if (e == NULL)
      return perigee_last_error()->code;
    e->pins++;
    rc = change(peer, e, i);
    e->pins--;
    perigee__table_release(t, e);
  }
  return rc;
}

static int do_queue_len(perigee__peer *peer) {
  const perigee__entry *e = find(peer, 0);
  reply_i64(peer, e != NULL ? e->queue_len : 0);
  return 0;
}

static int run(perigee__peer *peer) {
  switch (peer->parser.code) {
  case PERIGEE__REQ_VALIDATE:
    return 0;
  case PERIGEE__REQ_GET:
  case PERIGEE__REQ_MULTI_GET:
    return do_get(peer);
  case PERIGEE__REQ_CHECK:
    return do_check(peer), 0;
  case PERIGEE__REQ_WAIT:
    return do_wait(peer);
  case PERIGEE__REQ_GETNUMKEYS:
    return reply_i64(peer, (int64_t)peer->engine->table.nvalues), 0;
  case PERIGEE__REQ_DELETE_KEY:
    return do_delete(peer), 0;
  case PERIGEE__REQ_CANCEL_WAIT:
    wait_drop(peer);
    return reply_u8(peer, PERIGEE__WIRE_WAIT_CANCELED), 0;
  case PERIGEE__REQ_PING:
    perigee__buf_u32(&peer->out, peer->parser.word);
    return announce(peer), 0;
  case PERIGEE__REQ_QUEUE_POP:
    return do_pop(peer);
  case PERIGEE__REQ_QUEUE_LEN:
    return do_queue_len(peer);
  case PERIGEE__REQ_LIST_KEYS:
    return do_list(peer);
  default:
    return do_change(peer);
  }
}

/* ---- peers ---- */

int perigee__engine_init(perigee__engine *engine, size_t bytes_max) {
  perigee__list_init(&engine->ready);
  perigee__list_init(&engine->batons);
  return perigee__table_init(&engine->table, bytes_max);
}

void perigee__engine_fini(perigee__engine *engine) { perigee__table_fini(&engine->table); }

int64_t perigee__engine_tick(perigee__engine *engine, int64_t now_ns) {
  while (!perigee__list_empty(&engine->batons)) {
    perigee__peer *oldest = PERIGEE_CONTAINER_OF(engine->batons.next, perigee__peer, baton);
    if (oldest->baton_due_ns > now_ns)
      return oldest->baton_due_ns;
    baton_pass(oldest);
  }
  return PERIGEE_NEVER;
}

void perigee__peer_init(perigee__peer *peer, perigee__engine *engine) {
  *peer = (perigee__peer){.engine = engine};
  perigee__parser_init(&peer->parser);
  perigee__list_init(&peer->ready);
  perigee__list_init(&peer->baton);
}

void perigee__peer_fini(perigee__peer *peer) {
  wait_drop(peer);
  baton_pass(peer);
  perigee__list_remove(&peer->ready);
  perigee__parser_fini(&peer->parser);
  perigee__buf_fini(&peer->out);
}

int perigee__peer_feed(perigee__peer *peer, const void *data, size_t size) {
  const char *bytes = data;
  while (size > 0) {
    size_t used = 0;
    int rc = perigee__parser_feed(&peer->parser, bytes, size, &used);
    if (rc == 1 && backlog_of(peer) > OUT_MAX)
      rc = perigee__fail(PERIGEE_ELIMIT, "it leaves more than %d bytes of replies unread", OUT_MAX);
    if (rc == 1) {
      /* The one woken by a push either fetches the item with this request, or does not: then it is the next one's. */
      rc = run(peer);
      baton_pass(peer);
    }
    if (rc == 0 && peer->out.failed)
      rc = perigee__fail(PERIGEE_ENOMEM, "no memory for a reply");
    if (rc < 0)
      return rc;
    bytes += used;
    size -= used;
  }
  return 0;
}
