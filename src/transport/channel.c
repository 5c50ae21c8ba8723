/*
 * Frames coming in on one connection: header, then payload straight to where it belongs.
 *
 * Credit: the sender counts the eager bytes (payload and header) it has sent; the receiver gives them back when the message has
 * been taken by a receive. So what a peer can make us keep is bounded by PERIGEE_CREDIT, and a sender without credit announces
 * (RTS) instead of blocking: no order of calls can jam the stream.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/log.h"
#include "transport/mesh_impl.h"

enum {
  LARGE_BYTES = 16 << 10,
  STAGE_AFTER_LARGE = 2 << 10, /* a header and some small frames */
  PUMP_STEPS = 256,            /* of one peer before the others, and what goes out, get a turn */
  DRAIN_PUMPS = 4096           /* more than any buffer of ours or the kernel's can keep busy */
};

void perigee__channel_init(perigee__channel *chan) {
  memset(chan, 0, sizeof(*chan));
  perigee__list_init(&chan->out);
  perigee__list_init(&chan->rts_sent);
  perigee__list_init(&chan->cts_sent);
  perigee__list_init(&chan->pulls);
  chan->credit = PERIGEE_CREDIT;
}

void perigee__channel_fini(perigee__channel *chan) {
  PERIGEE_LIST_EACH_SAFE(it, next, &chan->out) {
    perigee__out *out = PERIGEE_CONTAINER_OF(it, perigee__out, node);
    free(out->owned);
    free(out);
  }
  if (chan->in_early != NULL && chan->in_early->taker != NULL) {
    free(chan->in_early->data); /* the others are in match, and freed from there */
    free(chan->in_early);
  }
  free(chan->stage);
}

/* ---- ends of messages -------------------------------------------------------------------------- */

static void owe(perigee__peer *peer, uint64_t payload) {
  peer->chan.owed += payload + PERIGEE_FRAME_SIZE;
  if (peer->chan.owed >= PERIGEE_CREDIT / 4)
    perigee__peer_mark(peer); /* flushing tells it */
}

static int landed_status(const perigee__xfer *xfer) {
  return xfer->received > xfer->size ? PERIGEE_ETRUNC : 0;
}

void perigee__channel_free_early(perigee__mesh *mesh, perigee__early *early) {
  perigee__peer *peer = early->peer != mesh->rank ? &mesh->peers[early->peer] : NULL;
  if (peer != NULL && !early->is_rts) {
    peer->chan.early_bytes -= early->length + PERIGEE_FRAME_SIZE;
    owe(peer, early->length);
    if (peer->chan.in_early == early) {
      peer->chan.in_early = NULL; /* the rest is swallowed */
      peer->chan.dest = NULL;
      peer->chan.room = 0;
    }
  }
  free(early->data);
  free(early);
}

static void early_to_taker(perigee__mesh *mesh, perigee__early *early, perigee__xfer *xfer) {
  size_t n = early->length < xfer->size ? (size_t)early->length : xfer->size;
  if (n > 0)
    memcpy(xfer->buf, early->data, n);
  perigee__channel_free_early(mesh, early);
  perigee__xfer_end(mesh, xfer, landed_status(xfer));
}

/* Whether the message is the one that is expected; if not, xfer ends. */
static bool fits(perigee__mesh *mesh, perigee__xfer *xfer, int peer, uint64_t fp, uint64_t length) {
  xfer->peer = peer;
  xfer->peer_fp = fp;
  xfer->received = (size_t)length;
  if (xfer->fp == 0 || xfer->fp == fp)
    return true;
  perigee__xfer_end(mesh, xfer, PERIGEE_EMISMATCH);
  return false;
}

/* xfer: NULL when nobody waits for the data: it is swallowed, so that the sender's call ends as that of a small message does. */
void perigee__channel_clear_to_send(perigee__peer *peer, perigee__xfer *xfer, uint64_t id) {
  const perigee__frame frame = {.type = PERIGEE_FRAME_CTS, .id = id};
  if (xfer != NULL) {
    xfer->id = id;
    xfer->moved = 0;
    xfer->phase = PERIGEE_XFER_CTS_SENT;
    perigee__list_append(&peer->chan.cts_sent, &xfer->node);
  }
  perigee__channel_queue(peer, &frame, NULL, 0, NULL, NULL);
}

static void answer_rts(perigee__peer *peer, perigee__xfer *xfer, uint64_t id, uint64_t at) {
  if (xfer == NULL || !perigee__pull_begin(peer, xfer, id, at))
    perigee__channel_clear_to_send(peer, xfer, id);
}

void perigee__channel_take_early(perigee__mesh *mesh, perigee__early *early, perigee__xfer *xfer) {
  bool wanted = fits(mesh, xfer, early->peer, early->fp, early->length);
  if (early->is_rts) {
    answer_rts(&mesh->peers[early->peer], wanted ? xfer : NULL, early->id, early->at);
    perigee__channel_free_early(mesh, early);
  } else if (!wanted) {
    perigee__channel_free_early(mesh, early);
  } else if (early->have < early->length) {
    early->taker = xfer;
    xfer->phase = PERIGEE_XFER_TAKING;
  } else {
    early_to_taker(mesh, early, xfer);
  }
}

/* ---- frames ------------------------------------------------------------------------------------ */

static int protocol_error(perigee__peer *peer, const char *what) {
  perigee__log(PERIGEE_LOG_ERROR, "rank %d broke the protocol: %s", peer->rank, what);
  perigee__peer_lost(peer, what);
  return PERIGEE_EPROTO;
}

static perigee__key key_of(const perigee__frame *f) {
  return (perigee__key){.group = f->group, .tag = f->tag, .kind = f->kind};
}

static perigee__early *keep(perigee__peer *peer, const perigee__frame *f) {
  perigee__early *early = perigee__calloc(1, sizeof(*early));
  if (early == NULL)
    return NULL;
  if (f->type == PERIGEE_FRAME_EAGER && f->length > 0 &&
      (early->data = malloc((size_t)f->length)) == NULL) {
    free(early);
    return NULL;
  }
  early->peer = peer->rank;
  early->key = key_of(f);
  early->fp = f->fp;
  early->length = f->length;
  early->is_rts = f->type == PERIGEE_FRAME_RTS;
  early->id = f->id;
  early->at = f->at;
  if (!early->is_rts)
    peer->chan.early_bytes += f->length + PERIGEE_FRAME_SIZE;
  perigee__match_keep(&peer->mesh->match, early);
  return early;
}

static int eager_came(perigee__peer *peer, const perigee__frame *f) {
  perigee__channel *chan = &peer->chan;
  const perigee__key key = key_of(f);
  perigee__xfer *xfer = perigee__match_arrived(&peer->mesh->match, peer->rank, &key);
  if (xfer != NULL) {
    owe(peer, f->length);
    if (fits(peer->mesh, xfer, peer->rank, f->fp, f->length)) {
      xfer->phase = PERIGEE_XFER_LANDING;
      chan->in_xfer = xfer;
      chan->dest = xfer->buf;
      chan->room = xfer->size;
    }
    return 0;
  }
  if (perigee__group_is_past(peer->mesh, f->group)) {
    owe(peer, f->length); /* swallowed */
    return 0;
  }
  if (chan->early_bytes + f->length + PERIGEE_FRAME_SIZE > PERIGEE_CREDIT)
    return protocol_error(peer, "it sent more than its credit");
  perigee__early *early = keep(peer, f);
  if (early == NULL)
    return protocol_error(peer, "no memory for what it sent");
  chan->in_early = early;
  chan->dest = early->data;
  chan->room = f->length;
  return 0;
}

static int rts_came(perigee__peer *peer, const perigee__frame *f) {
  const perigee__key key = key_of(f);
  perigee__xfer *xfer = perigee__match_arrived(&peer->mesh->match, peer->rank, &key);
  if (xfer != NULL) {
    bool wanted = fits(peer->mesh, xfer, peer->rank, f->fp, f->length);
    answer_rts(peer, wanted ? xfer : NULL, f->id, f->at);
    return 0;
  }
  if (perigee__group_is_past(peer->mesh, f->group)) {
    /* Its sender was not connected when we left, or the news is on its way. */
    const perigee__frame left = {.type = PERIGEE_FRAME_GROUP_CLOSED, .group = f->group};
    perigee__channel_queue(peer, &left, NULL, 0, NULL, NULL);
    return 0;
  }
  return keep(peer, f) != NULL ? 0 : protocol_error(peer, "no memory for what it announced");
}

static perigee__xfer *take_by_id(perigee__node *list, uint64_t id) {
  PERIGEE_LIST_EACH(it, list) {
    perigee__xfer *xfer = PERIGEE_CONTAINER_OF(it, perigee__xfer, node);
    if (xfer->id == id) {
      perigee__list_remove(&xfer->node);
      return xfer;
    }
  }
  return NULL;
}

static void cts_came(perigee__peer *peer, const perigee__frame *f) {
  perigee__xfer *xfer = take_by_id(&peer->chan.rts_sent, f->id);
  if (xfer == NULL)
    return; /* taken back meanwhile; the peer knows by RTS_CANCELED */
  peer->mesh->lent -= xfer->size;
  const perigee__frame data = {.type = PERIGEE_FRAME_DATA, .length = xfer->size, .id = xfer->id};
  perigee__channel_queue(peer, &data, xfer->buf, xfer->size, xfer, NULL);
}

/* received: what the RTS has announced. moved: what has come of it. */
static int data_came(perigee__peer *peer, const perigee__frame *f) {
  perigee__channel *chan = &peer->chan;
  perigee__xfer *xfer = take_by_id(&chan->cts_sent, f->id);
  if (xfer == NULL)
    return 0;
  if (f->at != xfer->moved || f->length > xfer->received - xfer->moved) {
    perigee__list_append(&chan->cts_sent, &xfer->node); /* it ends with the peer */
    return protocol_error(peer, "its data is not what it has announced");
  }
  xfer->phase = PERIGEE_XFER_LANDING;
  chan->in_xfer = xfer;
  if (xfer->moved < xfer->size) {
    chan->dest = (uint8_t *)xfer->buf + xfer->moved;
    chan->room = xfer->size - xfer->moved;
  }
  return 0;
}

/* A receive has all of a frame. */
static void landed(perigee__peer *peer, perigee__xfer *xfer) {
  const perigee__frame *f = &peer->chan.in;
  if (f->type == PERIGEE_FRAME_DATA && (xfer->moved += f->length) < xfer->received) {
    xfer->phase = PERIGEE_XFER_CTS_SENT;
    perigee__list_append(&peer->chan.cts_sent, &xfer->node);
    return;
  }
  perigee__xfer_end(peer->mesh, xfer, landed_status(xfer));
}

static void pulled_came(perigee__peer *peer, const perigee__frame *f) {
  perigee__xfer *xfer = take_by_id(&peer->chan.rts_sent, f->id);
  if (xfer == NULL)
    return; /* taken back meanwhile */
  peer->mesh->lent -= xfer->size;
  perigee__xfer_end(peer->mesh, xfer, 0);
}

static void cancel_came(perigee__peer *peer, const perigee__frame *f) {
  peer->chan.canceled++;
  perigee__xfer *xfer = take_by_id(&peer->chan.cts_sent, f->id);
  if (xfer == NULL && (xfer = take_by_id(&peer->chan.pulls, f->id)) != NULL)
    perigee__pull_forget(peer, xfer);
  if (xfer != NULL) {
    perigee__xfer_end(peer->mesh, xfer, PERIGEE_ECANCELED);
    return;
  }
  PERIGEE_LIST_EACH(it, &peer->mesh->match.arrivals) {
    perigee__early *early = PERIGEE_CONTAINER_OF(it, perigee__early, arrival);
    if (early->peer == peer->rank && early->is_rts && early->id == f->id) {
      perigee__match_drop(early);
      perigee__channel_free_early(peer->mesh, early);
      return;
    }
  }
}

/* chan->in is complete: find where its payload goes. */
static int frame_begins(perigee__peer *peer) {
  perigee__channel *chan = &peer->chan;
  const perigee__frame *f = &chan->in;
  chan->in_payload = true;
  chan->at = 0;
  chan->dest = NULL;
  chan->room = 0;
  chan->credit += f->credit;
  if (chan->credit > PERIGEE_CREDIT)
    return protocol_error(peer, "it gave back more credit than it had");
  switch (f->type) {
  case PERIGEE_FRAME_EAGER:
    return eager_came(peer, f);
  case PERIGEE_FRAME_RTS:
    return rts_came(peer, f);
  case PERIGEE_FRAME_CTS:
    cts_came(peer, f);
    break;
  case PERIGEE_FRAME_DATA:
    return data_came(peer, f);
  case PERIGEE_FRAME_RTS_CANCELED:
    cancel_came(peer, f);
    break;
  case PERIGEE_FRAME_PULLED:
    pulled_came(peer, f);
    break;
  case PERIGEE_FRAME_ABORT:
    chan->dest = chan->abort_record;
    chan->room = sizeof(chan->abort_record);
    memset(chan->abort_record, 0, sizeof(chan->abort_record));
    break;
  case PERIGEE_FRAME_GROUP_CLOSED:
    perigee__group_closed_by(peer, f->group);
    break;
  case PERIGEE_FRAME_GOODBYE:
    perigee__peer_closed(peer);
    break;
  case PERIGEE_FRAME_STATUS_REQ:
    perigee__status_asked(peer, f);
    break;
  case PERIGEE_FRAME_STATUS_REP:
    perigee__status_came(peer, f);
    break;
  default:
    break;
  }
  return 0;
}

/* All payload of a frame has been read. */
static void frame_ends(perigee__peer *peer) {
  perigee__channel *chan = &peer->chan;
  perigee__xfer *xfer = chan->in_xfer;
  perigee__early *early = chan->in_early;
  chan->in_xfer = NULL;
  chan->in_early = NULL;
  chan->in_payload = false;
  chan->header_have = 0;
  if (xfer != NULL) {
    landed(peer, xfer);
  } else if (early != NULL) {
    early->have = early->length;
    if (early->taker != NULL)
      early_to_taker(peer->mesh, early, early->taker);
  } else if (chan->in.type == PERIGEE_FRAME_ABORT) {
    perigee__abort_came(peer, chan->in.group, chan->abort_record);
  }
}

/* ---- reading ----------------------------------------------------------------------------------- */

/* A read with an empty stage: into buf, and what comes behind that into the stage. The start of a frame that is looked for comes by the stage
 * alone, which costs less when nothing is there. What a socket had no more of will be there in another pump; a turn's bytes are enough
 * for this one. */
static ssize_t read_staged(perigee__channel *chan, void *buf, size_t size) {
  perigee__stream *stream = chan->stream;
  if (chan->stage == NULL && (chan->stage = malloc(PERIGEE_STAGE_BYTES)) == NULL)
    return stream->ops->read(stream, buf, size);
  /* Behind a large frame comes another one, as a rule: its payload is not to go through the stage. */
  size_t most = chan->in.length >= LARGE_BYTES ? STAGE_AFTER_LARGE : PERIGEE_STAGE_BYTES;
  size_t direct = chan->in_payload ? size : 0;
  const struct iovec iov[2] = {{buf, size}, {chan->stage, most}};
  ssize_t n = direct > 0 ? stream->ops->readv(stream, iov, 2)
                         : stream->ops->read(stream, chan->stage, most);
  if (n <= 0)
    return n;
  chan->dry = (size_t)n < direct + most || n >= PERIGEE_TURN_BYTES;
  chan->stage_at = 0;
  chan->stage_end = (size_t)n > direct ? (size_t)n - direct : 0;
  return (size_t)n < direct ? n : (ssize_t)direct;
}

/* Up to size bytes from the stage or the stream; as perigee__stream_ops.read. */
static ssize_t take_bytes(perigee__channel *chan, void *buf, size_t size) {
  perigee__stream *stream = chan->stream;
  if (chan->stage_at == chan->stage_end) {
    if (!stream->ops->staged)
      return stream->ops->read(stream, buf, size);
    ssize_t n = read_staged(chan, buf, size);
    if (n != 0 || chan->stage_at == chan->stage_end)
      return n;
  }
  size_t there = chan->stage_end - chan->stage_at;
  size_t n = size < there ? size : there;
  memcpy(buf, chan->stage + chan->stage_at, n);
  chan->stage_at += n;
  return (ssize_t)n;
}

/* A frame in a slot of the ring, with all that belongs to it. Returns as step. */
static int step_slot(perigee__peer *peer) {
  perigee__channel *chan = &peer->chan;
  perigee__slot slot;
  int rc = perigee__ring_peek_slot(&peer->ring, &slot);
  if (PERIGEE_UNLIKELY(rc < 0))
    return protocol_error(peer, perigee_last_error()->message);
  if (rc == 0)
    return 0;
  chan->in = slot.frame;
  if (frame_begins(peer) < 0)
    return -1;
  size_t n = chan->room < slot.frame.length ? (size_t)chan->room : (size_t)slot.frame.length;
  perigee__ring_take_slot(&peer->ring, &slot, chan->dest, n);
  frame_ends(peer);
  return 1;
}

/* What a stream answered that had no bytes to give. Returns as step. */
static int no_bytes(perigee__channel *chan, ssize_t answer) {
  if (answer == -EAGAIN)
    return 0;
  chan->silent |= perigee__channel_is_silence(answer);
  return -1;
}

/* One step: some bytes of a header or of a payload. > 0 progress, 0 nothing there, < 0 the end. */
static int step(perigee__peer *peer) {
  perigee__channel *chan = &peer->chan;
  ssize_t n;
  if (!chan->in_payload && chan->header_have == 0 && chan->stream == &peer->ring.stream) {
    int rc = step_slot(peer);
    if (rc != 0)
      return rc;
  }
  if (!chan->in_payload) {
    n = take_bytes(chan, chan->header + chan->header_have, PERIGEE_FRAME_SIZE - chan->header_have);
    if (n <= 0)
      return no_bytes(chan, n);
    chan->header_have += (size_t)n;
    if (chan->header_have < PERIGEE_FRAME_SIZE)
      return 1;
    if (perigee__frame_decode(chan->header, &chan->in) < 0)
      return protocol_error(peer, perigee_last_error()->message);
    if (frame_begins(peer) < 0)
      return -1;
    bool has_payload = chan->in.type == PERIGEE_FRAME_EAGER ||
                       chan->in.type == PERIGEE_FRAME_DATA || chan->in.type == PERIGEE_FRAME_ABORT;
    if (!has_payload || chan->in.length == 0)
      frame_ends(peer);
    return 1;
  }
  uint8_t sink[4096];
  bool kept = chan->dest != NULL && chan->at < chan->room;
  uint64_t left = chan->in.length - chan->at;
  uint64_t want = kept ? chan->room - chan->at : sizeof(sink);
  want = want < left ? want : left;
  n = take_bytes(chan, kept ? chan->dest + chan->at : sink, (size_t)want);
  if (n <= 0)
    return no_bytes(chan, n);
  chan->at += (uint64_t)n;
  if (chan->at == chan->in.length)
    frame_ends(peer);
  return 1;
}

bool perigee__channel_is_silence(ssize_t error) {
  return error == -ETIMEDOUT || error == -EHOSTUNREACH || error == -ENETUNREACH;
}

static const char *how_it_ended(const perigee__peer *peer) {
  if (peer->ended_ns != 0)
    return "its process ended";
  return peer->chan.silent ? "its host cannot be reached"
                           : "its connection ended without a goodbye";
}

/* Whether a receive needs more of what comes in. */
static bool wants_more(const perigee__xfer *xfer) {
  return xfer->phase == PERIGEE_XFER_POSTED || xfer->phase == PERIGEE_XFER_LANDING;
}

bool perigee__channel_pump_for(perigee__peer *peer, const perigee__xfer *xfer) {
  perigee__channel *chan = &peer->chan;
  bool moved = false;
  chan->dry = false;
  /* What is in the stage must be handled now: nothing will say again that it is there. */
  for (int i = 0; chan->stream != NULL && (i < PUMP_STEPS || chan->stage_at < chan->stage_end);
       i++) {
    if (chan->dry && chan->stage_at == chan->stage_end)
      break;
    if (xfer != NULL && !wants_more(xfer))
      break;
    int rc = step(peer);
    if (rc == 0)
      break;
    moved = true;
    if (rc < 0)
      perigee__peer_lost(peer, how_it_ended(peer));
  }
  return moved;
}

bool perigee__channel_pump(perigee__peer *peer) {
  bool moved = perigee__channel_pump_for(peer, NULL);
  perigee__ring_wake(&peer->ring);
  return moved;
}

void perigee__channel_drain(perigee__peer *peer) {
  for (int i = 0; i < DRAIN_PUMPS && perigee__channel_pump(peer); i++) {
  }
}

void perigee__channel_drop_unfinished(perigee__peer *peer) {
  perigee__mesh *mesh = peer->mesh;
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->match.arrivals) {
    perigee__early *early = PERIGEE_CONTAINER_OF(it, perigee__early, arrival);
    if (early->peer == peer->rank && (early->is_rts || early == peer->chan.in_early)) {
      perigee__match_drop(early);
      perigee__channel_free_early(mesh, early);
    }
  }
}
