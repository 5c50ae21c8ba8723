/*
 * One rank: its process, the pipes it talks through, and what became of it.
 *
 * Life: init -> start -> running -> exited (the process is reaped) -> quiet (its pipes are at their end and its process group
 * is empty). Which failure was first is told by `failed_at`: a rank run by `perigee lua` says that it fails before it
 * closes anything, and whether it fails only because a peer did; from others only the end of the process is seen.
 */
#ifndef PERIGEE_CLI_RANK_H
#define PERIGEE_CLI_RANK_H

#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>

#include "cli/child.h"
#include "cli/console.h"
#include "cli/environ.h"
#include "cli/tail.h"

typedef struct perigee__rank perigee__rank;

/* What `perigee lua` writes to the descriptor named in PERIGEE_REPORT_FD when the script has failed. */
#define PERIGEE_REPORT_FD "PERIGEE_REPORT_FD"
#define PERIGEE_REPORT_CAUSE 'e'       /* for a reason of its own */
#define PERIGEE_REPORT_CONSEQUENCE 'c' /* because a peer died, closed or aborted */

/** Told to the owner; arg is its own. */
typedef struct perigee__rank_hooks {
  void (*failing)(void *arg, perigee__rank *rank); /* it said that it fails; it still runs */
  void (*exited)(void *arg, perigee__rank *rank);  /* the process was reaped, status is set */
  void (*ended)(void *arg, perigee__rank *rank);   /* a pipe is at its end */
  void *arg;
} perigee__rank_hooks;

typedef struct perigee__stream {
  perigee__rank *rank;
  uv_pipe_t pipe;
  bool open;       /* pipe is a handle of the loop and not at its end */
  bool shown, raw; /* raw: bytes go on as they come, without lines */
  perigee__lines lines;
  perigee__sink *sink;
  perigee__tail *tail; /* NULL: not kept */
  int log;             /* -1: none */
} perigee__stream;

struct perigee__rank {
  const perigee__rank_hooks *hooks;
  perigee__console *console;
  int number, local; /* in the world; on this node */
  pid_t pid;         /* also its process group; 0 before start */
  bool exited;
  int status;       /* of wait, when exited */
  bool group_gone;  /* no process of its group is left */
  int failed_at;    /* position among all failures, from 1; 0: has not failed */
  bool consequence; /* it failed because a peer did */
  bool told;        /* the failure was reported before the end of the process */
  char prefix[32];
  perigee__stream out, err;
  perigee__tail tail; /* of stderr */
  uv_poll_t pidfd;    /* readable when the process has ended */
  int pidfd_fd;       /* -1: none, SIGCHLD has to do */
  uv_poll_t report;
  int report_fd; /* -1: none */
};

/** How ranks are shown and recorded; same for all of a job. */
typedef struct perigee__rank_style {
  bool shown, prefix, raw;
  bool inherit;        /* stdout and stderr are the launcher's own */
  const char *log_dir; /* NULL: none */
} perigee__rank_style;

/** Opens log files. Errors: of the system, naming the file. */
PERIGEE_MUST_CHECK int perigee__rank_init(perigee__rank *rank, int number, int local,
                                          perigee__console *console,
                                          const perigee__rank_hooks *hooks,
                                          const perigee__rank_style *style);
/**
 * Start the program. spec->in is given by the caller, the other descriptors are set here. env: gets PERIGEE_REPORT_FD when
 * reports is true. Errors: of pipes and of exec; *exec_failed_p tells which.
 */
PERIGEE_MUST_CHECK int perigee__rank_start(perigee__rank *rank, uv_loop_t *loop,
                                           perigee__child_spec *spec, perigee__environ *env,
                                           bool inherit, bool reports, bool *exec_failed_p);
/** Send a signal to its process group, also when the leader has ended. Nothing when the group is empty. */
void perigee__rank_signal(perigee__rank *rank, int signo);
/** The process ended with this status (it has been reaped). */
void perigee__rank_set_exited(perigee__rank *rank, int status);
/** Look again whether processes of its group are left. */
void perigee__rank_check_group(perigee__rank *rank);
bool perigee__rank_pipes_open(const perigee__rank *rank);
/** Stop and resume reading what it says. */
void perigee__rank_pause(perigee__rank *rank, bool pause);
/** Give up its pipes and handles; what was read is shown. The loop must run once more before fini. */
void perigee__rank_close(perigee__rank *rank);
void perigee__rank_fini(perigee__rank *rank);

#endif
