/*
 * Allreduce on several hosts with equally many ranks each: what stays on a host goes through shared memory, and every rank carries
 * its part of what has to leave it.
 *
 * Vocabulary
 *   host, local  place of a rank: its host counted in the order of their first ranks, its number among the host's ranks
 *   slice        of the vector, one per local number: slice l is the business of rank l of every host
 *   piece        PIECE elements of a slice (the last may be shorter), the unit of the pipeline
 *   part         of a piece, one per host
 *   counterpart  the rank with the same local number on another host
 *
 * Each piece goes through four stages:
 *   1 gather     every rank sends piece j of slice m to its neighbour m on the host; l adds up what it gets, in rank order
 *   2 exchange   part k of that sum goes, as an accumulator, to the counterpart on host k, who adds up the parts of all hosts, in the
 *                order of the hosts, and rounds once
 *   3 return     and sends the result to all counterparts
 *   4 spread     who has all parts of a piece passes it on to the neighbours on its host
 * DEPTH pieces are under way, one in each stage. All ranks take the stages of all pieces in one order, and a stage waits only for
 * stages that come before it in that order, so it cannot deadlock. All receives of a piece are posted before its first send.
 *
 * Order of sums: ((all of host 0) + (all of host 1)) ..., each bracket in rank order; one rank rounds, so all have the same bits.
 * In place is safe: a piece is overwritten after this rank's contribution to it has arrived where it was needed.
 *
 * Cost: bytes that leave a host 2 S (h-1)/h, whatever the number p of its ranks (direct: p times that for p ranks on each of 2
 * hosts); p connections to each other host, all busy.
 */
#include <string.h>

#include "coll/net_call.h"

enum {
  STEP_GATHER = PERIGEE_NET_STEP_DATA,
  STEP_EXCHANGE,
  STEP_RETURN,
  STEP_SPREAD,
  STAGES = 4,
  DEPTH = STAGES + 1
};
/* Scratch stays in the last-level cache: beyond this, pieces get shorter. */
#define SCRATCH_MAX ((size_t)4 << 20)

typedef struct state {
  perigee__net *net;
  const perigee__reduce_plan *plan;
  const unsigned char *in;
  unsigned char *out;
  int hosts, locals, host, local;
  const int *rank; /* [hosts][locals] */
  size_t count, piece, npieces;
  perigee__msg *msgs;      /* [DEPTH][STAGES][2][max(hosts, locals)]: receives, sends */
  unsigned char *gathered; /* [DEPTH][locals][piece] */
  unsigned char *
      sums; /* [DEPTH][hosts][piece]: accumulators. Row of the own host: all parts; of others: ours */
  const void **srcs; /* locals */
} state;

/* ---- places ------------------------------------------------------------------------------------- */

/* Some number that the ranks of one host have in common. */
static int host_of(const perigee__net *net, int rank) {
  int pretended = net->tuning->ranks_per_host;
  return pretended > 0 ? rank / pretended
                       : perigee__mesh_host_of(net->mesh, net->fate->members[rank]);
}

/* rank[] host by host, if each has as many. Returns the number of hosts, 0 when they differ. */
static int sort_by_host(const perigee__net *net, int *rank) {
  int n = net->n, hosts = 0, locals = 0, filled = 0;
  for (int first = 0; first < n; first++) {
    int host = host_of(net, first), earlier = 0, here = 0;
    while (earlier < first && host_of(net, earlier) != host)
      earlier++;
    if (earlier < first)
      continue; /* counted with its first rank */
    for (int r = first; r < n; r++)
      if (host_of(net, r) == host) {
        here++;
        if (rank != NULL)
          rank[filled] = r;
        filled++;
      }
    if (hosts++ == 0)
      locals = here;
    if (here != locals)
      return 0;
  }
  return hosts;
}

bool perigee__net_has_hosts(const perigee__net *net) {
  int hosts = sort_by_host(net, NULL);
  return hosts > 1 && hosts < net->n;
}

bool perigee__net_on_hosts(perigee__mesh *mesh, perigee__fate *fate,
                           const perigee__tuning *tuning) {
  perigee__net net;
  perigee__net_init(&net, mesh, fate, tuning, NULL, NULL);
  bool hosts = perigee__net_has_hosts(&net);
  perigee__net_fini(&net);
  return hosts;
}

static int rank_at(const state *s, int host, int local) {
  return s->rank[host * s->locals + local];
}

/* ---- pieces ------------------------------------------------------------------------------------- */

/* First element of piece j of a slice. */
static size_t piece_at(const state *s, int slice, size_t j) {
  return perigee__slice_at(s->count, s->locals, slice) + j * s->piece;
}
/* Its elements, 0 when the slice has no such piece. */
static size_t piece_count(const state *s, int slice, size_t j) {
  size_t end = perigee__slice_at(s->count, s->locals, slice + 1), at = piece_at(s, slice, j);
  if (at >= end)
    return 0;
  return end - at < s->piece ? end - at : s->piece;
}
/* Of the own piece j: first element of a part within it, and its elements. */
static size_t part_at(const state *s, size_t j, int part) {
  return perigee__slice_at(piece_count(s, s->local, j), s->hosts, part);
}
static size_t part_count(const state *s, size_t j, int part) {
  return part_at(s, j, part + 1) - part_at(s, j, part);
}

static perigee__msg *msgs_of(const state *s, size_t j, int step, bool send) {
  int most = s->hosts > s->locals ? s->hosts : s->locals;
  size_t row = ((j % DEPTH) * STAGES + (size_t)(step - STEP_GATHER)) * 2 + send;
  return s->msgs + row * (size_t)most;
}
static unsigned char *gathered_of(const state *s, size_t j, int local) {
  return s->gathered + ((j % DEPTH) * (size_t)s->locals + (size_t)local) * s->piece * s->plan->size;
}
static unsigned char *sum_of(const state *s, size_t j, int host) {
  return s->sums + ((j % DEPTH) * (size_t)s->hosts + (size_t)host) * s->piece * s->plan->acc_size;
}
static unsigned char *out_of(const state *s, int slice, size_t j) {
  return s->out + piece_at(s, slice, j) * s->plan->size;
}

/* ---- stages ------------------------------------------------------------------------------------- */

static void post_receives(state *s, size_t j) {
  perigee__net *net = s->net;
  size_t size = s->plan->size, acc_size = s->plan->acc_size;
  size_t own = piece_count(s, s->local, j), mine = part_count(s, j, s->host);
  for (int m = 0; m < s->locals; m++) {
    int peer = rank_at(s, s->host, m);
    size_t theirs = piece_count(s, m, j);
    if (m == s->local)
      continue;
    if (own > 0)
      perigee__net_recv(net, &msgs_of(s, j, STEP_GATHER, false)[m], peer, STEP_GATHER,
                        gathered_of(s, j, m), own * size);
    if (theirs > 0)
      perigee__net_recv(net, &msgs_of(s, j, STEP_SPREAD, false)[m], peer, STEP_SPREAD,
                        out_of(s, m, j), theirs * size);
  }
  for (int k = 0; k < s->hosts; k++) {
    int peer = rank_at(s, k, s->local);
    size_t part = part_count(s, j, k);
    if (k == s->host)
      continue;
    if (mine > 0)
      perigee__net_recv(net, &msgs_of(s, j, STEP_EXCHANGE, false)[k], peer, STEP_EXCHANGE,
                        sum_of(s, j, k), mine * acc_size);
    if (part > 0)
      perigee__net_recv(net, &msgs_of(s, j, STEP_RETURN, false)[k], peer, STEP_RETURN,
                        out_of(s, s->local, j) + part_at(s, j, k) * size, part * size);
  }
}

static int gather(state *s, size_t j) {
  perigee__net *net = s->net;
  int most = s->hosts > s->locals ? s->hosts : s->locals;
  PERIGEE_TRY(perigee__net_wait_all(net, msgs_of(s, j, STEP_GATHER, false),
                                    (size_t)STAGES * 2 * (size_t)most));
  post_receives(s, j);
  for (int i = 1; i < s->locals; i++) { /* not all to the first one first */
    int m = (s->local + i) % s->locals;
    size_t count = piece_count(s, m, j);
    if (count > 0)
      perigee__net_send(net, &msgs_of(s, j, STEP_GATHER, true)[m], rank_at(s, s->host, m),
                        STEP_GATHER, s->in + piece_at(s, m, j) * s->plan->size,
                        count * s->plan->size);
  }
  return 0;
}

static int exchange(state *s, size_t j) {
  perigee__net *net = s->net;
  const perigee__reduce_plan *plan = s->plan;
  size_t count = piece_count(s, s->local, j);
  if (count == 0)
    return 0;
  PERIGEE_TRY(perigee__net_wait_all(net, msgs_of(s, j, STEP_GATHER, false), (size_t)s->locals));
  for (int m = 0; m < s->locals; m++)
    s->srcs[m] = gathered_of(s, j, m);
  s->srcs[s->local] = s->in + piece_at(s, s->local, j) * plan->size;
  unsigned char *sum = sum_of(s, j, s->host);
  perigee__reduce_load(plan, sum, s->srcs[0], count);
  for (int m = 1; m < s->locals; m++)
    perigee__reduce_add(plan, sum, s->srcs[m], count);
  for (int i = 1; i < s->hosts; i++) {
    int k = (s->host + i) % s->hosts;
    size_t part = part_count(s, j, k);
    if (part > 0)
      perigee__net_send(net, &msgs_of(s, j, STEP_EXCHANGE, true)[k], rank_at(s, k, s->local),
                        STEP_EXCHANGE, sum + part_at(s, j, k) * plan->acc_size,
                        part * plan->acc_size);
  }
  return 0;
}

static int give_back(state *s, size_t j) {
  perigee__net *net = s->net;
  const perigee__reduce_plan *plan = s->plan;
  size_t count = part_count(s, j, s->host);
  if (count == 0)
    return 0;
  PERIGEE_TRY(perigee__net_wait_all(net, msgs_of(s, j, STEP_EXCHANGE, false), (size_t)s->hosts));
  size_t at = part_at(s, j, s->host);
  unsigned char *own = sum_of(s, j, s->host) + at * plan->acc_size;
  unsigned char *total = s->host == 0 ? own : sum_of(s, j, 0);
  for (int k = 1; k < s->hosts; k++)
    perigee__reduce_add_acc(plan, total, k == s->host ? own : sum_of(s, j, k), count);
  unsigned char *out = out_of(s, s->local, j) + at * plan->size;
  perigee__reduce_finish(plan, out, total, count);
  for (int i = 1; i < s->hosts; i++) {
    int k = (s->host + i) % s->hosts;
    perigee__net_send(net, &msgs_of(s, j, STEP_RETURN, true)[k], rank_at(s, k, s->local),
                      STEP_RETURN, out, count * plan->size);
  }
  return 0;
}

static int spread(state *s, size_t j) {
  perigee__net *net = s->net;
  size_t count = piece_count(s, s->local, j);
  if (count == 0)
    return 0;
  PERIGEE_TRY(perigee__net_wait_all(net, msgs_of(s, j, STEP_RETURN, false), (size_t)s->hosts));
  for (int i = 1; i < s->locals; i++) {
    int m = (s->local + i) % s->locals;
    perigee__net_send(net, &msgs_of(s, j, STEP_SPREAD, true)[m], rank_at(s, s->host, m),
                      STEP_SPREAD, out_of(s, s->local, j), count * s->plan->size);
  }
  return 0;
}

/* ---- the call ----------------------------------------------------------------------------------- */

static int find_place(state *s) {
  perigee__net *net = s->net;
  int *rank = perigee__net_alloc(net, (size_t)net->n, sizeof(*rank));
  if (rank == NULL)
    return net->error->code;
  s->hosts = sort_by_host(net, rank);
  s->locals = net->n / s->hosts;
  s->rank = rank;
  for (int i = 0; i < net->n; i++)
    if (rank[i] == net->me) {
      s->host = i / s->locals;
      s->local = i % s->locals;
    }
  return 0;
}

static int allocate(state *s) {
  perigee__net *net = s->net;
  size_t hosts = (size_t)s->hosts, locals = (size_t)s->locals;
  size_t size = s->plan->size, acc_size = s->plan->acc_size;
  size_t longest = perigee__slice_at(s->count, s->locals, 1); /* slice 0 is never shorter */
  size_t most = SCRATCH_MAX / (DEPTH * (locals * size + hosts * acc_size));
  s->piece = perigee__net_segment(net, size);
  if (s->piece > most)
    s->piece = most > 0 ? most : 1;
  if (s->piece > longest)
    s->piece = longest;
  s->npieces = (longest + s->piece - 1) / s->piece;
  s->msgs = perigee__net_msgs(net, DEPTH * STAGES * 2 * (hosts > locals ? hosts : locals));
  s->gathered = perigee__net_buffer(net, DEPTH * locals * s->piece, size);
  s->sums = perigee__net_buffer(net, DEPTH * hosts * s->piece, acc_size);
  s->srcs = perigee__net_alloc(net, locals, sizeof(*s->srcs));
  bool good = s->msgs != NULL && s->gathered != NULL && s->sums != NULL && s->srcs != NULL;
  return good ? 0 : net->error->code;
}

int perigee__net_allreduce_hier(perigee__net *net, const perigee__reduce_plan *plan) {
  static int (*const stages[STAGES])(state *, size_t) = {gather, exchange, give_back, spread};
  const perigee__coll_call *call = net->call;
  state s = {.net = net, .plan = plan, .in = call->in, .out = call->out, .count = call->count};
  PERIGEE_TRY(find_place(&s));
  PERIGEE_TRY(allocate(&s));
  PERIGEE_TRY(perigee__roll_link(net, NULL, 0, NULL, 0));
  for (size_t t = 0; t < s.npieces + STAGES - 1; t++)
    for (size_t stage = 0; stage < STAGES; stage++)
      if (t >= stage && t - stage < s.npieces)
        PERIGEE_TRY(stages[stage](&s, t - stage));
  return perigee__net_finish(net);
}
