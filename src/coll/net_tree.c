/*
 * Broadcast and reduce over a binomial tree (pattern_tree.h), the whole vector in every message.
 *
 * Broadcast: receive from the parent, send to the children, the one with the largest subtree first.
 * Reduce: receive from the children, the one with the smallest subtree first, add, send to the parent. A subtree holds
 * positions that follow each other, and they are added in that order: the sum's brackets follow the tree, starting at the root's
 * own contribution, positions being ranks relative to the root. Sums travel as accumulators, the contribution of a leaf
 * in its own dtype; the root rounds once.
 *
 * Cost: ceil(log2 n) steps of S bytes. The roll call goes along beside it.
 */
#include <string.h>

#include "coll/net_call.h"
#include "coll/pattern_tree.h"

enum {
  STEP = PERIGEE_NET_STEP_DATA,
  CHILDREN_MAX = 31
};

int perigee__net_broadcast_binomial(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  int position = perigee__tree_position(net->n, call->root, net->me);
  int children = perigee__tree_children(net->n, position);
  perigee__msg *msgs = perigee__net_msgs(net, (size_t)children + 1);
  if (msgs == NULL)
    return net->error->code;
  if (position > 0)
    perigee__net_recv(net, msgs,
                      perigee__tree_rank(net->n, call->root, perigee__tree_parent(position)), STEP,
                      call->out, call->bytes);
  PERIGEE_TRY(perigee__roll_start(net));
  PERIGEE_TRY(perigee__net_wait_all(net, msgs, 1));
  for (int i = children - 1; i >= 0; i--)
    perigee__net_send(net, &msgs[1 + i],
                      perigee__tree_rank(net->n, call->root, perigee__tree_child(position, i)),
                      STEP, call->out, call->bytes);
  return perigee__net_finish(net);
}

static bool is_leaf(int n, int position) { return perigee__tree_children(n, position) == 0; }

/* What the children sent, added to the own vector in acc. */
static int add_children(perigee__net *net, const perigee__reduce_plan *plan, int position,
                        perigee__msg *recvs, unsigned char *const *theirs, unsigned char *acc) {
  const perigee__coll_call *call = net->call;
  perigee__reduce_load(plan, acc, call->in, call->count);
  for (int i = 0; i < perigee__tree_children(net->n, position); i++) {
    PERIGEE_TRY(perigee__net_wait(net, &recvs[i]));
    if (is_leaf(net->n, perigee__tree_child(position, i)))
      perigee__reduce_add(plan, acc, theirs[i], call->count);
    else
      perigee__reduce_add_acc(plan, acc, theirs[i], call->count);
  }
  return 0;
}

static int post_children(perigee__net *net, const perigee__reduce_plan *plan, int position,
                         perigee__msg *recvs, unsigned char **theirs) {
  const perigee__coll_call *call = net->call;
  for (int i = 0; i < perigee__tree_children(net->n, position); i++) {
    int child = perigee__tree_child(position, i);
    size_t bytes = call->count * (is_leaf(net->n, child) ? plan->size : plan->acc_size);
    theirs[i] = perigee__net_buffer(net, 1, bytes);
    if (theirs[i] == NULL)
      return net->error->code;
    perigee__net_recv(net, &recvs[i], perigee__tree_rank(net->n, call->root, child), STEP,
                      theirs[i], bytes);
  }
  return 0;
}

int perigee__net_reduce_binomial(perigee__net *net, const perigee__reduce_plan *plan) {
  const perigee__coll_call *call = net->call;
  int position = perigee__tree_position(net->n, call->root, net->me);
  int parent = perigee__tree_parent(position), children = perigee__tree_children(net->n, position);
  unsigned char *theirs[CHILDREN_MAX];
  perigee__msg *msgs = perigee__net_msgs(net, (size_t)children + 1);
  unsigned char *acc = perigee__net_buffer(net, children > 0 ? call->count : 0, plan->acc_size);
  if (msgs == NULL || acc == NULL)
    return net->error->code;
  PERIGEE_TRY(post_children(net, plan, position, msgs, theirs));
  PERIGEE_TRY(perigee__roll_start(net));
  if (children > 0)
    PERIGEE_TRY(add_children(net, plan, position, msgs, theirs, acc));
  if (parent >= 0)
    perigee__net_send(net, &msgs[children], perigee__tree_rank(net->n, call->root, parent), STEP,
                      children > 0 ? acc : call->in,
                      call->count * (children > 0 ? plan->acc_size : plan->size));
  else
    perigee__reduce_finish(plan, call->out, acc, call->count);
  return perigee__net_finish(net);
}

/* ---- choice ------------------------------------------------------------------------------------ */

/* The root's note is the data. */
static int broadcast_bruck(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  bool root = net->me == call->root;
  PERIGEE_TRY(perigee__roll_start_notes(net, call->out, root ? call->bytes : 0, call->bytes, NULL));
  PERIGEE_TRY(perigee__net_finish(net));
  size_t bytes;
  const void *note = perigee__roll_note(net, call->root, &bytes);
  if (bytes != call->bytes)
    return perigee__net_blame_proto(net, call->root);
  if (!root)
    memcpy(call->out, note, bytes);
  return 0;
}

int perigee__net_broadcast(perigee__net *net) {
  const perigee__coll_call *call = net->call;
  if (call->bytes == 0)
    return perigee__net_barrier(net);
  switch (perigee__select_algo(net->tuning, call->kind, net->n, false, call->bytes)) {
  case PERIGEE_ALGO_BRUCK:
    return broadcast_bruck(net);
  case PERIGEE_ALGO_BINOMIAL:
    return perigee__net_broadcast_binomial(net);
  default:
    return perigee__net_broadcast_chain(net);
  }
}
