/* Posting messages and taking them back. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/futex.h"
#include "transport/mesh_impl.h"

/* Looks at a ring of who waits: without PAUSE for about twice as long as a line takes to come over, then with it for a few us. */
enum {
  BARE_POLLS = 100,
  POLLS = 150
};

/* Sends that are written together. HELD_FRAMES: no more than one write takes. */
enum {
  BURST_BEGINS = 4,
  HELD_FRAMES = 32,
  HELD_BYTES = 16 << 10
};
#define BURST_GAP_NS (5 * PERIGEE_NS_PER_US)

void perigee__xfer_end(perigee__mesh *mesh, perigee__xfer *xfer, int status) {
  xfer->status = status;
  xfer->phase = PERIGEE_XFER_DONE;
  if (xfer->on_done != NULL && !(xfer->at_once && xfer->posting)) {
    perigee__list_append(&mesh->completed, &xfer->node); /* called when the lock is dropped */
    return;
  }
  if (!xfer->posting) /* else its waiter is the caller */
    mesh->ended = true;
  atomic_store_explicit(&xfer->done, 1,
                        memory_order_release); /* the waiter acquires; not touched after */
}

static void start(perigee__xfer *xfer, perigee__fate *fate, int peer, perigee__key key, void *buf,
                  size_t size, uint64_t fp) {
  perigee__list_init(&xfer->node);
  xfer->fate = fate;
  xfer->peer = peer;
  xfer->key = key;
  xfer->buf = buf;
  xfer->size = size;
  xfer->fp = fp;
  xfer->status = 0;
  xfer->received = 0;
  xfer->peer_fp = 0;
  xfer->id = 0;
  xfer->posting = true;
  xfer->phase = 0;
  xfer->parts = 0;
  atomic_store_explicit(&xfer->done, 0, memory_order_relaxed);
}

/* Code of a xfer that may not be started: the group has failed. */
static int refused(const perigee__fate *fate) {
  if (fate == NULL || !perigee__fate_failed(fate))
    return 0;
  return fate->error.code == PERIGEE_ECLOSED ? PERIGEE_ECLOSED : PERIGEE_EABORTED;
}

/* To ourselves: straight into the receive, or kept (without a budget: it is our own memory). */
static void send_to_self(perigee__mesh *mesh, perigee__xfer *xfer) {
  perigee__xfer *recv = perigee__match_arrived(&mesh->match, mesh->rank, &xfer->key);
  perigee__early *early = perigee__calloc(1, sizeof(*early));
  if (early == NULL || (xfer->size > 0 && (early->data = malloc(xfer->size)) == NULL)) {
    free(early);
    perigee__xfer_end(mesh, xfer, PERIGEE_ENOMEM);
    if (recv != NULL)
      perigee__xfer_end(mesh, recv, PERIGEE_ENOMEM);
    return;
  }
  early->peer = mesh->rank;
  early->key = xfer->key;
  early->fp = xfer->fp;
  early->length = early->have = xfer->size;
  perigee__list_init(&early->bucket);
  perigee__list_init(&early->arrival);
  if (xfer->size > 0)
    memcpy(early->data, xfer->buf, xfer->size);
  if (recv != NULL)
    perigee__channel_take_early(mesh, early, recv);
  else
    perigee__match_keep(&mesh->match, early);
  perigee__xfer_end(mesh, xfer, 0);
}

/* Why nothing goes to a peer or comes from it any more; 0 when it does. */
static int gone(const perigee__mesh *mesh, const perigee__fate *fate, int peer) {
  if (peer < 0 || peer == mesh->rank)
    return 0;
  if (mesh->peers[peer].dead)
    return PERIGEE_EPEERDEAD;
  if (mesh->peers[peer].closed)
    return PERIGEE_EPEERCLOSED;
  int member = fate != NULL && fate->some_left ? perigee__fate_rank_of(fate, peer) : -1;
  return member >= 0 && fate->left[member] ? PERIGEE_EPEERCLOSED : 0;
}

/* ---- deadlines --------------------------------------------------------------------------------- */

static void on_late(uv_timer_t *timer);

/* Have the timer run at mesh->late_ns. */
static void set_timer(perigee__mesh *mesh) {
  uv_update_time(perigee__loop_uv(mesh->loop));
  int64_t left = perigee__time_left(mesh->late_ns);
  /* Rounded up: nothing ends early. */
  uv_timer_start(&mesh->late, on_late, (uint64_t)(left / PERIGEE_NS_PER_MS + 1), 0);
}

static void on_late(uv_timer_t *timer) {
  perigee__mesh *mesh = timer->data;
  mesh->late_ns = perigee__end_late(mesh, perigee__now_ns());
  if (mesh->late_ns != PERIGEE_NEVER)
    set_timer(mesh);
}

void perigee__xfer_timer_init(perigee__mesh *mesh) {
  mesh->late_ns = PERIGEE_NEVER;
  perigee__loop_lock(mesh->loop);
  uv_timer_init(perigee__loop_uv(mesh->loop), &mesh->late);
  mesh->late.data = mesh;
  perigee__loop_unlock(mesh->loop);
}

/* ---- posting ----------------------------------------------------------------------------------- */

/*
 * Whether a send that is queued may wait a moment for others to go with it. Sends that follow each other closely, and that nobody waits for
 * yet, cost a fraction when they are written together. Who waits for any message writes them first, and so does every other call; the
 * I/O thread does when there is none, in its next nap (a millisecond). The first of them never wait.
 */
static bool may_wait(perigee__channel *chan, const perigee__xfer *xfer) {
  if (xfer->on_done == NULL || xfer->phase != PERIGEE_XFER_QUEUED || chan->stream == NULL ||
      !chan->stream->ops->staged)
    return false;
  int64_t now = perigee__now_ns();
  chan->burst = now - chan->sent_ns < BURST_GAP_NS ? chan->burst + 1 : 0;
  chan->sent_ns = now;
  chan->held += (uint32_t)xfer->size + PERIGEE_FRAME_SIZE;
  return chan->burst >= BURST_BEGINS && chan->burst % HELD_FRAMES != 0 && chan->held < HELD_BYTES;
}

/* The last of a call that posts, and that gives up the lock. ring: where something was put or taken last, or NULL. */
static bool posted(perigee__mesh *mesh, perigee__xfer *xfer, perigee__ring_stream *ring) {
  bool ended = xfer->phase == PERIGEE_XFER_DONE;
  bool timed = !ended && xfer->on_done != NULL && xfer->deadline_ns != 0;
  xfer->posting = false;
  /* Deadlines mostly come in order: the timer is set for the first of many, and finds the next by looking at all. */
  if (timed && xfer->deadline_ns < mesh->late_ns) {
    mesh->late_ns = xfer->deadline_ns;
    set_timer(mesh);
  }
  perigee__loop_used(mesh->loop);
  /* Before callbacks run. */
  if (ring != NULL && PERIGEE_UNLIKELY(!perigee__list_empty(&mesh->completed)))
    perigee__ring_wake(ring);
  bool wake = ring != NULL && perigee__ring_wake_due(ring);
  perigee__loop_unlock(mesh->loop);
  if (wake) { /* the unlock is the barrier; rings live as long as the mesh */
    perigee__unlock_fence();
    perigee__ring_wake_now(ring);
  }
  return ended;
}

bool perigee__mesh_send(perigee__mesh *mesh, perigee__fate *fate, int peer, perigee__key key,
                        const void *buf, size_t size, uint64_t fp, perigee__xfer *xfer) {
  start(xfer, fate, peer, key, (void *)(uintptr_t)buf, size, fp);
  xfer->is_send = true;
  perigee__loop_lock(mesh->loop);
  int status = refused(fate);
  if (status == 0)
    status = gone(mesh, fate, peer);
  if (status < 0)
    perigee__xfer_end(mesh, xfer, status);
  else if (peer == mesh->rank)
    send_to_self(mesh, xfer);
  else {
    mesh->posting_to = &mesh->peers[peer];
    perigee__channel_send(&mesh->peers[peer], xfer);
    mesh->posting_to = NULL;
    mesh->hold = may_wait(&mesh->peers[peer].chan, xfer);
  }
  return posted(mesh, xfer, peer == mesh->rank ? NULL : &mesh->peers[peer].ring);
}

/*
 * Take what is in the ring that the message must come over: then it need not wait for somebody who drives, and its post and its end are
 * one call. Who is going to wait for it anyway polls a moment; that is not worth more than a few times a message's way, because
 * wait.c knows better how to wait.
 */
static void poll_ring(perigee__mesh *mesh, perigee__peer *peer, const perigee__xfer *xfer) {
  bool waits = xfer->waits && mesh->spins_at_all;
  if (!perigee__list_empty(&mesh->dirty))
    perigee__settle(mesh, false);
  for (int i = 0; xfer->phase == PERIGEE_XFER_POSTED; i++) {
    if (peer->chan.stream != &peer->ring.stream)
      return;
    if (perigee__ring_ready(&peer->ring)) {
      perigee__channel_pump_for(peer, xfer);
      perigee__pull_some(mesh);
      if (peer->ring.stuck)
        perigee__peer_mark(peer);
      if (xfer->phase != PERIGEE_XFER_POSTED || !perigee__list_empty(&mesh->dirty))
        return;
      perigee__ring_wake(&peer->ring); /* it may sleep for what was taken, and we poll on */
    }
    if (!waits || i == POLLS || perigee__loop_wanted(mesh->loop) ||
        !perigee__list_empty(&mesh->completed))
      return;
    if (i >= BARE_POLLS)
      perigee__cpu_relax();
  }
}

bool perigee__mesh_recv(perigee__mesh *mesh, perigee__fate *fate, int peer, perigee__key key,
                        void *buf, size_t size, uint64_t expected_fp, perigee__xfer *xfer) {
  start(xfer, fate, peer, key, buf, size, expected_fp);
  xfer->is_send = false;
  perigee__loop_lock(mesh->loop);
  int status = refused(fate);
  perigee__early *early;
  if (status < 0) {
    perigee__xfer_end(mesh, xfer, status);
  } else if ((early = perigee__match_wanted(&mesh->match, xfer)) != NULL) {
    perigee__channel_take_early(mesh, early, xfer);
    perigee__pull_some(mesh);
    if (mesh->n_pulls > 0)
      perigee__loop_kick(mesh->loop); /* somebody goes on with it, should this thread not wait */
  } else if ((status = gone(mesh, fate, peer)) < 0) {
    perigee__xfer_end(mesh, xfer, status);
  } else {
    xfer->phase = PERIGEE_XFER_POSTED;
    perigee__match_post(&mesh->match, xfer);
    /* Who waits for somebody is connected to it, and so sees it die or leave. */
    if (peer >= 0 && peer != mesh->rank && mesh->peers[peer].chan.stream == NULL)
      perigee__link_dial(&mesh->peers[peer]);
    else if (peer >= 0 && peer != mesh->rank)
      poll_ring(mesh, &mesh->peers[peer], xfer);
  }
  return posted(mesh, xfer, peer >= 0 && peer != mesh->rank ? &mesh->peers[peer].ring : NULL);
}

void perigee__mesh_cancel(perigee__mesh *mesh, perigee__xfer *xfer) {
  perigee__loop_lock(mesh->loop);
  if (xfer->phase != PERIGEE_XFER_DONE) {
    if (xfer->phase == PERIGEE_XFER_POSTED) {
      perigee__list_remove(&xfer->node);
    } else if (xfer->phase == PERIGEE_XFER_TAKING) {
      perigee__early *early = mesh->peers[xfer->peer].chan.in_early;
      early->taker = NULL;
      perigee__channel_free_early(mesh, early);
    } else {
      perigee__channel_forget(&mesh->peers[xfer->peer], xfer);
    }
    perigee__xfer_end(mesh, xfer, PERIGEE_ECANCELED);
  }
  perigee__loop_unlock(mesh->loop);
}
