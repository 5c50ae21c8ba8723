#include "cli/report.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

const char *perigee__signal_name(int signo) {
  static _Thread_local char buf[32];
  const char *name = sigabbrev_np(signo);
  if (name == NULL)
    snprintf(buf, sizeof(buf), "signal %d", signo);
  else
    snprintf(buf, sizeof(buf), "SIG%s", name);
  return buf;
}

const char *perigee__status_text(int status, char *buf, size_t size) {
  if (WIFSIGNALED(status))
    snprintf(buf, size, "killed by signal %d (%s)%s", WTERMSIG(status),
             perigee__signal_name(WTERMSIG(status)), WCOREDUMP(status) ? ", core dumped" : "");
  else
    snprintf(buf, size, "exit code %d", WEXITSTATUS(status));
  return buf;
}

int perigee__status_code(int status) {
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void perigee__report_tail(const perigee__tail *tail, perigee__emit_fn emit, void *arg) {
  size_t size;
  int cut;
  char *text = perigee__tail_text(tail, &size, &cut);
  if (text == NULL)
    return;
  if (cut)
    emit(arg, "...\n", 4);
  perigee__screen plain = {.tty = false};
  perigee__lines lines;
  perigee__lines_init(&lines, &plain, "", emit, arg);
  perigee__lines_feed(&lines, text, size);
  perigee__lines_flush(&lines);
  perigee__lines_fini(&lines);
  free(text);
}

const char *perigee__stuck_text(pid_t pid, char *buf, size_t size) {
  char path[64], where[128] = "";
  snprintf(path, sizeof(path), "/proc/%d/wchan", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    ssize_t n = read(fd, where, sizeof(where) - 1);
    where[n > 0 ? n : 0] = '\0';
    close(fd);
  }
  if (where[0] != '\0' && strcmp(where, "0") != 0)
    snprintf(buf, size, "pid %d, in %s", (int)pid, where);
  else
    snprintf(buf, size, "pid %d", (int)pid);
  return buf;
}
