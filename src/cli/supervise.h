/*
 * Watching over the ranks of one node until the last has ended.
 *
 * Stages, in this order; some may be passed over
 *   RUN    ranks run.
 *   HOLD   a rank failed because of a peer: a moment for the peer's own failure to become known.
 *   DRAIN  all processes have ended, but others hold their pipes.
 *   TERM   everybody was sent a signal and has --grace to end.
 *   KILL   everybody was sent SIGKILL; who does not die of that is reported and given up.
 *   DONE   output is written to its end, then the report.
 * One timer bounds each stage. The first reason to end the job decides its exit code.
 */
#ifndef PERIGEE_CLI_SUPERVISE_H
#define PERIGEE_CLI_SUPERVISE_H

#include <uv.h>

#include "cli/console.h"
#include "cli/opts.h"
#include "cli/rank.h"

typedef enum perigee__stage {
  PERIGEE__STAGE_RUN,
  PERIGEE__STAGE_HOLD,
  PERIGEE__STAGE_DRAIN,
  PERIGEE__STAGE_TERM,
  PERIGEE__STAGE_KILL,
  PERIGEE__STAGE_DONE
} perigee__stage;

typedef enum perigee__reason {
  PERIGEE__REASON_NONE,    /* all ranks came to their end */
  PERIGEE__REASON_FAILURE, /* of a rank of this node */
  PERIGEE__REASON_REMOTE,  /* of a rank of another node */
  PERIGEE__REASON_SIGNAL,  /* the launcher got one */
  PERIGEE__REASON_TIMEOUT, /* --timeout */
  PERIGEE__REASON_BROKEN,  /* nobody reads our stdout */
  PERIGEE__REASON_START    /* a rank could not be started; the message is in the last error */
} perigee__reason;

enum {
  PERIGEE__SIGNALS = 8
};

typedef struct perigee__job {
  const perigee__run_opts *opts;
  uv_loop_t loop;
  perigee__console console;
  perigee__rank_hooks hooks;
  perigee__rank *ranks; /* [nranks], of this node */
  int nranks, nstarted;
  perigee__stage stage;
  perigee__reason reason;
  int failures;  /* counted for perigee__rank.failed_at */
  int exit_code; /* REMOTE, START */
  int signo;     /* SIGNAL */
  char *states;  /* TIMEOUT: of all ranks at that moment, owned */
  char *remote;  /* REMOTE: what happened, owned */
  bool abandon;  /* a signal came while output was still being written */
  uv_timer_t stage_timer, timeout, drain_limit;
  uv_signal_t signals[PERIGEE__SIGNALS], child;
  int nsignals;
} perigee__job;

/** The loop, the console and signals; no rank yet. opts must outlive the job. */
PERIGEE_MUST_CHECK int perigee__job_init(perigee__job *job, const perigee__run_opts *opts);
/** A rank could not be started: end those that run. code: the exit code. */
void perigee__job_start_failed(perigee__job *job, int code);
/** Another node failed with this exit code; text says how. */
void perigee__job_remote_failed(perigee__job *job, int code, const char *text);
/** Run until all is over and said. Returns the exit code. */
int perigee__job_run(perigee__job *job);
/** The rank whose failure is told as the cause, NULL when none failed. */
const perigee__rank *perigee__job_cause(const perigee__job *job);
void perigee__job_fini(perigee__job *job);

#endif
