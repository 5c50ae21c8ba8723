/*
 * Collectives over the mesh: entry, and why a call that ends well was the same call on all ranks.
 *
 * "Agreed" below: this rank knows that all n ranks have entered with its fingerprint. Every message carries its sender's
 * fingerprint and a receive with another one is an error, so hearing from a rank proves that it, and all that it had heard from
 * before it sent, agree. Per kind (algorithm):
 *   barrier, broadcast, reduce, gather, scatter, allgather, alltoall
 *       a whole roll call (net_roll.h) goes along with the data and the call waits for it.
 *   allreduce, reduce_scatter (bruck), and whatever has no elements at all
 *       as well; the data is in its notes.
 *   allreduce (recdbl, halving, oneshot, direct, ring), count > 0
 *       every rank receives at least one element that was reduced from the contributions of all ranks, or all
 *       contributions themselves: whoever had a part in it had received, with matching fingerprints, what it added to. A
 *       link (one round) makes mismatches prompt.
 *   reduce_scatter (direct, ring)
 *       the same, where every rank has a block that is not empty; otherwise a whole roll call.
 *
 * A mismatch fails the group from the rank that hears it in round 0; the others are told by the mesh within a message's
 * time, whatever they wait for. A block that does not fit its room: net_sizes.c.
 */
#include "coll/net.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "coll/fingerprint.h"
#include "coll/net_call.h"

int perigee__net_barrier(perigee__net *net) {
  PERIGEE_TRY(perigee__roll_start(net));
  return perigee__net_finish(net);
}

size_t perigee__net_segment(const perigee__net *net, size_t unit) {
  size_t elems = net->tuning->segment / unit, max = net->tuning->segment_max_elems;
  if (max > 0 && elems > max)
    elems = max;
  return elems > 0 ? elems : 1;
}

static int run(perigee__net *net) {
  if (perigee__fate_failed(net->fate))
    return perigee__net_blame_fate(net);
  switch (net->call->kind) {
  case PERIGEE_COLL_BARRIER:
    return perigee__net_barrier(net);
  case PERIGEE_COLL_ALLREDUCE:
    return perigee__net_allreduce(net);
  case PERIGEE_COLL_BROADCAST:
    return perigee__net_broadcast(net);
  case PERIGEE_COLL_REDUCE:
    return perigee__net_reduce(net);
  case PERIGEE_COLL_ALLGATHER:
    return perigee__net_allgather(net);
  case PERIGEE_COLL_GATHER:
  case PERIGEE_COLL_SCATTER:
  case PERIGEE_COLL_ALLTOALL:
    return perigee__net_exchange(net);
  case PERIGEE_COLL_REDUCE_SCATTER:
    return perigee__net_reduce_scatter(net);
  }
  perigee__error_set(net->error, PERIGEE_EBUG, "collective %d is none", (int)net->call->kind);
  return PERIGEE_EBUG;
}

int perigee__net_run(perigee__mesh *mesh, perigee__fate *fate, const perigee__tuning *tuning,
                     perigee__net_spare *spare, const perigee__coll_call *call,
                     perigee_error *error_p) {
  perigee__net net;
  perigee__net_init(&net, mesh, fate, tuning, call, error_p);
  net.spare = spare;
  int rc = run(&net);
  if (rc != 0)
    rc = perigee__net_fail_group(&net);
  perigee__net_fini(&net);
  return rc;
}

/* ---- agreement on the configuration ------------------------------------------------------------ */

/* What ranks must have in common, in the order of config_names. */
enum {
  CONFIG_SELECT, /* first: a rule may set the segment */
  CONFIG_SEGMENT,
  CONFIG_DETERMINISTIC,
  CONFIG_COUNT
};
static const char *const config_names[CONFIG_COUNT] = {
    "the table of rules (PERIGEE_SELECT, PERIGEE_TUNING_FILE, option tuning)", "PERIGEE_SEGMENT",
    "PERIGEE_DETERMINISTIC"};

static void config_of(const perigee__tuning *tuning, uint64_t *config) {
  uint64_t hash = 0;
  for (int i = 0; i < tuning->select.nrules; i++) {
    const perigee__select_rule *r = &tuning->select.rules[i];
    hash = perigee__hash_mix(hash, (uint64_t)r->where << 16 | (uint64_t)r->kind << 8 | r->algo);
    hash = perigee__hash_mix(hash, (uint64_t)r->min_ranks << 32 | (uint64_t)r->max_ranks);
    hash = perigee__hash_mix(perigee__hash_mix(hash, r->min_bytes), r->end_bytes);
  }
  config[CONFIG_SEGMENT] = perigee__hash_mix(tuning->segment, tuning->segment_max_elems);
  config[CONFIG_DETERMINISTIC] = tuning->deterministic;
  config[CONFIG_SELECT] = hash;
}

/* All ranks hold the same notes, so all come to the same verdict. */
static int compare_configs(perigee__net *net) {
  uint64_t first[CONFIG_COUNT], other[CONFIG_COUNT];
  size_t bytes;
  for (int r = 0; r < net->n; r++) {
    perigee__roll_note(net, r, &bytes);
    if (bytes != sizeof(first))
      return perigee__net_blame_proto(net, r);
  }
  memcpy(first, perigee__roll_note(net, 0, &bytes), sizeof(first));
  for (int c = 0; c < CONFIG_COUNT; c++) {
    perigee_error differ;
    perigee__error_init(&differ);
    for (int r = 1; r < net->n; r++) {
      memcpy(other, perigee__roll_note(net, r, &bytes), sizeof(other));
      if (other[c] != first[c])
        perigee__error_add_rank(&differ, r);
    }
    if (differ.nranks == 0)
      continue;
    char ranks[160];
    perigee__error_ranks_text(&differ, ranks, sizeof(ranks));
    perigee__error_set(net->error, PERIGEE_ECONFIG, "%s of ranks %s is not that of rank 0",
                       config_names[c], ranks);
    net->error->rank = net->me;
    snprintf(net->error->group, sizeof(net->error->group), "%s", net->fate->name);
    return PERIGEE_ECONFIG;
  }
  return 0;
}

static int exchange_configs(perigee__net *net) {
  uint64_t config[CONFIG_COUNT];
  config_of(net->tuning, config);
  PERIGEE_TRY(perigee__roll_start_notes(net, config, sizeof(config),
                                        (size_t)net->n * sizeof(config), NULL));
  return perigee__net_finish(net);
}

int perigee__net_agree(perigee__mesh *mesh, perigee__fate *fate, const perigee__tuning *tuning,
                       int64_t deadline_ns) {
  perigee__fingerprint barrier = {.op = PERIGEE_OP_BARRIER, .dtype = -1, .redop = -1, .root = -1};
  int64_t left = perigee__time_left(deadline_ns);
  perigee__coll_call call = {.kind = PERIGEE_COLL_BARRIER,
                             .op = PERIGEE_OP_BARRIER,
                             .fp = perigee__fingerprint_pack(&barrier),
                             .timeout_ns = left,
                             .deadline_ns = deadline_ns};
  perigee_error error;
  perigee__error_init(&error);
  perigee__net net;
  perigee__net_init(&net, mesh, fate, tuning, &call, &error);
  int rc = exchange_configs(&net);
  rc = rc != 0 ? perigee__net_fail_group(&net) : compare_configs(&net);
  perigee__net_fini(&net);
  /* Another rank has come through, and has failed in a call since: that is this rank's news in its own first call. */
  if (rc != 0 && perigee__fate_failed(fate) && fate->error.seq > 0)
    return 0;
  return rc != 0 ? perigee__fail_with(&error) : 0;
}
