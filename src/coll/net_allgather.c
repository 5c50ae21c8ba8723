/*
 * Allgather of blocks whose sizes may differ from rank to rank.
 *
 * A roll call tells everyone the size of every block; each block then travels as the rules say for its size (select.h), which all ranks
 * know alike:
 *   bruck    in its owner's note, with the roll call
 *   direct   from its owner to every rank, one message each. The owner does not wait for the roll call, nor does a receiver
 *            whose room says that the block will come this way.
 *   ring     from rank to right neighbour, n-1 hops, each into place and on from there
 * note := u64 bytes, u64 checksum of the sender's rooms, [ data ]
 *
 * Sizes. A rank that has too little room for a block knows it when the roll call is over, before the data came where it
 * could not be, and fails the group with ETRUNC. The checksums tell whether all ranks' rooms are equal to the blocks. If not,
 * a second roll call keeps all ranks until every one has found its rooms large enough. A block shorter than its room leaves the
 * rest as it was.
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
/* Room for notes of blocks up to here is made whatever this rank's own rooms are, so that a block that is too long
 * for its room is found by its size and not by a roll call that does not fit. */
enum {
  NOTE_ROOM_MIN = 16384
};

typedef struct state {
  perigee__net *net;
  perigee__msg *recvs, *sends; /* n each */
  size_t *sizes;               /* n: blocks, when the roll call is over */
} state;

static perigee__algo way_of(const state *s, size_t bytes) {
  return perigee__select_algo(s->net->tuning, PERIGEE_COLL_ALLGATHER, s->net->n, bytes);
}

static uint64_t block_hash(int rank, size_t bytes) {
  return perigee__hash_mix(perigee__hash_mix(0, (uint64_t)rank), bytes);
}

static int start_roll(state *s) {
  perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  size_t inlined = way_of(s, call->in_bytes) == PERIGEE_ALGO_BRUCK ? call->in_bytes : 0;
  size_t limit = perigee__select_limit(net->tuning, call->kind, net->n, PERIGEE_ALGO_BRUCK);
  size_t room = 0;
  uint64_t words[NOTE_WORDS] = {call->in_bytes, 0};
  for (int r = 0; r < net->n; r++) {
    size_t block = call->out_blocks[r].bytes;
    words[NOTE_ROOMS] += block_hash(r, block);
    room += NOTE_HEAD + (limit <= NOTE_ROOM_MIN || limit < block ? limit : block);
  }
  unsigned char *note = perigee__net_buffer(net, 1, NOTE_HEAD + inlined);
  if (note == NULL)
    return net->error->code;
  memcpy(note, words, NOTE_HEAD);
  if (inlined > 0)
    memcpy(note + NOTE_HEAD, call->in, inlined);
  return perigee__roll_start_notes(net, note, NOTE_HEAD + inlined, room, NULL);
}

/* Sizes from the notes, blocks from those that have them. *exact_p: everyone's rooms are exactly the blocks. */
static int read_notes(state *s, bool *exact_p) {
  perigee__net *net = s->net;
  uint64_t sum = 0;
  for (int r = 0; r < net->n; r++) {
    uint64_t words[NOTE_WORDS];
    size_t bytes;
    const unsigned char *note = perigee__roll_note(net, r, &bytes);
    if (bytes < NOTE_HEAD)
      return perigee__net_blame_proto(net, r);
    memcpy(words, note, NOTE_HEAD);
    size_t size = (size_t)words[NOTE_BYTES];
    const perigee__block *room = &net->call->out_blocks[r];
    if (size > room->bytes)
      return perigee__net_blame_room(net, r, size, net->me, room->bytes);
    bool here = way_of(s, size) == PERIGEE_ALGO_BRUCK;
    if (bytes - NOTE_HEAD != (here ? size : 0))
      return perigee__net_blame_proto(net, r);
    if (here && r != net->me && size > 0)
      memcpy(room->ptr, note + NOTE_HEAD, size);
    s->sizes[r] = size;
    sum += block_hash(r, size);
  }
  *exact_p = true;
  for (int r = 0; r < net->n; r++) {
    size_t bytes;
    uint64_t rooms;
    memcpy(&rooms, (const unsigned char *)perigee__roll_note(net, r, &bytes) + 8 * NOTE_ROOMS, 8);
    if (rooms != sum)
      *exact_p = false;
  }
  return 0;
}

/* ---- direct ------------------------------------------------------------------------------------ */

static void recv_direct(state *s, int owner) {
  const perigee__block *room = &s->net->call->out_blocks[owner];
  perigee__net_recv(s->net, &s->recvs[owner], owner, STEP_DIRECT, room->ptr, room->bytes);
}

static void guess_direct(state *s) {
  perigee__net *net = s->net;
  for (int i = 1; i < net->n; i++) {
    int owner = (net->me - i + net->n) % net->n;
    if (way_of(s, net->call->out_blocks[owner].bytes) == PERIGEE_ALGO_DIRECT)
      recv_direct(s, owner);
  }
}

/* Put right what the rooms made this rank expect. */
static void correct_direct(state *s) {
  for (int r = 0; r < s->net->n; r++) {
    bool direct = way_of(s, s->sizes[r]) == PERIGEE_ALGO_DIRECT;
    bool posted = s->recvs[r].xfer.key.kind != 0;
    if (r == s->net->me || direct == posted)
      continue;
    if (direct) {
      recv_direct(s, r);
    } else {
      perigee__net_cancel(s->net, &s->recvs[r]);
      memset(&s->recvs[r], 0, sizeof(s->recvs[r]));
    }
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
  return way_of(s, s->sizes[owner]) == PERIGEE_ALGO_RING;
}

/* Pass on every block but those that the right neighbour owns. sends[owner] carries the owner's block. */
static void send_right(state *s, int owner, const void *data) {
  perigee__net *net = s->net;
  int right = (net->me + 1) % net->n;
  if (owner != right)
    perigee__net_send(net, &s->sends[owner], right, STEP_RING + owner, data, s->sizes[owner]);
}

static int run_ring(state *s) {
  perigee__net *net = s->net;
  const perigee__coll_call *call = net->call;
  int left = (net->me + net->n - 1) % net->n;
  for (int i = 1; i < net->n; i++) {
    int owner = (net->me - i + net->n) % net->n;
    if (rings(s, owner))
      perigee__net_recv(net, &s->recvs[owner], left, STEP_RING + owner, call->out_blocks[owner].ptr,
                        s->sizes[owner]);
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

static int copy_own(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  const perigee__block *own = &call->out_blocks[net->me];
  if (call->in_bytes > own->bytes)
    return perigee__net_blame_room(net, net->me, call->in_bytes, net->me, own->bytes);
  if (call->in_bytes > 0 && call->in != own->ptr)
    memcpy(own->ptr, call->in, call->in_bytes);
  return 0;
}

int perigee__net_allgather(perigee__net *net) {
  size_t n = (size_t)net->n;
  bool exact = false;
  state s = {.net = net};
  s.recvs = perigee__net_msgs(net, 2 * n);
  s.sizes = perigee__net_alloc(net, n, sizeof(*s.sizes));
  if (s.recvs == NULL || s.sizes == NULL)
    return net->error->code;
  s.sends = s.recvs + n;
  guess_direct(&s);
  PERIGEE_TRY(start_roll(&s));
  send_direct(&s);
  PERIGEE_TRY(perigee__roll_wait(net));
  PERIGEE_TRY(read_notes(&s, &exact));
  PERIGEE_TRY(copy_own(net));
  correct_direct(&s);
  PERIGEE_TRY(run_ring(&s));
  PERIGEE_TRY(perigee__net_finish(net));
  if (exact)
    return 0;
  PERIGEE_TRY(perigee__roll_start(net, PERIGEE_NET_STEP_CONFIRM));
  return perigee__net_finish(net);
}
