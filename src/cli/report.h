/* How ends are told to people. */
#ifndef PERIGEE_CLI_REPORT_H
#define PERIGEE_CLI_REPORT_H

#include <stddef.h>
#include <sys/types.h>

#include "cli/output.h"
#include "cli/tail.h"

/** "exit code 1", "killed by signal 9 (SIGKILL)" from a wait status. Returns buf. */
const char *perigee__status_text(int status, char *buf, size_t size);
/** The code a shell would see: 0..255, or 128 + signal. */
int perigee__status_code(int status);
/** "SIGINT"; "signal 40" for those without a name. Static memory of the thread. */
const char *perigee__signal_name(int signo);
/** What the last lines of a rank's stderr were, through emit. Nothing when it wrote none. */
void perigee__report_tail(const perigee__tail *tail, perigee__emit_fn emit, void *arg);
/** Where in the kernel a process is that does not die ("pid 12, in fuse_wait"). Returns buf. */
const char *perigee__stuck_text(pid_t pid, char *buf, size_t size);

#endif
