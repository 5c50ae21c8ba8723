/*
 * Gather, scatter, alltoall: blocks from one rank to another.
 *
 * Small blocks ride as mail in the roll call's messages where these go to the right rank anyway (distances 1, 2, 4 ...). Those of an alltoall
 * that the rules call bruck (by their size, block by block) ride wherever they go: a rank d to the right is reached by a hop in each round k
 * whose bit is set in d, and the ranks in between pass the letter on. All others are messages of their own, straight into the receiver's
 * memory, posted at once, receives before sends, towards the nearest right neighbour first so that no rank is everybody's first target.
 *   mail := letter ..., letter := u32 from, u32 to, u64 bytes, data, padding to 8
 *
 *   n = 8, 0 to 7 (= 1 + 2 + 4): 0 -> 1 in round 0, -> 3 in round 1, -> 7 in round 2
 *
 * Sizes. A block must be exactly as long as its room, so the receiver's room tells how the block will come. Whether all fit is
 * known when the roll call is over (net_sizes.c), by its notes:
 *   gather     root: room for each rank's block, and its own block's size; others: the size of theirs
 *   scatter    root: size of each rank's block, and its own room; others: their room
 *   alltoall   a checksum: sum over the blocks a rank sends of h(from, to, bytes), minus the sum over the rooms it has of
 *              h(from, to, room). All of them add up to 0 when every block fits.
 *
 * Cost: n-1 messages at the root (gather, scatter) or at every rank (alltoall), the roll call's beside them; by bruck none beside the
 * ceil(log2 n) of the roll call, but each block is sent up to log2 n times, half of that on average.
 * Source: Bruck et al. 1997.
 */
#include <string.h>

#include "coll/fingerprint.h"
#include "coll/net_call.h"

enum {
  STEP = PERIGEE_NET_STEP_DATA,
  STRAIGHT_MAX = 1024 /* bytes of a block that rides because its receiver is there anyway */
};

struct held;

typedef struct state {
  perigee__net *net;
  perigee__msg *recvs, *sends; /* n each */
  bool *mailed;                /* n: came as mail and fits */
  struct held *held;           /* letters for others, of all rounds */
  bool asked, asked_mail;      /* of asked_bytes */
  size_t asked_bytes;
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

static int distance_of(const state *s, int from, int to) {
  return (to - from + s->net->n) % s->net->n;
}
static int lowest_bit(int bits) { return bits & -bits; }
static size_t padded(size_t bytes) { return (bytes + 7) & ~(size_t)7; }

perigee__algo perigee__net_alltoall_way(const perigee__tuning *tuning, int n, size_t bytes,
                                        const perigee__select_rule **rule_p) {
  perigee__algo algo;
  *rule_p = perigee__select_rule_for(tuning, PERIGEE_COLL_ALLTOALL, n, false, bytes, &algo);
  return algo == PERIGEE_ALGO_BRUCK && bytes > PERIGEE_NET_LETTER_MAX ? PERIGEE_ALGO_DIRECT : algo;
}

/* Whether a block of this size goes by mail, wherever it goes. */
static bool by_mail(state *s, size_t bytes) {
  const perigee__select_rule *rule;
  if (s->net->call->kind != PERIGEE_COLL_ALLTOALL)
    return false;
  if (!s->asked || s->asked_bytes != bytes) { /* mostly all blocks have one size */
    s->asked = true;
    s->asked_bytes = bytes;
    s->asked_mail =
        perigee__net_alltoall_way(s->net->tuning, s->net->n, bytes, &rule) == PERIGEE_ALGO_BRUCK;
  }
  return s->asked_mail;
}

static bool rides(state *s, int from, int to, size_t bytes) {
  if (bytes <= STRAIGHT_MAX && perigee__roll_reaches(s->net->n, from, to))
    return true;
  return by_mail(s, bytes);
}

/* A letter as it stands in a mail, and in this rank's hands until the round of its next hop. */
typedef struct letter {
  uint32_t from, to;
  uint64_t bytes; /* of data; padding to 8 behind it */
  unsigned char data[];
} letter;

typedef struct held {
  struct held *next;
  int hop; /* the distance of its next round */
  const letter *letter;
} held;

static size_t letter_size(size_t bytes) { return sizeof(letter) + padded(bytes); }

static void write_letter(unsigned char **at, int from, int to, const void *data, size_t bytes) {
  const letter head = {.from = (uint32_t)from, .to = (uint32_t)to, .bytes = bytes};
  memcpy(*at, &head, sizeof(head));
  if (bytes > 0)
    memcpy(*at + sizeof(head), data, bytes);
  memset(*at + sizeof(head) + bytes, 0, padded(bytes) - bytes);
  *at += letter_size(bytes);
}

/* The mail to the rank `hop` to the right: own blocks whose first hop this is, and what others have left with us. at NULL: only
 * counts. */
static size_t write_mail(state *s, int hop, unsigned char *at) {
  int me = s->net->me, n = s->net->n;
  size_t total = 0;
  for (int d = hop; d < n; d += 2 * hop) { /* bit `hop` is the lowest of d */
    int to = (me + d) % n;
    if (!sends_to(s, to))
      continue;
    perigee__block block = outgoing(s, to);
    if (!rides(s, me, to, block.bytes))
      continue;
    total += letter_size(block.bytes);
    if (at != NULL)
      write_letter(&at, me, to, block.ptr, block.bytes);
  }
  for (const held *h = s->held; h != NULL; h = h->next) {
    const letter *l = h->letter;
    if (h->hop != hop)
      continue;
    total += letter_size((size_t)l->bytes);
    if (at != NULL)
      write_letter(&at, (int)l->from, (int)l->to, l->data, (size_t)l->bytes);
  }
  return total;
}

static int pick_mail(void *arg, int peer, const void **data_p, size_t *bytes_p) {
  state *s = arg;
  int hop = distance_of(s, s->net->me, peer);
  *bytes_p = write_mail(s, hop, NULL);
  if (*bytes_p == 0)
    return 0;
  unsigned char *mail = perigee__net_buffer(s->net, 1, *bytes_p);
  if (mail == NULL)
    return s->net->error->code;
  write_mail(s, hop, mail);
  *data_p = mail;
  return 0;
}

/* A letter for this rank. One that does not fit is left alone: the notes will tell. */
static void receive_letter(state *s, const letter *head, const unsigned char *data) {
  perigee__block room = incoming(s, (int)head->from);
  if (head->bytes != room.bytes)
    return;
  if (room.bytes > 0)
    memcpy(room.ptr, data, room.bytes);
  s->mailed[head->from] = true;
}

/* A letter for another one: keep it until the round of its next hop. data stays only during the call. */
static int hold_letter(state *s, const letter *head, int hop, const unsigned char *data) {
  held *h = perigee__net_alloc(s->net, 1, sizeof(*h));
  letter *l = perigee__net_buffer(s->net, 1, sizeof(*l) + (size_t)head->bytes);
  if (h == NULL || l == NULL)
    return s->net->error->code;
  *l = *head;
  if (head->bytes > 0)
    memcpy(l->data, data, (size_t)head->bytes);
  *h = (held){.next = s->held, .hop = hop, .letter = l};
  s->held = h;
  return 0;
}

/* Whether a letter can have come this way in this round, by what it says of itself. */
static bool plausible(state *s, const letter *l, int hop) {
  int n = s->net->n, me = s->net->me;
  if (l->from >= (uint32_t)n || l->to >= (uint32_t)n)
    return false;
  int from = (int)l->from, to = (int)l->to, distance = distance_of(s, from, to);
  if ((distance & hop) == 0 || (from + (distance & (2 * hop - 1))) % n != me)
    return false;
  if (!rides(s, from, to, (size_t)l->bytes))
    return false;
  return to != me || receives_from(s, from);
}

static int deliver_mail(void *arg, int peer, const void *data, size_t bytes) {
  state *s = arg;
  const unsigned char *at = data, *end = at + bytes;
  int hop = distance_of(s, peer, s->net->me);
  while (at < end) {
    letter head;
    if ((size_t)(end - at) < sizeof(head))
      return perigee__net_blame_proto(s->net, peer);
    memcpy(&head, at, sizeof(head));
    at += sizeof(head);
    if (head.bytes > (uint64_t)(end - at) || padded((size_t)head.bytes) > (size_t)(end - at) ||
        !plausible(s, &head, hop))
      return perigee__net_blame_proto(s->net, peer);
    if (head.to == (uint32_t)s->net->me)
      receive_letter(s, &head, at);
    else
      PERIGEE_TRY(hold_letter(
          s, &head, lowest_bit(distance_of(s, (int)head.from, (int)head.to) & -(2 * hop)), at));
    at += padded((size_t)head.bytes);
  }
  return 0;
}

/* Everything fits, so what can ride has ridden. */
static int check_mail(state *s) {
  for (int r = 0; r < s->net->n; r++)
    if (receives_from(s, r) && rides(s, r, s->net->me, incoming(s, r).bytes) && !s->mailed[r])
      return perigee__net_blame_proto(s->net, r);
  return 0;
}

/* The most that a mail can be: one block that goes straight there, and of all distances those that have one bit in common. */
static size_t mail_room(const state *s) {
  const perigee__net *net = s->net;
  size_t room = letter_size(STRAIGHT_MAX);
  if (net->call->kind != PERIGEE_COLL_ALLTOALL)
    return room;
  size_t limit = perigee__select_limit(net->tuning, net->call->kind, net->n, PERIGEE_ALGO_BRUCK);
  if (limit > PERIGEE_NET_LETTER_MAX)
    limit = PERIGEE_NET_LETTER_MAX;
  return limit > 0 ? room + (size_t)(net->n + 1) / 2 * letter_size(limit) : room;
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
  const perigee__mail mail = {
      .arg = s, .room = mail_room(s), .pick = pick_mail, .deliver = deliver_mail};
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
