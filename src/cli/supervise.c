#include "cli/supervise.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "cli/child.h"
#include "cli/report.h"

enum {
  HOLD_MS = 500,   /* how long a cause may come after its consequence */
  DRAIN_MS = 1000, /* how long others may hold the pipes of ranks that have ended */
  DEATH_MS = 2000, /* how long a process may take to die of SIGKILL */
  WRITE_MS = 2000  /* how long a slow reader holds up the exit once the job was told to end */
};

/* ---- stages --------------------------------------------------------------------------------------- */

static void settle(perigee__job *job);
static void on_stage_timer(uv_timer_t *timer);

static void enter(perigee__job *job, perigee__stage stage, uint64_t limit_ms) {
  job->stage = stage;
  uv_timer_start(&job->stage_timer, on_stage_timer, limit_ms, 0);
}

static void signal_all(perigee__job *job, int signo) {
  for (int i = 0; i < job->nstarted; i++)
    perigee__rank_signal(&job->ranks[i], signo);
}

static void enter_kill(perigee__job *job) {
  signal_all(job, SIGKILL);
  enter(job, PERIGEE__STAGE_KILL, DEATH_MS);
}

static void enter_term(perigee__job *job, int signo) {
  signal_all(job, signo);
  signal_all(job, SIGCONT); /* the stopped have to wake to take it */
  enter(job, PERIGEE__STAGE_TERM, (uint64_t)(job->opts->grace_ns / PERIGEE_NS_PER_MS));
}

static void enter_done(perigee__job *job) {
  job->stage = PERIGEE__STAGE_DONE;
  uv_timer_stop(&job->stage_timer);
  uv_timer_stop(&job->timeout);
  uv_stop(&job->loop);
}

static bool all_exited(const perigee__job *job) {
  for (int i = 0; i < job->nstarted; i++)
    if (!job->ranks[i].exited)
      return false;
  return true;
}

static bool any_pipe(const perigee__job *job) {
  for (int i = 0; i < job->nstarted; i++)
    if (perigee__rank_pipes_open(&job->ranks[i]))
      return true;
  return false;
}

static bool any_group(perigee__job *job) {
  bool left = false;
  for (int i = 0; i < job->nstarted; i++) {
    perigee__rank_check_group(&job->ranks[i]);
    left = left || !job->ranks[i].group_gone;
  }
  return left;
}

/* End the job for this reason, unless it is ending for another. Returns whether it was the first. */
static bool end_for(perigee__job *job, perigee__reason reason) {
  if (job->reason != PERIGEE__REASON_NONE || job->stage == PERIGEE__STAGE_DONE)
    return false;
  job->reason = reason;
  return true;
}

static void on_stage_timer(uv_timer_t *timer) {
  perigee__job *job = timer->data;
  switch (job->stage) {
  case PERIGEE__STAGE_HOLD:
    enter_term(job, SIGTERM);
    break;
  case PERIGEE__STAGE_DRAIN:
    if (job->console.congested) /* what they said cannot be read yet, whoever holds the pipes */
      enter(job, PERIGEE__STAGE_DRAIN, DRAIN_MS);
    else if (any_group(job))
      enter_term(job, SIGTERM);
    else
      enter_done(job);
    break;
  case PERIGEE__STAGE_TERM:
    enter_kill(job);
    break;
  case PERIGEE__STAGE_KILL:
    enter_done(job);
    break;
  case PERIGEE__STAGE_RUN:
  case PERIGEE__STAGE_DONE:
    break;
  }
}

/* Go on to the next stage if the ends of processes and pipes seen so far allow it. */
static void settle(perigee__job *job) {
  if (job->stage == PERIGEE__STAGE_DONE || !all_exited(job))
    return;
  bool pipes = any_pipe(job), groups = any_group(job);
  if (!pipes && !groups)
    enter_done(job);
  else if (job->stage < PERIGEE__STAGE_DRAIN && pipes)
    enter(job, PERIGEE__STAGE_DRAIN, DRAIN_MS);
  else if (job->stage < PERIGEE__STAGE_TERM && !pipes)
    enter_term(job, SIGTERM);
  else if (job->stage >= PERIGEE__STAGE_TERM && !groups)
    enter(job, PERIGEE__STAGE_DRAIN, DRAIN_MS);
}

/* ---- what happens to ranks ------------------------------------------------------------------------ */

static bool knows_cause(const perigee__job *job) {
  const perigee__rank *cause = perigee__job_cause(job);
  return cause != NULL && !cause->consequence;
}

static perigee__rank *rank_of(perigee__job *job, pid_t pid) {
  for (int i = 0; i < job->nstarted; i++)
    if (job->ranks[i].pid == pid)
      return &job->ranks[i];
  return NULL;
}

/*
 * Reap what has ended: processes that ranks left to us, and ranks that have no descriptor of their own. A rank that has
 * one is left alone, because wait does not tell which of several ended first; what stands behind it follows from on_exited.
 */
static void reap(perigee__job *job) {
  for (;;) {
    siginfo_t info = {0};
    if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
      return;
    perigee__rank *rank = rank_of(job, info.si_pid);
    if (rank != NULL && rank->pidfd_fd >= 0)
      return;
    int status;
    if (waitpid(info.si_pid, &status, WNOHANG) != info.si_pid)
      return;
    if (rank != NULL && !rank->exited)
      perigee__rank_set_exited(rank, status);
  }
}

static void on_failing(void *arg, perigee__rank *rank) {
  perigee__job *job = arg;
  if (rank->failed_at == 0)
    rank->failed_at = ++job->failures;
}

static void on_exited(void *arg, perigee__rank *rank) {
  perigee__job *job = arg;
  bool ending = job->stage >= PERIGEE__STAGE_TERM;
  if (ending && rank->told && WIFSIGNALED(rank->status))
    rank->status = W_EXITCODE(1, 0); /* it was failing already when we ended it */
  if (rank->status == 0)
    rank->failed_at = 0;
  else if (rank->failed_at == 0 && !ending)
    rank->failed_at = ++job->failures;
  if (rank->status != 0 && !job->opts->keep_going && job->stage < PERIGEE__STAGE_DRAIN) {
    end_for(job, PERIGEE__REASON_FAILURE);
    if (knows_cause(job))
      enter_term(job, SIGTERM);
    else if (job->stage == PERIGEE__STAGE_RUN)
      enter(job, PERIGEE__STAGE_HOLD, HOLD_MS);
  }
  reap(job);
  settle(job);
}

static void on_ended(void *arg, perigee__rank *rank) {
  (void)rank;
  settle(arg);
}

const perigee__rank *perigee__job_cause(const perigee__job *job) {
  const perigee__rank *cause = NULL;
  for (int i = 0; i < job->nstarted; i++) {
    const perigee__rank *r = &job->ranks[i];
    if (r->failed_at == 0 || !r->exited)
      continue;
    if (cause == NULL || r->consequence < cause->consequence ||
        (r->consequence == cause->consequence && r->failed_at < cause->failed_at))
      cause = r;
  }
  return cause;
}

/* ---- signals -------------------------------------------------------------------------------------- */

static void on_child(uv_signal_t *handle, int signo) {
  (void)signo;
  reap(handle->data);
  settle(handle->data);
}

static void on_end_signal(uv_signal_t *handle, int signo) {
  perigee__job *job = handle->data;
  if (job->stage == PERIGEE__STAGE_DONE) {
    job->abandon = true;
    uv_stop(&job->loop);
    return;
  }
  if (end_for(job, PERIGEE__REASON_SIGNAL))
    job->signo = signo;
  if (job->stage >= PERIGEE__STAGE_TERM) {
    enter_kill(job);
    return;
  }
  perigee__console_say(&job->console, "%s: ending all ranks; once more kills them",
                       perigee__signal_name(signo));
  enter_term(job, signo);
}

static void on_passed_signal(uv_signal_t *handle, int signo) { signal_all(handle->data, signo); }

/* A session of its own cannot be stopped by SIGTSTP: its group counts as orphaned. */
static void on_stop_signal(uv_signal_t *handle, int signo) {
  (void)signo;
  signal_all(handle->data, SIGSTOP);
  raise(SIGSTOP);
}

static const struct {
  int signo;
  uv_signal_cb handler;
} watched[PERIGEE__SIGNALS] = {
    {SIGINT, on_end_signal},   {SIGTERM, on_end_signal},    {SIGHUP, on_end_signal},
    {SIGQUIT, on_end_signal},  {SIGUSR1, on_passed_signal}, {SIGUSR2, on_passed_signal},
    {SIGTSTP, on_stop_signal}, {SIGCONT, on_passed_signal},
};

static void nothing(int signo) { (void)signo; }

static void watch_signals(perigee__job *job) {
  for (int i = 0; i < PERIGEE__SIGNALS; i++) {
    struct sigaction was;
    /* who started us wants it ignored (nohup, a shell's background job) */
    if (sigaction(watched[i].signo, NULL, &was) == 0 && was.sa_handler == SIG_IGN)
      continue;
    uv_signal_t *handle = &job->signals[job->nsignals++];
    uv_signal_init(&job->loop, handle);
    handle->data = job;
    uv_signal_start(handle, watched[i].handler, watched[i].signo);
  }
  uv_signal_init(&job->loop, &job->child);
  job->child.data = job;
  uv_signal_start(&job->child, on_child, SIGCHLD);
  /* A handler and not SIG_IGN, which the ranks would inherit. */
  struct sigaction was, action = {.sa_handler = nothing, .sa_flags = SA_RESTART};
  if (sigaction(SIGPIPE, NULL, &was) == 0 && was.sa_handler != SIG_IGN)
    sigaction(SIGPIPE, &action, NULL);
}

/* ---- other reasons to end -------------------------------------------------------------------------- */

static void on_console_changed(void *arg) {
  perigee__job *job = arg;
  for (int i = 0; i < job->nstarted; i++)
    perigee__rank_pause(&job->ranks[i], job->console.congested);
  if (job->console.broken && end_for(job, PERIGEE__REASON_BROKEN) &&
      job->stage < PERIGEE__STAGE_TERM)
    enter_term(job, SIGTERM);
}

static char *describe_states(const perigee__job *job) {
  char *text = NULL;
  size_t size;
  FILE *f = open_memstream(&text, &size);
  if (f == NULL)
    return NULL;
  for (int i = 0; i < job->nstarted; i++) {
    const perigee__rank *r = &job->ranks[i];
    char buf[96];
    if (!r->exited)
      fprintf(f, "  rank %d: running (pid %d)\n", r->number, (int)r->pid);
    else if (r->status == 0)
      fprintf(f, "  rank %d: exited 0\n", r->number);
    else
      fprintf(f, "  rank %d: %s\n", r->number, perigee__status_text(r->status, buf, sizeof(buf)));
  }
  fclose(f);
  return text;
}

static void on_timeout(uv_timer_t *timer) {
  perigee__job *job = timer->data;
  if (job->stage >= PERIGEE__STAGE_TERM || !end_for(job, PERIGEE__REASON_TIMEOUT))
    return;
  job->states = describe_states(job);
  enter_term(job, SIGTERM);
}

void perigee__job_start_failed(perigee__job *job, int code) {
  if (end_for(job, PERIGEE__REASON_START))
    job->exit_code = code;
  enter_kill(job);
}

void perigee__job_remote_failed(perigee__job *job, int code, const char *text) {
  if (!end_for(job, PERIGEE__REASON_REMOTE))
    return;
  job->exit_code = code;
  job->remote = strdup(text);
  if (job->stage < PERIGEE__STAGE_TERM)
    enter_term(job, SIGTERM);
}

/* ---- the end --------------------------------------------------------------------------------------- */

static void on_drain_limit(uv_timer_t *timer) { ((perigee__job *)timer->data)->abandon = true; }

/* Until all output is written; a reader who does not read can be left by a signal. */
static void write_out(perigee__job *job) {
  bool told_to_end =
      job->reason == PERIGEE__REASON_SIGNAL || job->reason == PERIGEE__REASON_TIMEOUT;
  if (told_to_end)
    uv_timer_start(&job->drain_limit, on_drain_limit, WRITE_MS, 0);
  while (!job->abandon && !perigee__console_drained(&job->console))
    uv_run(&job->loop, UV_RUN_ONCE);
  uv_timer_stop(&job->drain_limit);
}

static void say_failure(perigee__job *job, const perigee__rank *cause) {
  perigee__console *c = &job->console;
  char buf[96];
  if (job->failures > 1 && job->opts->keep_going) {
    for (int i = 0; i < job->nstarted; i++)
      if (job->ranks[i].failed_at > 0)
        perigee__console_say(c, "rank %d failed: %s", job->ranks[i].number,
                             perigee__status_text(job->ranks[i].status, buf, sizeof(buf)));
  }
  bool alone = job->opts->n * job->opts->nnodes == 1;
  perigee__console_say(c, "rank %d failed%s: %s", cause->number, alone ? "" : " first",
                       perigee__status_text(cause->status, buf, sizeof(buf)));
  if (!alone) /* a lone rank's words stand just above */
    perigee__report_tail(&cause->tail, perigee__sink_write, &c->err);
  perigee__console_flush(c);
}

/* Say what has to be said and return the exit code. */
static int conclude(perigee__job *job) {
  perigee__console *c = &job->console;
  for (int i = 0; i < job->nstarted; i++) {
    char buf[192];
    if (!job->ranks[i].exited)
      perigee__console_say(c, "rank %d does not die and was left behind: %s", job->ranks[i].number,
                           perigee__stuck_text(job->ranks[i].pid, buf, sizeof(buf)));
  }
  const perigee__rank *cause = perigee__job_cause(job);
  switch (job->reason) {
  case PERIGEE__REASON_SIGNAL:
    return 128 + job->signo;
  case PERIGEE__REASON_BROKEN:
    return 128 + SIGPIPE;
  case PERIGEE__REASON_TIMEOUT:
    perigee__console_say(c, "timed out after %g s; state of the ranks then:",
                         (double)job->opts->timeout_ns / (double)PERIGEE_NS_PER_SEC);
    if (job->states != NULL)
      perigee__lines_feed(&c->own, job->states, strlen(job->states));
    perigee__console_flush(c);
    return 124;
  case PERIGEE__REASON_REMOTE:
    perigee__console_say(c, "%s", job->remote != NULL ? job->remote : "another node failed");
    return job->exit_code;
  case PERIGEE__REASON_START:
    return job->exit_code;
  case PERIGEE__REASON_FAILURE:
  case PERIGEE__REASON_NONE:
    if (cause == NULL)
      return 0;
    say_failure(job, cause);
    return perigee__status_code(cause->status);
  }
  return 1;
}

int perigee__job_run(perigee__job *job) {
  if (job->opts->timeout_ns != PERIGEE_NEVER)
    uv_timer_start(&job->timeout, on_timeout, (uint64_t)(job->opts->timeout_ns / PERIGEE_NS_PER_MS),
                   0);
  settle(job);
  if (job->stage != PERIGEE__STAGE_DONE)
    uv_run(&job->loop, UV_RUN_DEFAULT);
  bool left = false;
  for (int i = 0; i < job->nstarted; i++) {
    perigee__rank_signal(&job->ranks[i], SIGKILL);
    perigee__rank_close(&job->ranks[i]);
    left = left || !job->ranks[i].exited;
  }
  if (!left)
    perigee__child_kill_rest();
  write_out(job);
  int code = conclude(job);
  write_out(job);
  return code;
}

/* ---- making and unmaking --------------------------------------------------------------------------- */

int perigee__job_init(perigee__job *job, const perigee__run_opts *opts) {
  *job = (perigee__job){.opts = opts};
  int rc = uv_loop_init(&job->loop);
  if (rc < 0)
    return perigee__fail_errno(-rc, "cannot make an event loop");
  rc = perigee__console_init(&job->console, &job->loop, on_console_changed, job);
  if (rc < 0) {
    uv_run(&job->loop, UV_RUN_DEFAULT);
    uv_loop_close(&job->loop);
    return rc;
  }
  job->hooks = (perigee__rank_hooks){
      .failing = on_failing, .exited = on_exited, .ended = on_ended, .arg = job};
  uv_timer_t *const timers[] = {&job->stage_timer, &job->timeout, &job->drain_limit};
  for (size_t i = 0; i < PERIGEE_COUNT(timers); i++) {
    uv_timer_init(&job->loop, timers[i]);
    timers[i]->data = job;
  }
  watch_signals(job);
  /* What ranks leave behind becomes ours, so that it can be ended and reaped. */
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  return 0;
}

static void close_left(uv_handle_t *handle, void *arg) {
  (void)arg;
  if (!uv_is_closing(handle))
    uv_close(handle, NULL);
}

void perigee__job_fini(perigee__job *job) {
  for (int i = 0; i < job->nranks; i++)
    perigee__rank_fini(&job->ranks[i]);
  perigee__console_close(&job->console);
  uv_walk(&job->loop, close_left, NULL);
  uv_run(&job->loop, UV_RUN_DEFAULT);
  uv_loop_close(&job->loop);
  free(job->ranks);
  free(job->states);
  free(job->remote);
}
