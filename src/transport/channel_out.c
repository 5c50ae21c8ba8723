/*
 * Frames on their way out of one connection; and what is put off until nobody walks over lists.
 *
 * Order: as queued, but DATA stands back. It goes in frames of at most PERIGEE_CHUNK bytes; behind each, what was queued meanwhile gets its
 * turn: small messages, announcements, aborts. So a large message delays others by what the stream holds and one frame, not by
 * its length, without a second connection (two of them are no faster: bench_machine). What says that nothing more comes
 * (is_last_word) keeps its place behind data that was queued before it.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/mesh_impl.h"

enum {
  GATHER = 64
}; /* iovecs of one write: 32 frames with payload */

/* ---- memory of frames -------------------------------------------------------------------------- */

static perigee__out *out_new(perigee__mesh *mesh) {
  if (perigee__list_empty(&mesh->spare))
    return perigee__calloc(1, sizeof(perigee__out));
  perigee__out *out = PERIGEE_CONTAINER_OF(mesh->spare.next, perigee__out, node);
  perigee__list_remove(&out->node);
  mesh->n_spare--;
  memset(out, 0, sizeof(*out));
  return out;
}

static void out_free(perigee__mesh *mesh, perigee__out *out) {
  free(out->owned);
  if (mesh->n_spare == PERIGEE_SPARE_OUTS) {
    free(out);
    return;
  }
  mesh->n_spare++;
  perigee__list_append(&mesh->spare, &out->node);
}

/* ---- queueing ---------------------------------------------------------------------------------- */

void perigee__peer_mark(perigee__peer *peer) {
  if (perigee__list_empty(&peer->dirty))
    perigee__list_append(&peer->mesh->dirty, &peer->dirty);
}

/* Why nothing can be sent to a peer; 0 when it can. */
static int unsendable(const perigee__peer *peer) {
  if (peer->dead)
    return PERIGEE_EPEERDEAD;
  if (peer->closed)
    return PERIGEE_EPEERCLOSED;
  return peer->chan.bye ? PERIGEE_ECLOSED : 0;
}

static perigee__out *out_of(perigee__node *node) {
  return PERIGEE_CONTAINER_OF(node, perigee__out, node);
}

static bool is_last_word(const perigee__out *out) {
  return out->frame.type == PERIGEE_FRAME_GOODBYE || out->frame.type == PERIGEE_FRAME_GROUP_CLOSED;
}

/* A new frame, before the data at the end of the list that has not got its turn. */
static void place(perigee__channel *chan, perigee__out *out) {
  perigee__node *before = &chan->out;
  while (out->frame.type != PERIGEE_FRAME_DATA && !is_last_word(out) &&
         before->prev != &chan->out && out_of(before->prev)->frame.type == PERIGEE_FRAME_DATA &&
         !out_of(before->prev)->encoded)
    before = before->prev;
  perigee__list_append(before, &out->node);
}

/* Data that had its turn, behind all that may go first. */
static void place_again(perigee__channel *chan, perigee__out *out) {
  perigee__node *before = out->node.next;
  while (before != &chan->out && !is_last_word(out_of(before)))
    before = before->next;
  perigee__list_remove(&out->node);
  perigee__list_append(before, &out->node);
}

/* A send's frame has gone out. */
static void sent(perigee__peer *peer, perigee__xfer *xfer, uint8_t type) {
  if (type != PERIGEE_FRAME_RTS) {
    perigee__xfer_end(peer->mesh, xfer, 0);
    return;
  }
  xfer->phase = PERIGEE_XFER_RTS_SENT;
  peer->mesh->lent += xfer->size;
  perigee__list_append(&peer->chan.rts_sent, &xfer->node);
}

/* Small frames over a ring need not wait for the next pass, nor a place to wait in. False: it has to be queued. */
static bool sent_in_slot(perigee__peer *peer, const perigee__frame *frame, const void *payload,
                         perigee__xfer *xfer) {
  perigee__channel *chan = &peer->chan;
  if (chan->stream != &peer->ring.stream || !perigee__list_empty(&chan->out) ||
      !perigee__ring_slot_fits(frame) || !perigee__ring_put_slot(&peer->ring, frame, payload))
    return false;
  if (peer->mesh->posting_to != peer)
    perigee__ring_wake(&peer->ring);
  if (xfer != NULL)
    sent(peer, xfer, frame->type);
  return true;
}

void perigee__channel_queue(perigee__peer *peer, const perigee__frame *frame, const void *payload,
                            size_t length, perigee__xfer *xfer, uint8_t *owned) {
  perigee__channel *chan = &peer->chan;
  int refused = unsendable(peer);
  if (refused == 0 && sent_in_slot(peer, frame, payload, xfer))
    return;
  perigee__out *out = refused < 0 ? NULL : out_new(peer->mesh);
  if (out == NULL) {
    free(owned);
    if (xfer != NULL)
      perigee__xfer_end(peer->mesh, xfer, refused < 0 ? refused : PERIGEE_ENOMEM);
    else if (refused == 0)
      perigee__peer_lost(peer, "no memory for what it has to be told");
    return;
  }
  out->frame = *frame;
  out->payload = payload;
  out->length = length;
  out->xfer = xfer;
  out->owned = owned;
  if (xfer != NULL)
    xfer->phase = PERIGEE_XFER_QUEUED;
  chan->bye = frame->type == PERIGEE_FRAME_GOODBYE;
  place(chan, out);
  if (chan->stream != NULL)
    perigee__peer_mark(peer);
  else
    perigee__link_dial(peer);
}

/* ---- writing ----------------------------------------------------------------------------------- */

/* Bytes of the present frame's payload, and with its header. */
static size_t part_of(const perigee__out *out) {
  size_t left = out->length - out->sent;
  return out->frame.type == PERIGEE_FRAME_DATA && left > PERIGEE_CHUNK ? PERIGEE_CHUNK : left;
}
static size_t out_size(const perigee__out *out) { return PERIGEE_FRAME_SIZE + part_of(out); }

/* The iovecs of what is not yet written of the first frames, up to `most` bytes of payload. */
static int gather(perigee__channel *chan, struct iovec iov[GATHER], size_t most) {
  int n = 0;
  PERIGEE_LIST_EACH(it, &chan->out) {
    perigee__out *out = out_of(it);
    if (n + 2 > GATHER || most == 0)
      break;
    if (!out->encoded) {
      out->frame.credit = chan->owed; /* rides along */
      chan->owed = 0;
      if (out->frame.type == PERIGEE_FRAME_DATA) {
        out->frame.at = out->sent;
        out->frame.length = part_of(out);
      }
      perigee__frame_encode(&out->frame, out->header);
      out->encoded = true;
    }
    size_t skip = out->done;
    if (skip < PERIGEE_FRAME_SIZE) {
      iov[n++] = (struct iovec){out->header + skip, PERIGEE_FRAME_SIZE - skip};
      skip = 0;
    } else {
      skip -= PERIGEE_FRAME_SIZE;
    }
    size_t take = part_of(out) - skip < most ? part_of(out) - skip : most;
    if (take > 0)
      iov[n++] = (struct iovec){(void *)(uintptr_t)(out->payload + out->sent + skip), take};
    most -= take;
    if (out->frame.type == PERIGEE_FRAME_DATA)
      break; /* what is queued while it goes out is not to find more of it ahead */
  }
  return n;
}

static void out_finish(perigee__peer *peer, perigee__out *out) {
  perigee__list_remove(&out->node);
  if (out->xfer != NULL)
    sent(peer, out->xfer, out->frame.type);
  out_free(peer->mesh, out);
}

/* So many bytes of the first frames have been taken by the stream. */
static void written(perigee__peer *peer, size_t left) {
  perigee__channel *chan = &peer->chan;
  while (left > 0) {
    perigee__out *out = out_of(chan->out.next);
    size_t take = out_size(out) - out->done < left ? out_size(out) - out->done : left;
    out->done += take;
    left -= take;
    if (out->done < out_size(out))
      return;
    if (out->sent + part_of(out) == out->length) {
      out_finish(peer, out);
      continue;
    }
    out->sent += part_of(out);
    out->done = 0;
    out->encoded = false;
    place_again(chan, out);
  }
}

/* Tell the peer about its credit when it may be waiting for it and nothing else is going there. */
static void settle_credit(perigee__peer *peer) {
  const perigee__frame frame = {.type = PERIGEE_FRAME_CREDIT};
  if (peer->chan.owed >= PERIGEE_CREDIT / 4 && perigee__list_empty(&peer->chan.out))
    perigee__channel_queue(peer, &frame, NULL, 0, NULL, NULL);
}

/* Returns whether the peer took something. turn: what one turn does not write is tried again in the next call; else the loop tells when
 * there is room. */
static bool flush(perigee__peer *peer, bool turn) {
  perigee__channel *chan = &peer->chan;
  size_t most = turn ? PERIGEE_TURN_BYTES : SIZE_MAX;
  bool moved = false;
  for (;;) {
    if (chan->stream == NULL)
      return moved;
    settle_credit(peer);
    if (perigee__list_empty(&chan->out))
      break;
    struct iovec iov[GATHER];
    chan->held = 0;
    ssize_t n =
        most > 0 ? chan->stream->ops->writev(chan->stream, iov, gather(chan, iov, most)) : -EAGAIN;
    if (chan->stream->ops->staged)
      chan->sent_ns =
          perigee__now_ns(); /* a write is no pause between two sends, however long it takes */
    if (n == -EAGAIN && turn) {
      perigee__list_append(&peer->mesh->later, &peer->dirty);
      return moved;
    }
    if (n == -EAGAIN) {
      chan->stream->ops->want_write(chan->stream, true);
      return moved;
    }
    if (n < 0) {
      chan->silent |= perigee__channel_is_silence(n);
      /* What the peer has sent before it went may still be there, a goodbye for instance. */
      perigee__channel_drain(peer);
      perigee__peer_lost(peer, "its connection broke");
      return true;
    }
    moved = true;
    if (turn)
      most = (size_t)n < most ? most - (size_t)n : 0;
    written(peer, (size_t)n);
  }
  chan->stream->ops->want_write(chan->stream, false);
  return moved;
}

static bool is_staged(const perigee__peer *peer) {
  return peer->chan.stream != NULL && peer->chan.stream->ops->staged;
}

bool perigee__settle(perigee__mesh *mesh, bool turn) {
  bool moved = false;
  while (!perigee__list_empty(&mesh->dirty)) {
    perigee__peer *peer = PERIGEE_CONTAINER_OF(mesh->dirty.next, perigee__peer, dirty);
    perigee__list_remove(&peer->dirty);
    if (peer->lost) {
      perigee__peer_ends(peer);
      moved = true;
    } else {
      moved |= flush(peer, turn && is_staged(peer));
    }
  }
  while (!perigee__list_empty(&mesh->later)) {
    perigee__node *node = mesh->later.next;
    perigee__list_remove(node);
    perigee__list_append(&mesh->dirty, node);
  }
  return moved;
}

void perigee__channel_up(perigee__peer *peer, perigee__stream *stream) {
  peer->chan.stream = stream;
  perigee__peer_mark(peer);
}

void perigee__channel_purge(perigee__peer *peer, int status) {
  perigee__channel *chan = &peer->chan;
  while (!perigee__list_empty(&chan->out)) {
    perigee__out *out = out_of(chan->out.next);
    perigee__list_remove(&out->node);
    if (out->xfer != NULL)
      perigee__xfer_end(peer->mesh, out->xfer, status);
    out_free(peer->mesh, out);
  }
}

bool perigee__channel_idle(const perigee__channel *chan) { return perigee__list_empty(&chan->out); }

/* ---- sending and taking back ------------------------------------------------------------------- */

/* Whether the peer is to read the message from our memory. That we can read the peer is taken for a sign that it can read us. */
static bool to_be_pulled(perigee__peer *peer, size_t size) {
  return size >= PERIGEE_PULL_MIN && (size > PERIGEE_EAGER_MAX || !perigee__vm_is_slow()) &&
         perigee__ring_readable(&peer->ring);
}

void perigee__channel_send(perigee__peer *peer, perigee__xfer *xfer) {
  perigee__channel *chan = &peer->chan;
  perigee__frame frame = {.kind = (uint8_t)xfer->key.kind,
                          .group = xfer->key.group,
                          .tag = xfer->key.tag,
                          .fp = xfer->fp,
                          .length = xfer->size};
  uint64_t cost = xfer->size + PERIGEE_FRAME_SIZE;
  bool ring = peer->ring.base != NULL && chan->stream == &peer->ring.stream;
  bool pull = ring && to_be_pulled(peer, xfer->size);
  if (xfer->size <= PERIGEE_EAGER_MAX && chan->credit >= cost && !pull) {
    chan->credit -= cost;
    frame.type = PERIGEE_FRAME_EAGER;
    perigee__channel_queue(peer, &frame, xfer->buf, xfer->size, xfer, NULL);
    return;
  }
  frame.type = PERIGEE_FRAME_RTS;
  frame.id = xfer->id = ++chan->next_id;
  frame.at = ring ? (uint64_t)(uintptr_t)xfer->buf : 0;
  perigee__channel_queue(peer, &frame, NULL, 0, xfer, NULL);
}

/* A frame that has begun to go out goes on without its xfer, from a copy. */
static void go_on_from_copy(perigee__peer *peer, perigee__out *out) {
  size_t gone = out->sent + (out->done > PERIGEE_FRAME_SIZE ? out->done - PERIGEE_FRAME_SIZE : 0);
  if (out->length == gone)
    return;
  out->owned = malloc(out->length);
  if (out->owned == NULL) {
    /* The stream cannot be kept in order: give it up before the caller takes the memory back. */
    perigee__peer_lost(peer, "no memory to go on with a message that was taken back");
    return;
  }
  memcpy(out->owned + gone, out->payload + gone, out->length - gone);
  out->payload = out->owned;
}

/* A queued send is taken back. Returns whether the peer has been told of it by an RTS and must be told that nothing comes. */
static bool forget_out(perigee__peer *peer, perigee__xfer *xfer) {
  perigee__channel *chan = &peer->chan;
  PERIGEE_LIST_EACH(it, &chan->out) {
    perigee__out *out = out_of(it);
    if (out->xfer != xfer)
      continue;
    out->xfer = NULL;
    /* Its credit has been taken off what we owe, or part of the message has gone. */
    if ((out->encoded || out->sent > 0) && chan->stream != NULL) {
      go_on_from_copy(peer, out);
      return out->frame.type == PERIGEE_FRAME_RTS;
    }
    if (out->frame.type == PERIGEE_FRAME_EAGER)
      chan->credit += out->length + PERIGEE_FRAME_SIZE;
    bool announced = out->frame.type == PERIGEE_FRAME_DATA; /* its RTS has been seen */
    perigee__list_remove(&out->node);
    out_free(peer->mesh, out);
    return announced;
  }
  return false;
}

void perigee__channel_forget(perigee__peer *peer, perigee__xfer *xfer) {
  perigee__channel *chan = &peer->chan;
  const perigee__frame canceled = {.type = PERIGEE_FRAME_RTS_CANCELED, .id = xfer->id};
  switch (xfer->phase) {
  case PERIGEE_XFER_QUEUED:
    if (forget_out(peer, xfer)) {
      perigee__pull_revoke(peer);
      perigee__channel_queue(peer, &canceled, NULL, 0, NULL, NULL);
    }
    break;
  case PERIGEE_XFER_PULLING:
    perigee__pull_forget(peer, xfer);
    perigee__pull_tell(
        peer, xfer->id); /* its sender's call ends as that of data that is swallowed does */
    break;
  case PERIGEE_XFER_RTS_SENT:
    perigee__pull_revoke(peer);
    peer->mesh->lent -= xfer->size;
    perigee__list_remove(&xfer->node);
    perigee__channel_queue(peer, &canceled, NULL, 0, NULL, NULL);
    break;
  case PERIGEE_XFER_CTS_SENT:
    perigee__list_remove(&xfer->node); /* DATA that nobody waits for is swallowed */
    break;
  case PERIGEE_XFER_LANDING:
    if (chan->in_xfer == xfer) {
      chan->in_xfer = NULL;
      chan->dest = NULL;
      chan->room = 0;
    }
    break;
  default:
    break;
  }
}
