/* Starting one program: fork, a session of its own, exec. */
#ifndef PERIGEE_CLI_CHILD_H
#define PERIGEE_CLI_CHILD_H

#include <sys/resource.h>
#include <sys/types.h>

#include "base/attr.h"

typedef struct perigee__child_spec {
  char *const *argv; /* argv[0] is searched in PATH as execvp does */
  char *const *envp;
  int in, out, err; /* become 0, 1, 2; -1: inherit */
  int keep; /* one more descriptor that stays open across exec, under its number; -1: none */
  struct rlimit files; /* RLIMIT_NOFILE of the program */
} perigee__child_spec;

/**
 * Start a program as leader of a new session and process group. It is killed when the calling thread ends, however
 * that happens; signals the caller catches are at their default in it, ignored ones stay ignored.
 * Returns when the program runs or could not be started, after 30 s at the latest.
 * Errors: -errno of exec ("cannot start 'x': No such file or directory"); nothing is left behind then.
 */
PERIGEE_MUST_CHECK int perigee__child_start(const perigee__child_spec *spec, pid_t *pid_p);

/** Kill (SIGKILL) and reap every child of this process: what ranks left behind. Waits 1 s at most. */
void perigee__child_kill_rest(void);

#endif
