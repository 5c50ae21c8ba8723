/*
 * Allgather of blocks whose sizes may differ from rank to rank.
 *
 * A roll call tells everyone that every block is exactly as long as each rank's room for it; each block then travels as the rules say for its
 * size (select.h), which all ranks know alike from their rooms:
 *   bruck    in its owner's note, with the roll call
 *   direct   from its owner to every rank, one message each; nobody waits for the roll call to send or receive
 *   ring     from rank to right neighbour, n-1 hops, each into place and on from there
 * note := u64 bytes, u64 checksum of the sender's rooms, [ data ]
 *
 * Sizes. The notes show alike to all ranks whether all rooms are equal to the blocks; if not, net_sizes.c.
 *
 * Cost: roll call, and sum(S) - S_own bytes received by each rank, whichever way; messages per rank: bruck 0, direct n-1 in one
 * step, ring n-1 in n-1 steps to one peer.
 */
#include <string.h>

#include "coll/fingerprint.h"
#include "coll/net_call.h"

enum {
  STEP_DIRECT = PERIGEE_NET_STEP_DATA,
  STEP_RING
};
enum {
  NOTE_BYTES,
  NOTE_ROOMS,
  NOTE_WORDS,
  NOTE_HEAD = 8 * NOTE_WORDS
};
/* Longer blocks go direct even where the rules say bruck: a rank makes room for the notes without knowing the others' blocks,
 * and no note that can come may be too long for it. */
#define NOTE_MAX ((size_t)PERIGEE_NET_NOTE_MAX)

typedef struct state {
  perigee__net *net;
  perigee__msg *recvs;  /* n: by owner of the block */
  perigee__msg *sends;  /* n: by peer, the own block directly */
  perigee__msg *passes; /* n: by owner, around the ring */
} state;

perigee__algo perigee__net_allgather_way(const perigee__tuning *tuning, int n, size_t bytes,
                                         const perigee__select_rule **rule_p) {
  perigee__algo algo;
  *rule_p = perigee__select_rule_for(tuning, PERIGEE_COLL_ALLGATHER, n, false, bytes, &algo);
  return algo == PERIGEE_ALGO_BRUCK && bytes > NOTE_MAX ? PERIGEE_ALGO_DIRECT : algo;
}

static perigee__algo way_of(const state *s, size_t bytes) {
  const perigee__select_rule *rule;
  return perigee__net_allgather_way(s->net->tuning, s->net->n, bytes, &rule);
}

static size_t block_bytes(const state *s, int owner) {
  return s->net->call->out_blocks[owner].bytes;
}

static uint64_t block_hash(int rank, size_t bytes) {
  return perigee__hash_mix(perigee__hash_mix(0, (uint64_t)rank), bytes);
}

static int start_roll(state *s) {
  perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  size_t inlined = way_of(s, call->in_bytes) == PERIGEE_ALGO_BRUCK ? call->in_bytes : 0;
  size_t limit = perigee__select_limit(net->tuning, call->kind, net->n, PERIGEE_ALGO_BRUCK);
  size_t room = NOTE_HEAD + (limit < NOTE_MAX ? limit : NOTE_MAX);
  uint64_t words[NOTE_WORDS] = {call->in_bytes, 0};
  for (int r = 0; r < net->n; r++)
    words[NOTE_ROOMS] += block_hash(r, block_bytes(s, r));
  unsigned char *note = perigee__net_buffer(net, 1, NOTE_HEAD + inlined);
  if (note == NULL)
    return net->error->code;
  memcpy(note, words, NOTE_HEAD);
  if (inlined > 0)
    memcpy(note + NOTE_HEAD, call->in, inlined);
  return perigee__roll_start_notes(net, note, NOTE_HEAD + inlined, (size_t)net->n * room, NULL);
}

static int compare_sizes(perigee__net *net) {
  uint64_t blocks = 0, words[NOTE_WORDS];
  size_t bytes;
  for (int r = 0; r < net->n; r++) {
    const unsigned char *note = perigee__roll_note(net, r, &bytes);
    if (bytes < NOTE_HEAD)
      return perigee__net_blame_proto(net, r);
    memcpy(words, note, NOTE_HEAD);
    blocks += block_hash(r, (size_t)words[NOTE_BYTES]);
  }
  for (int r = 0; r < net->n; r++) {
    memcpy(words, perigee__roll_note(net, r, &bytes), NOTE_HEAD);
    if (words[NOTE_ROOMS] != blocks)
      return perigee__net_blame_sizes(net);
  }
  return 0;
}

/* Blocks from the notes that have them. */
static int take_notes(state *s) {
  perigee__net *net = s->net;
  for (int r = 0; r < net->n; r++) {
    size_t bytes, size = block_bytes(s, r);
    const unsigned char *note = perigee__roll_note(net, r, &bytes);
    bool here = way_of(s, size) == PERIGEE_ALGO_BRUCK;
    if (bytes - NOTE_HEAD != (here ? size : 0))
      return perigee__net_blame_proto(net, r);
    if (here && r != net->me && size > 0)
      memcpy(net->call->out_blocks[r].ptr, note + NOTE_HEAD, size);
  }
  return 0;
}

/* ---- direct ------------------------------------------------------------------------------------ */

static void recv_direct(state *s) {
  perigee__net *net = s->net;
  for (int i = 1; i < net->n; i++) {
    int owner = (net->me - i + net->n) % net->n;
    size_t bytes = block_bytes(s, owner);
    if (way_of(s, bytes) == PERIGEE_ALGO_DIRECT)
      perigee__net_recv(net, &s->recvs[owner], owner, STEP_DIRECT, net->call->out_blocks[owner].ptr,
                        bytes);
  }
}

static void send_direct(state *s) {
  perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  if (way_of(s, call->in_bytes) != PERIGEE_ALGO_DIRECT)
    return;
  for (int i = 1; i < net->n; i++) {
    int peer = (net->me + i) % net->n;
    perigee__net_send(net, &s->sends[peer], peer, STEP_DIRECT, call->in, call->in_bytes);
  }
}

/* ---- ring -------------------------------------------------------------------------------------- */

static bool rings(const state *s, int owner) {
  return way_of(s, block_bytes(s, owner)) == PERIGEE_ALGO_RING;
}

/* Pass on every block but those that the right neighbour owns. */
static void send_right(state *s, int owner, const void *data) {
  perigee__net *net = s->net;
  int right = (net->me + 1) % net->n;
  if (owner != right)
    perigee__net_send(net, &s->passes[owner], right, STEP_RING + owner, data,
                      block_bytes(s, owner));
}

static int run_ring(state *s) {
  perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  int left = (net->me + net->n - 1) % net->n;
  for (int i = 1; i < net->n; i++) {
    int owner = (net->me - i + net->n) % net->n;
    if (rings(s, owner))
      perigee__net_recv(net, &s->recvs[owner], left, STEP_RING + owner, call->out_blocks[owner].ptr,
                        block_bytes(s, owner));
  }
  if (rings(s, net->me))
    send_right(s, net->me, call->in);
  for (int i = 1; i < net->n; i++) {
    int owner = (net->me - i + net->n) % net->n;
    if (!rings(s, owner))
      continue;
    PERIGEE_TRY(perigee__net_wait(net, &s->recvs[owner]));
    send_right(s, owner, call->out_blocks[owner].ptr);
  }
  return 0;
}

/* ---- entry ------------------------------------------------------------------------------------- */

static void copy_own(const perigee__net *net) {
  const perigee__coll_call *call = net->call;
  void *own = call->out_blocks[net->me].ptr;
  if (call->in_bytes > 0 && call->in != own)
    memcpy(own, call->in, call->in_bytes);
}

int perigee__net_allgather(perigee__net *net) {
  size_t n = (size_t)net->n;
  state s = {.net = net};
  s.recvs = perigee__net_msgs(net, 3 * n);
  if (s.recvs == NULL)
    return net->error->code;
  s.sends = s.recvs + n;
  s.passes = s.sends + n;
  net->comparing = true;
  recv_direct(&s);
  PERIGEE_TRY(start_roll(&s));
  send_direct(&s);
  PERIGEE_TRY(perigee__roll_wait(net));
  PERIGEE_TRY(compare_sizes(net));
  net->comparing = false;
  PERIGEE_TRY(take_notes(&s));
  copy_own(net);
  PERIGEE_TRY(run_ring(&s));
  return perigee__net_finish(net);
}
