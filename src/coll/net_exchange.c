/*
 * Gather, scatter, alltoall: blocks from one rank to another, each in one message, straight into the receiver's memory.
 *
 * Small blocks ride as mail in the roll call's messages where these go to the right rank anyway (distances 1, 2, 4 ...); all
 * others are messages of their own, posted at once, receives before sends, towards the nearest right neighbour first so that
 * no rank is everybody's first target.
 *
 * Sizes. The sender decides by the block's size how it travels; the receiver knows only its room. Notes in the roll call say:
 *   gather     root: room for each rank's block, and its own block's size; others: the size of theirs
 *   scatter    root: size of each rank's block, and its own room; others: their room
 *     so every rank finds the same block that is too long and ends with the same ETRUNC.
 *   alltoall   a checksum: sum over the blocks a rank sends of h(from, to, bytes), minus the sum over the rooms it has of
 *              h(from, to, room). If all of them add up to 0, every block fits its room exactly. If not, some are
 *              shorter, or one is too long (its receiver fails the group): then a second roll call, which a rank enters when
 *              all its blocks have come, keeps all ranks until that is known.
 * A block shorter than its room leaves the rest of the room as it was.
 *
 * Cost: n-1 messages at the root (gather, scatter) or at every rank (alltoall), the roll call's beside them.
 */
#include <string.h>

#include "coll/fingerprint.h"
#include "coll/net_call.h"

enum {
  STEP = PERIGEE_NET_STEP_DATA
};

typedef struct state {
  perigee__net *net;
  perigee__msg *recvs, *sends; /* n each */
  bool *mailed;                /* n: came as mail */
  uint64_t *note;
} state;

static bool sends_to(const state *s, int peer) {
  const perigee__coll_call *call = s->net->call;
  if (peer == s->net->me)
    return false;
  if (call->kind == PERIGEE_COLL_GATHER)
    return peer == call->root;
  return call->kind == PERIGEE_COLL_ALLTOALL || s->net->me == call->root;
}

static bool receives_from(const state *s, int peer) {
  const perigee__coll_call *call = s->net->call;
  if (peer == s->net->me)
    return false;
  if (call->kind == PERIGEE_COLL_SCATTER)
    return peer == call->root;
  return call->kind == PERIGEE_COLL_ALLTOALL || s->net->me == call->root;
}

/* The block for a rank, where sends_to or the rank is this one (and has a block for itself). */
static perigee__block outgoing(const state *s, int peer) {
  const perigee__coll_call *call = s->net->call;
  if (call->kind == PERIGEE_COLL_GATHER) /* const: blocks to send are only read */
    return (perigee__block){(void *)(uintptr_t)call->in, call->in_bytes};
  return call->in_blocks[peer];
}

static perigee__block incoming(const state *s, int peer) {
  const perigee__coll_call *call = s->net->call;
  if (call->kind == PERIGEE_COLL_SCATTER)
    return (perigee__block){call->out, call->out_bytes};
  return call->out_blocks[peer];
}

/* ---- mail -------------------------------------------------------------------------------------- */

static bool rides(const state *s, int from, int to, size_t bytes) {
  return bytes <= PERIGEE_MAIL_MAX && perigee__roll_reaches(s->net->n, from, to);
}

static const void *pick_mail(void *arg, int peer, size_t *bytes_p) {
  state *s = arg;
  if (!sends_to(s, peer))
    return NULL;
  perigee__block block = outgoing(s, peer);
  if (!rides(s, s->net->me, peer, block.bytes))
    return NULL;
  *bytes_p = block.bytes;
  return block.ptr != NULL ? block.ptr : s; /* an empty block may have no address */
}

static int deliver_mail(void *arg, int peer, const void *data, size_t bytes) {
  state *s = arg;
  if (!receives_from(s, peer) || s->mailed[peer])
    return perigee__net_blame_proto(s->net, peer);
  perigee__block room = incoming(s, peer);
  if (bytes > room.bytes)
    return perigee__net_blame_room(s->net, peer, bytes, s->net->me, room.bytes);
  if (bytes > 0)
    memcpy(room.ptr, data, bytes);
  s->mailed[peer] = true;
  perigee__net_cancel(s->net, &s->recvs[peer]);
  return 0;
}

/* ---- notes ------------------------------------------------------------------------------------- */

static uint64_t block_hash(int from, int to, size_t bytes) {
  uint64_t hash = perigee__hash_mix((uint64_t)from << 32 | (uint64_t)to, bytes);
  return perigee__hash_mix(hash, 0);
}

/* This rank's note; returns its words. */
static size_t write_note(state *s) {
  const perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  bool root = net->me == call->root;
  if (call->kind == PERIGEE_COLL_ALLTOALL) {
    s->note[0] = 0;
    for (int r = 0; r < net->n; r++)
      s->note[0] += block_hash(net->me, r, call->in_blocks[r].bytes) -
                    block_hash(r, net->me, call->out_blocks[r].bytes);
    return 1;
  }
  bool gather = call->kind == PERIGEE_COLL_GATHER;
  size_t words = 0;
  for (int r = 0; root && r < net->n; r++)
    s->note[words++] = gather ? call->out_blocks[r].bytes : call->in_blocks[r].bytes;
  s->note[words++] = gather ? call->in_bytes : call->out_bytes;
  return words;
}

/* Word i of a rank's note, counted from the end when i < 0. */
static int read_note(perigee__net *net, int rank, int i, uint64_t *word_p) {
  size_t bytes;
  const unsigned char *note = perigee__roll_note(net, rank, &bytes);
  size_t words = bytes / 8;
  bool listed = net->call->kind != PERIGEE_COLL_ALLTOALL && rank == net->call->root;
  if (bytes % 8 != 0 || words != (listed ? (size_t)net->n + 1 : 1))
    return perigee__net_blame_proto(net, rank);
  memcpy(word_p, note + 8 * (i < 0 ? words - 1 : (size_t)i), 8);
  return 0;
}

/* Gather and scatter: all ranks look at the same sizes and rooms. */
static int check_rooms(perigee__net *net) {
  bool gather = net->call->kind == PERIGEE_COLL_GATHER;
  int root = net->call->root;
  for (int r = 0; r < net->n; r++) {
    uint64_t listed, own;
    PERIGEE_TRY(read_note(net, root, r, &listed));
    PERIGEE_TRY(read_note(net, r, -1, &own));
    uint64_t bytes = gather ? own : listed, room = gather ? listed : own;
    if (bytes > room)
      return perigee__net_blame_room(net, gather ? r : root, (size_t)bytes, gather ? root : r,
                                     (size_t)room);
  }
  return 0;
}

/* Alltoall: whether every block is known to fit exactly. */
static int check_sum(perigee__net *net, bool *exact_p) {
  uint64_t sum = 0;
  for (int r = 0; r < net->n; r++) {
    uint64_t word;
    PERIGEE_TRY(read_note(net, r, -1, &word));
    sum += word;
  }
  *exact_p = sum == 0;
  return 0;
}

/* ---- data -------------------------------------------------------------------------------------- */

static int copy_own(const state *s) {
  const perigee__coll_call *call = s->net->call;
  int me = s->net->me;
  if (call->kind != PERIGEE_COLL_ALLTOALL && me != call->root)
    return 0;
  perigee__block from = outgoing(s, me), to = incoming(s, me);
  if (from.bytes > to.bytes)
    return perigee__net_blame_room(s->net, me, from.bytes, me, to.bytes);
  if (from.bytes > 0 && from.ptr != to.ptr)
    memcpy(to.ptr, from.ptr, from.bytes);
  return 0;
}

/* Receives for the blocks that may come as messages; before the roll call is over a block that fits its room only as mail is
 * taken to be mail. */
static void post_recvs(state *s, bool over) {
  perigee__net *net = s->net;
  for (int i = 1; i < net->n; i++) {
    int peer = (net->me - i + net->n) % net->n;
    if (!receives_from(s, peer) || s->mailed[peer] || s->recvs[peer].xfer.key.kind != 0)
      continue;
    perigee__block room = incoming(s, peer);
    if (over || !rides(s, peer, net->me, room.bytes))
      perigee__net_recv(net, &s->recvs[peer], peer, STEP, room.ptr, room.bytes);
  }
}

static void post_sends(state *s) {
  perigee__net *net = s->net;
  for (int i = 1; i < net->n; i++) {
    int peer = (net->me + i) % net->n;
    if (!sends_to(s, peer))
      continue;
    perigee__block block = outgoing(s, peer);
    if (!rides(s, net->me, peer, block.bytes))
      perigee__net_send(net, &s->sends[peer], peer, STEP, block.ptr, block.bytes);
  }
}

static int run(state *s) {
  perigee__net *net = s->net;
  bool exact = true;
  const perigee__mail mail = {.arg = s, .pick = pick_mail, .deliver = deliver_mail};
  post_recvs(s, false);
  size_t words = write_note(s);
  PERIGEE_TRY(
      perigee__roll_start_notes(net, s->note, 8 * words, 8 * (2 * (size_t)net->n + 1), &mail));
  post_sends(s);
  PERIGEE_TRY(copy_own(s));
  PERIGEE_TRY(perigee__roll_wait(net));
  PERIGEE_TRY(net->call->kind == PERIGEE_COLL_ALLTOALL ? check_sum(net, &exact) : check_rooms(net));
  post_recvs(s, true);
  PERIGEE_TRY(perigee__net_finish(net));
  if (exact)
    return 0;
  PERIGEE_TRY(perigee__roll_start(net, PERIGEE_NET_STEP_CONFIRM));
  return perigee__net_finish(net);
}

int perigee__net_exchange(perigee__net *net) {
  size_t n = (size_t)net->n;
  state s = {.net = net};
  s.recvs = perigee__net_msgs(net, 2 * n);
  s.mailed = perigee__net_alloc(net, n, sizeof(*s.mailed));
  s.note = perigee__net_alloc(net, n + 1, sizeof(*s.note));
  if (s.recvs == NULL || s.mailed == NULL || s.note == NULL)
    return net->error->code;
  s.sends = s.recvs + n;
  return run(&s);
}
