/* Posting messages and taking them back. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/mesh_impl.h"

void perigee__xfer_end(perigee__mesh *mesh, perigee__xfer *xfer, int status) {
  xfer->status = status;
  xfer->phase = PERIGEE_XFER_DONE;
  if (xfer->on_done != NULL) {
    perigee__list_append(&mesh->completed, &xfer->node); /* called when the lock is dropped */
    return;
  }
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
  int member = fate != NULL ? perigee__fate_rank_of(fate, peer) : -1;
  return member >= 0 && fate->left[member] ? PERIGEE_EPEERCLOSED : 0;
}

void perigee__mesh_send(perigee__mesh *mesh, perigee__fate *fate, int peer, perigee__key key,
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
  else
    perigee__channel_send(&mesh->peers[peer], xfer);
  perigee__loop_unlock(mesh->loop);
}

void perigee__mesh_recv(perigee__mesh *mesh, perigee__fate *fate, int peer, perigee__key key,
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
    if (perigee__pull_some(mesh) && mesh->n_pulls > 0)
      perigee__loop_kick(mesh->loop); /* somebody goes on with it, should this thread not wait */
  } else if ((status = gone(mesh, fate, peer)) < 0) {
    perigee__xfer_end(mesh, xfer, status);
  } else {
    xfer->phase = PERIGEE_XFER_POSTED;
    perigee__match_post(&mesh->match, xfer);
    /* Who waits for somebody is connected to it, and so sees it die or leave. */
    if (peer >= 0 && peer != mesh->rank && mesh->peers[peer].chan.stream == NULL)
      perigee__link_dial(&mesh->peers[peer]);
  }
  perigee__loop_unlock(mesh->loop);
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
