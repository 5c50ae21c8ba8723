/*
 * Gather, scatter, alltoall: blocks from one rank to another, each in one message, straight into the receiver's memory.
 *
 * Small blocks ride as mail in the roll call's messages where these go to the right rank anyway (distances 1, 2, 4 ...); all
 * others are messages of their own, posted at once, receives before sends, towards the nearest right neighbour first so that
 * no rank is everybody's first target.
 *
 * Sizes. A block must be exactly as long as its room, so the receiver's room tells how the block will come. Whether all fit is
 * known when the roll call is over (net_sizes.c), by its notes:
 *   gather     root: room for each rank's block, and its own block's size; others: the size of theirs
 *   scatter    root: size of each rank's block, and its own room; others: their room
 *   alltoall   a checksum: sum over the blocks a rank sends of h(from, to, bytes), minus the sum over the rooms it has of
 *              h(from, to, room). All of them add up to 0 when every block fits.
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
  bool *mailed;                /* n: came as mail and fits */
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

/* Mail that does not fit is left alone: the notes will tell. */
static int deliver_mail(void *arg, int peer, const void *data, size_t bytes) {
  state *s = arg;
  if (!receives_from(s, peer) || !rides(s, peer, s->net->me, bytes))
    return perigee__net_blame_proto(s->net, peer);
  perigee__block room = incoming(s, peer);
  if (bytes != room.bytes)
    return 0;
  if (bytes > 0)
    memcpy(room.ptr, data, bytes);
  s->mailed[peer] = true;
  return 0;
}

/* Everything fits, so what can ride has ridden. */
static int check_mail(const state *s) {
  for (int r = 0; r < s->net->n; r++)
    if (receives_from(s, r) && rides(s, r, s->net->me, incoming(s, r).bytes) && !s->mailed[r])
      return perigee__net_blame_proto(s->net, r);
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
    if (bytes != room)
      return perigee__net_blame_room(net, gather ? r : root, (size_t)bytes, gather ? root : r,
                                     (size_t)room);
  }
  return 0;
}

static int check_sum(perigee__net *net) {
  uint64_t sum = 0;
  for (int r = 0; r < net->n; r++) {
    uint64_t word;
    PERIGEE_TRY(read_note(net, r, -1, &word));
    sum += word;
  }
  return sum == 0 ? 0 : perigee__net_blame_sizes(net);
}

/* ---- data -------------------------------------------------------------------------------------- */

/* While messages travel; if it does not fit the notes will tell. */
static void copy_own(const state *s) {
  const perigee__coll_call *call = s->net->call;
  int me = s->net->me;
  if (call->kind != PERIGEE_COLL_ALLTOALL && me != call->root)
    return;
  perigee__block from = outgoing(s, me), to = incoming(s, me);
  if (from.bytes == to.bytes && from.bytes > 0 && from.ptr != to.ptr)
    memcpy(to.ptr, from.ptr, from.bytes);
}

static void post_recvs(state *s) {
  perigee__net *net = s->net;
  for (int i = 1; i < net->n; i++) {
    int peer = (net->me - i + net->n) % net->n;
    if (!receives_from(s, peer))
      continue;
    perigee__block room = incoming(s, peer);
    if (!rides(s, peer, net->me, room.bytes))
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
  const perigee__mail mail = {.arg = s, .pick = pick_mail, .deliver = deliver_mail};
  net->comparing = true;
  post_recvs(s);
  size_t words = write_note(s);
  PERIGEE_TRY(
      perigee__roll_start_notes(net, s->note, 8 * words, 8 * (2 * (size_t)net->n + 1), &mail));
  post_sends(s);
  copy_own(s);
  PERIGEE_TRY(perigee__roll_wait(net));
  PERIGEE_TRY(net->call->kind == PERIGEE_COLL_ALLTOALL ? check_sum(net) : check_rooms(net));
  net->comparing = false;
  PERIGEE_TRY(check_mail(s));
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
