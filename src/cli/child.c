#include "cli/child.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"

/* ---- in the child, between fork and exec: async-signal-safe calls only ------------------------- */

/* Handlers would run the launcher's code here; ignored signals stay ignored, as across any exec. */
static void default_handlers(void) {
  for (int signo = 1; signo < NSIG; signo++) {
    struct sigaction action;
    if (sigaction(signo, NULL, &action) == 0 && action.sa_handler != SIG_IGN &&
        action.sa_handler != SIG_DFL) {
      action = (struct sigaction){.sa_handler = SIG_DFL};
      sigaction(signo, &action, NULL);
    }
  }
}

static int place(int fd, int number) { return fd < 0 ? 0 : dup2(fd, number); }

/* Returns only when the program could not be started, with errno set. */
static void become(const perigee__child_spec *spec, pid_t parent, const sigset_t *mask) {
  setsid();
  /* The parent may have died before prctl: then no signal will come. */
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
    return;
  if (place(spec->in, 0) < 0 || place(spec->out, 1) < 0 || place(spec->err, 2) < 0)
    return;
  if (spec->keep >= 0 && fcntl(spec->keep, F_SETFD, 0) < 0)
    return;
  setrlimit(RLIMIT_NOFILE, &spec->files);
  default_handlers();
  sigprocmask(SIG_SETMASK, mask, NULL);
  execvpe(spec->argv[0], spec->argv, spec->envp);
}

/* ---- in the parent ------------------------------------------------------------------------------- */

/* The errno the child sends before it ends; 0 when exec closed the pipe. */
static int exec_result(int fd) {
  int64_t deadline = perigee__deadline_in(30 * PERIGEE_NS_PER_SEC);
  struct pollfd p = {.fd = fd, .events = POLLIN};
  int rc;
  while ((rc = poll(&p, 1, perigee__poll_ms(deadline, 1000))) <= 0) {
    if (rc < 0 && errno != EINTR)
      return errno;
    if (perigee__passed(deadline))
      return ETIMEDOUT;
  }
  int cause = 0;
  return read(fd, &cause, sizeof(cause)) == (ssize_t)sizeof(cause) ? cause : 0;
}

static void end_failed(pid_t pid) {
  kill(pid, SIGKILL);
  while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
  }
}

int perigee__child_start(const perigee__child_spec *spec, pid_t *pid_p) {
  int report[2];
  if (pipe2(report, O_CLOEXEC) < 0)
    return perigee__fail_errno(errno, "cannot start '%s': no pipe", spec->argv[0]);
  sigset_t all, mask;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &mask);
  pid_t parent = getpid();
  pid_t pid = fork();
  if (pid == 0) {
    become(spec, parent, &mask);
    int cause = errno;
    ssize_t n = write(report[1], &cause, sizeof(cause));
    _exit(n > 0 ? 127 : 126);
  }
  int cause = pid < 0 ? errno : 0;
  pthread_sigmask(SIG_SETMASK, &mask, NULL);
  close(report[1]);
  if (cause == 0) {
    cause = exec_result(report[0]);
    if (cause != 0)
      end_failed(pid);
  }
  close(report[0]);
  if (cause != 0)
    return perigee__fail_errno(cause, "cannot start '%s'", spec->argv[0]);
  *pid_p = pid;
  return 0;
}

/* ---- what is left -------------------------------------------------------------------------------- */

static pid_t parent_of(const char *pid) {
  char path[64], stat[512];
  snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return -1;
  ssize_t n = read(fd, stat, sizeof(stat) - 1);
  close(fd);
  if (n <= 0)
    return -1;
  stat[n] = '\0';
  /* "pid (name) state ppid": the name may hold anything, even ')' */
  const char *at = strrchr(stat, ')');
  int ppid = -1;
  return at != NULL && sscanf(at + 1, " %*c %d", &ppid) == 1 ? ppid : -1;
}

static void kill_children(void) {
  DIR *proc = opendir("/proc");
  if (proc == NULL)
    return;
  for (struct dirent *e; (e = readdir(proc)) != NULL;)
    if (e->d_name[0] >= '1' && e->d_name[0] <= '9' && parent_of(e->d_name) == getpid())
      kill((pid_t)atol(e->d_name), SIGKILL);
  closedir(proc);
}

void perigee__child_kill_rest(void) {
  int64_t deadline = perigee__deadline_in(PERIGEE_NS_PER_SEC);
  for (;;) {
    pid_t pid = waitpid(-1, NULL, WNOHANG);
    if (pid < 0 && errno == ECHILD)
      return;
    if (pid > 0)
      continue;
    if (perigee__passed(deadline))
      return;
    /* again in every round: the children of the killed become ours */
    kill_children();
    perigee__sleep_ns(2 * PERIGEE_NS_PER_MS);
  }
}
