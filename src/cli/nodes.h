/*
 * Launchers of several nodes working as one, through the store that node 0 serves.
 *
 * Keys, all below "perigee/launch/":
 *   run_id       made by node 0, the same in every rank's PERIGEE_RUN_ID
 *   claim/<r>    counter: a second launcher with the same --node-rank is refused
 *   n/<r>        -n of node r: all must be equal
 *   alive/<r>    counter, raised by every beat of node r's launcher
 *   failed       "<exit code> <text>": the first failure of any node; ends all the others
 *   done/<r>     node r has ended
 * Node 0 stays until every other node is done or silent, because the store ends with it; so a store that cannot be reached
 * means to the others that node 0's launcher is gone.
 */
#ifndef PERIGEE_CLI_NODES_H
#define PERIGEE_CLI_NODES_H

#include <stdbool.h>
#include <uv.h>

#include <perigee/store.h>

#include "cli/supervise.h"

typedef struct perigee__nodes {
  const perigee__run_opts *opts;
  perigee_store *store;
  perigee__job *job;
  uv_timer_t timer;
  uv_work_t work;
  /* Of the beat: its thread has them while `beating`, the loop's thread otherwise. */
  bool beating;
  bool lost;      /* the store cannot be reached */
  char tell[256]; /* goes to "failed" with the next beat; "" when there is nothing to tell */
  bool told;
  char heard[256]; /* what "failed" holds; "" while it does not exist */
  int silent;      /* a node whose launcher is gone, -1 none (node 0 only) */
  int nleft;       /* other nodes that are neither done nor silent (node 0 only) */
  struct perigee__node_life {
    int64_t beats, seen_ns; /* last counter, and when it was another one */
    bool done;
  } * lives; /* [nnodes] */
} perigee__nodes;

/**
 * Meet the launchers of the other nodes. Waits up to PERIGEE_INIT_TIMEOUT.
 * run_id: char[33], made here on node 0 and learned elsewhere.
 * Errors: ETIMEDOUT, and ECONFIG when nodes do not fit together.
 */
PERIGEE_MUST_CHECK int perigee__nodes_join(perigee__nodes *nodes, const perigee__run_opts *opts,
                                           char *run_id);
/** Start to beat, to tell of failures of this node and to hear of those of others. */
void perigee__nodes_watch(perigee__nodes *nodes, perigee__job *job);
/** After the job's end, before its loop is closed. Node 0 waits here for the others; a signal ends that. */
void perigee__nodes_leave(perigee__nodes *nodes);
void perigee__nodes_fini(perigee__nodes *nodes);

#endif
