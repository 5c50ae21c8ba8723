/*
 * Large messages between ranks of one host: the receiver reads them from the sender's memory, once.
 *
 * The RTS says where the bytes are. A receiver that can read the sender (vm.h) does not answer CTS but reads, a piece on each pass over
 * the rings, so that nobody else waits for long, and then says PULLED. Whatever goes wrong, CTS and DATA still work. A sender that waits
 * meanwhile writes a part itself (help.c).
 * A sender that takes its message back (cancel, deadline, failure) gets its memory at once, while the receiver may be reading it. So it
 * counts up `revoked` in the ring before, once for each RTS_CANCELED. A receiver that finds there more than it has had RTS_CANCELED does not
 * trust what it has read, and asks by CTS; the answer is DATA, or the RTS_CANCELED that is on its way.
 *   sender: count up, fence, its caller changes the memory      receiver: read, fence, look
 */
#include <errno.h>

#include "transport/mesh_impl.h"

/* Bytes read while others wait for the lock. */
enum {
  PIECE = 1 << 20
};

bool perigee__pull_begin(perigee__peer *peer, perigee__xfer *xfer, uint64_t id, uint64_t at) {
  if (at == 0 || peer->chan.stream != &peer->ring.stream || !perigee__ring_readable(&peer->ring))
    return false;
  xfer->id = id;
  xfer->remote = at;
  xfer->moved = 0;
  xfer->phase = PERIGEE_XFER_PULLING;
  perigee__list_append(&peer->chan.pulls, &xfer->node);
  peer->mesh->n_pulls++;
  return true;
}

void perigee__pull_forget(perigee__peer *peer, perigee__xfer *xfer) {
  if (xfer->parts > 0)
    perigee__help_close(peer, xfer);
  perigee__list_remove(&xfer->node);
  peer->mesh->n_pulls--;
}

void perigee__pull_tell(perigee__peer *peer, uint64_t id) {
  const perigee__frame pulled = {.type = PERIGEE_FRAME_PULLED, .id = id};
  perigee__channel_queue(peer, &pulled, NULL, 0, NULL, NULL);
}

void perigee__pull_revoke(perigee__peer *peer) {
  if (peer->ring.base == NULL)
    return;
  atomic_fetch_add(&peer->ring.out->revoked, 1); /* seq_cst: pairs with the fence in go_on */
  atomic_thread_fence(memory_order_seq_cst);
}

/* Read a piece, or parts of about as many bytes in all. Returns 1 when all is there, 0 when not (*moved_p: whether something was read), or
 * -errno. */
static int read_some(perigee__peer *peer, perigee__xfer *xfer, size_t all, bool *moved_p) {
  int32_t pid = peer->ring.in->face.pid;
  size_t now, done = 0;
  if (xfer->parts == 0) {
    now = all - xfer->moved < PIECE ? all - xfer->moved : PIECE;
    PERIGEE_TRY(
        perigee__vm_read(pid, (char *)xfer->buf + xfer->moved, xfer->remote + xfer->moved, now));
    xfer->moved += now;
    return xfer->moved == all;
  }
  for (; done < PIECE; done += now) {
    int64_t number = perigee__help_claim(peer, xfer);
    if (number < 0) {
      *moved_p = done > 0;
      return perigee__help_state(peer, xfer);
    }
    size_t at = perigee__help_part(all, (uint64_t)number, &now);
    PERIGEE_TRY(perigee__vm_read(pid, (char *)xfer->buf + at, xfer->remote + at, now));
  }
  return 0;
}

/* Returns whether something moved. */
static bool go_on(perigee__peer *peer, perigee__xfer *xfer) {
  size_t all = xfer->received < xfer->size ? xfer->received : xfer->size;
  if (xfer->moved == 0 && xfer->parts == 0)
    perigee__help_open(peer, xfer);
  bool moved = true;
  int rc = read_some(peer, xfer, all, &moved);
  if (rc == 0)
    return moved;
  atomic_thread_fence(memory_order_seq_cst);
  perigee__pull_forget(peer, xfer);
  if (rc > 0 && atomic_load(&peer->ring.in->revoked) == peer->chan.canceled) {
    perigee__pull_tell(peer, xfer->id);
    perigee__xfer_end(peer->mesh, xfer, xfer->received > xfer->size ? PERIGEE_ETRUNC : 0);
    return true;
  }
  if (rc == -EPERM || rc == -ENOSYS)
    peer->ring.readable = -1;
  perigee__channel_clear_to_send(peer, xfer, xfer->id);
  return true;
}

bool perigee__pull_some(perigee__mesh *mesh) {
  if (PERIGEE_LIKELY(mesh->n_pulls == 0))
    return false;
  bool moved = false;
  for (int r = 0; r < mesh->nranks; r++) {
    perigee__peer *peer = &mesh->peers[r];
    if (r != mesh->rank && peer->ring.base != NULL && !perigee__list_empty(&peer->chan.pulls))
      moved |= go_on(peer, PERIGEE_CONTAINER_OF(peer->chan.pulls.next, perigee__xfer, node));
  }
  return moved;
}
