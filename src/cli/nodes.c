#include "cli/nodes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/env.h"
#include "base/error.h"
#include "cli/report.h"

enum {
  BEAT_MS = 300
};
static const int64_t silence_ns = 10 * PERIGEE_NS_PER_SEC;
static const int64_t request_ns = 5 * PERIGEE_NS_PER_SEC;

typedef struct node_key {
  char text[64];
} node_key;

static node_key key_of(const char *what, int node) {
  node_key key;
  snprintf(key.text, sizeof(key.text), "perigee/launch/%s/%d", what, node);
  return key;
}

static const char run_id_key[] = "perigee/launch/run_id";
static const char failed_key[] = "perigee/launch/failed";

/* ---- joining --------------------------------------------------------------------------------------- */

/* The text of a key, cut to size. */
static int get_text(perigee_store *store, const char *key, int64_t timeout_ns, char *buf,
                    size_t size) {
  perigee_bytes bytes;
  PERIGEE_TRY(perigee_store_get(store, key, timeout_ns, &bytes));
  snprintf(buf, size, "%.*s", (int)bytes.size, bytes.data);
  perigee_bytes_free(&bytes);
  return 0;
}

static int claim(perigee__nodes *nodes) {
  int64_t claims;
  PERIGEE_TRY(
      perigee_store_add(nodes->store, key_of("claim", nodes->opts->node_rank).text, 1, &claims));
  if (claims > 1)
    return perigee__fail(PERIGEE_ECONFIG, "--node-rank %d is taken by another launcher",
                         nodes->opts->node_rank);
  return 0;
}

static int compare_counts(perigee__nodes *nodes, int64_t deadline) {
  const perigee__run_opts *o = nodes->opts;
  char text[32];
  snprintf(text, sizeof(text), "%d", o->n);
  PERIGEE_TRY(perigee_store_set(nodes->store, key_of("n", o->node_rank).text, text, strlen(text)));
  for (int node = 0; node < o->nnodes; node++) {
    int rc = get_text(nodes->store, key_of("n", node).text, perigee__time_left(deadline), text,
                      sizeof(text));
    if (rc < 0)
      return perigee__fail(rc, "node %d did not come to %s:%d", node, o->host, o->port);
    if (atoi(text) != o->n)
      return perigee__fail(PERIGEE_ECONFIG, "node %d has -n %s, this node -n %d", node, text, o->n);
  }
  return 0;
}

static int meet(perigee__nodes *nodes, char *run_id, int64_t deadline) {
  PERIGEE_TRY(claim(nodes));
  if (nodes->opts->node_rank == 0)
    PERIGEE_TRY(perigee_store_set(nodes->store, run_id_key, run_id, strlen(run_id)));
  PERIGEE_TRY(compare_counts(nodes, deadline));
  return get_text(nodes->store, run_id_key, perigee__time_left(deadline), run_id, 33);
}

int perigee__nodes_join(perigee__nodes *nodes, const perigee__run_opts *opts, char *run_id) {
  *nodes = (perigee__nodes){.opts = opts, .silent = -1, .nleft = opts->nnodes - 1};
  int64_t timeout = perigee__env_seconds("PERIGEE_INIT_TIMEOUT");
  int64_t deadline = perigee__deadline_in(timeout);
  nodes->lives = perigee__calloc((size_t)opts->nnodes, sizeof(*nodes->lives));
  if (nodes->lives == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for %d nodes", opts->nnodes);
  perigee_store_tcp_options tcp = {
      .size = sizeof(tcp), .host = opts->host, .port = opts->port, .timeout_ns = timeout};
  int rc;
  PERIGEE_TRY_GOTO(perigee_store_tcp_connect(&tcp, &nodes->store), failed);
  PERIGEE_TRY_GOTO(meet(nodes, run_id, deadline), failed);
  perigee_store_set_timeout(nodes->store, request_ns);
  for (int node = 0; node < opts->nnodes; node++)
    nodes->lives[node].seen_ns = perigee__now_ns();
  return 0;
failed:
  perigee__nodes_fini(nodes);
  return rc;
}

/* ---- the beat, on a thread of the pool -------------------------------------------------------------- */

/* 1: key exists, 0: not. */
static int exists(perigee_store *store, const char *key) {
  bool present;
  int rc = perigee_store_check(store, &key, 1, &present);
  return rc < 0 ? rc : present;
}

static int look_at_node(perigee__nodes *nodes, int node) {
  struct perigee__node_life *life = &nodes->lives[node];
  if (life->done)
    return 0;
  int rc = exists(nodes->store, key_of("done", node).text);
  PERIGEE_TRY(rc);
  life->done = rc == 1;
  int64_t beats;
  PERIGEE_TRY(perigee_store_add(nodes->store, key_of("alive", node).text, 0, &beats));
  if (beats != life->beats) {
    life->beats = beats;
    life->seen_ns = perigee__now_ns();
  }
  if (life->done)
    return 0;
  if (perigee__now_ns() - life->seen_ns > silence_ns)
    nodes->silent = node;
  else
    nodes->nleft++;
  return 0;
}

static int beat(perigee__nodes *nodes) {
  int me = nodes->opts->node_rank;
  int64_t beats;
  PERIGEE_TRY(perigee_store_add(nodes->store, key_of("alive", me).text, 1, &beats));
  if (nodes->tell[0] != '\0' && !nodes->told) {
    perigee_bytes now;
    PERIGEE_TRY(perigee_store_compare_set(nodes->store, failed_key, "", 0, nodes->tell,
                                          strlen(nodes->tell), &now));
    perigee_bytes_free(&now);
    nodes->told = true;
  }
  int rc = exists(nodes->store, failed_key);
  if (rc == 1)
    rc = get_text(nodes->store, failed_key, request_ns, nodes->heard, sizeof(nodes->heard));
  if (me != 0 || rc < 0)
    return rc;
  nodes->nleft = 0;
  for (int node = 1; node < nodes->opts->nnodes; node++)
    PERIGEE_TRY(look_at_node(nodes, node));
  return 0;
}

static void on_work(uv_work_t *work) {
  perigee__nodes *nodes = work->data;
  nodes->lost = beat(nodes) < 0;
}

/* ---- on the loop's thread ---------------------------------------------------------------------------- */

static void hear(perigee__nodes *nodes) {
  const perigee__run_opts *o = nodes->opts;
  char text[320];
  if (nodes->heard[0] != '\0') {
    char *rest;
    long code = strtol(nodes->heard, &rest, 10);
    perigee__job_remote_failed(nodes->job, (int)code, *rest == ' ' ? rest + 1 : rest);
  } else if (nodes->silent >= 0) {
    snprintf(text, sizeof(text), "the launcher of node %d has been silent for %d s", nodes->silent,
             (int)(silence_ns / PERIGEE_NS_PER_SEC));
    snprintf(nodes->tell, sizeof(nodes->tell), "1 %.200s", text);
    perigee__job_remote_failed(nodes->job, 1, text);
  } else if (nodes->lost && o->node_rank != 0) {
    snprintf(text, sizeof(text), "the launcher of node 0 at %s:%d is gone", o->host, o->port);
    perigee__job_remote_failed(nodes->job, 1, text);
  }
}

/* What the others have to know of this node's end. */
static void prepare_tell(perigee__nodes *nodes) {
  const perigee__job *job = nodes->job;
  const perigee__rank *cause = perigee__job_cause(job);
  int node = nodes->opts->node_rank;
  char buf[96];
  if (nodes->tell[0] != '\0')
    return;
  if (job->reason == PERIGEE__REASON_FAILURE && cause != NULL && job->stage >= PERIGEE__STAGE_TERM)
    snprintf(nodes->tell, sizeof(nodes->tell), "%d rank %d on node %d failed first: %s",
             perigee__status_code(cause->status), cause->number, node,
             perigee__status_text(cause->status, buf, sizeof(buf)));
  else if (job->reason == PERIGEE__REASON_SIGNAL)
    snprintf(nodes->tell, sizeof(nodes->tell), "%d node %d was ended by %s", 128 + job->signo, node,
             perigee__signal_name(job->signo));
  else if (job->reason == PERIGEE__REASON_TIMEOUT)
    snprintf(nodes->tell, sizeof(nodes->tell), "124 node %d timed out", node);
  else if (job->reason == PERIGEE__REASON_START || job->reason == PERIGEE__REASON_BROKEN)
    snprintf(nodes->tell, sizeof(nodes->tell), "1 node %d could not go on", node);
}

static void on_beat_done(uv_work_t *work, int status) {
  perigee__nodes *nodes = work->data;
  nodes->beating = false;
  if (status == 0)
    hear(nodes);
}

static void on_timer(uv_timer_t *timer) {
  perigee__nodes *nodes = timer->data;
  if (nodes->beating || (nodes->lost && nodes->opts->node_rank != 0))
    return;
  prepare_tell(nodes);
  nodes->beating = uv_queue_work(timer->loop, &nodes->work, on_work, on_beat_done) == 0;
}

void perigee__nodes_watch(perigee__nodes *nodes, perigee__job *job) {
  nodes->job = job;
  nodes->work.data = nodes;
  uv_timer_init(&job->loop, &nodes->timer);
  nodes->timer.data = nodes;
  uv_timer_start(&nodes->timer, on_timer, 0, BEAT_MS);
}

void perigee__nodes_leave(perigee__nodes *nodes) {
  uv_loop_t *loop = &nodes->job->loop;
  bool first = nodes->opts->node_rank == 0;
  while (nodes->beating)
    uv_run(loop, UV_RUN_ONCE);
  prepare_tell(nodes);
  /* Until the others know what there is to know and, on node 0, need the store no more. A beat that is under way has not
   * counted all that are left. */
  while (!nodes->job->abandon &&
         (nodes->beating || (!nodes->lost && ((nodes->tell[0] != '\0' && !nodes->told) ||
                                              (first && nodes->nleft > 0)))))
    uv_run(loop, UV_RUN_ONCE);
  uv_timer_stop(&nodes->timer);
  while (nodes->beating)
    uv_run(loop, UV_RUN_ONCE);
  if (!first && !nodes->lost) {
    /* best effort: without it node 0 waits until this node counts as silent */
    int rc = perigee_store_set(nodes->store, key_of("done", nodes->opts->node_rank).text, "1", 1);
    (void)rc;
  }
}

void perigee__nodes_fini(perigee__nodes *nodes) {
  perigee_store_unref(nodes->store);
  free(nodes->lives);
  nodes->store = NULL;
  nodes->lives = NULL;
}
