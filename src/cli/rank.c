#include "cli/rank.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/error.h"

/* ---- log files ----------------------------------------------------------------------------------- */

/* mkdir -p */
static int make_dirs(char *path) {
  for (char *at = path + 1;; at++) {
    if (*at != '/' && *at != '\0')
      continue;
    char kept = *at;
    *at = '\0';
    int rc = mkdir(path, 0777) < 0 && errno != EEXIST ? errno : 0;
    if (rc != 0)
      return perigee__fail_errno(rc, "cannot make the folder '%s' for logs", path);
    *at = kept;
    if (kept == '\0')
      return 0;
  }
}

static int open_log(const char *dir, const char *name, int *fd_p) {
  char *path = perigee__format("%s/%s", dir, name);
  if (path == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a path");
  int rc = 0;
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0)
    rc = perigee__fail_errno(errno, "cannot write the log '%s'", path);
  else
    *fd_p = fd;
  free(path);
  return rc;
}

static int open_logs(perigee__rank *rank, const char *log_dir) {
  char *dir = perigee__format("%s/rank_%04d", log_dir, rank->number);
  if (dir == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a path");
  int rc = make_dirs(dir);
  if (rc == 0)
    rc = open_log(dir, "stdout.log", &rank->out.log);
  if (rc == 0)
    rc = open_log(dir, "stderr.log", &rank->err.log);
  free(dir);
  return rc;
}

static void write_log(perigee__stream *s, const char *data, size_t size) {
  while (size > 0 && s->log >= 0) {
    ssize_t n = write(s->log, data, size);
    if (n >= 0) {
      data += n;
      size -= (size_t)n;
    } else if (errno != EINTR) {
      perigee__console_say(s->rank->console, "the log of rank %d ends here: %s", s->rank->number,
                           strerror(errno));
      close(s->log);
      s->log = -1;
    }
  }
}

/* ---- streams ------------------------------------------------------------------------------------- */

static void stream_init(perigee__stream *s, perigee__rank *rank, perigee__sink *sink, bool tty,
                        const perigee__rank_style *style) {
  s->rank = rank;
  s->sink = sink;
  s->log = -1;
  s->shown = style->shown;
  s->raw = style->raw;
  perigee__console *c = rank->console;
  perigee__lines_init(&s->lines, tty ? &c->terminal : &c->plain, style->prefix ? rank->prefix : "",
                      perigee__sink_write, sink);
}

/* What has been read but is no whole line yet becomes one. */
static void stream_finish(perigee__stream *s) {
  perigee__lines_flush(&s->lines);
  perigee__console_flush(s->rank->console);
  if (s->log >= 0)
    close(s->log);
  s->log = -1;
}

#ifdef PERIGEE_HOSTILE
enum {
  READ_BYTES = 7
};
#else
enum {
  READ_BYTES = 64 * 1024
};
#endif

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  /* one loop, and on_read is done with it when it returns */
  static char bytes[READ_BYTES];
  (void)handle;
  (void)suggested;
  *buf = uv_buf_init(bytes, sizeof(bytes));
}

static void on_read(uv_stream_t *pipe, ssize_t n, const uv_buf_t *buf) {
  perigee__stream *s = pipe->data;
  if (n == 0)
    return;
  if (n < 0) {
    s->open = false;
    uv_close((uv_handle_t *)pipe, NULL);
    stream_finish(s);
    s->rank->hooks->ended(s->rank->hooks->arg, s->rank);
    return;
  }
  write_log(s, buf->base, (size_t)n);
  if (s->tail != NULL)
    perigee__tail_feed(s->tail, buf->base, (size_t)n);
  if (!s->shown)
    return;
  if (s->raw)
    perigee__sink_write(s->sink, buf->base, (size_t)n);
  else
    perigee__lines_feed(&s->lines, buf->base, (size_t)n);
  perigee__console_flush(s->rank->console);
}

/* Takes fd. */
static int stream_open(perigee__stream *s, uv_loop_t *loop, int fd) {
  int rc = uv_pipe_init(loop, &s->pipe, 0);
  if (rc == 0) {
    s->pipe.data = s;
    s->open = true;
    rc = uv_pipe_open(&s->pipe, fd);
    if (rc == 0) {
      fd = -1;
      rc = uv_read_start((uv_stream_t *)&s->pipe, on_alloc, on_read);
    }
  }
  if (fd >= 0)
    close(fd);
  return rc == 0 ? 0 : perigee__fail_errno(-rc, "cannot read from rank %d", s->rank->number);
}

/* ---- the end of the process, and what it says about it ------------------------------------------- */

static void close_poll(uv_poll_t *poll, int *fd_p) {
  if (*fd_p < 0)
    return;
  /* the loop forgets the descriptor in uv_close: it may be closed after that */
  uv_close((uv_handle_t *)poll, NULL);
  close(*fd_p);
  *fd_p = -1;
}

static void read_report(perigee__rank *rank) {
  char word;
  if (rank->report_fd < 0)
    return;
  ssize_t n = read(rank->report_fd, &word, 1);
  if (n < 0 && (errno == EAGAIN || errno == EINTR))
    return;
  close_poll(&rank->report, &rank->report_fd);
  if (n == 1) {
    rank->told = true;
    rank->consequence = word == PERIGEE_REPORT_CONSEQUENCE;
    rank->hooks->failing(rank->hooks->arg, rank);
  }
}

static void on_report(uv_poll_t *poll, int status, int events) {
  (void)status;
  (void)events;
  read_report(poll->data);
}

void perigee__rank_set_exited(perigee__rank *rank, int status) {
  read_report(rank); /* it spoke before it ended */
  close_poll(&rank->pidfd, &rank->pidfd_fd);
  close_poll(&rank->report, &rank->report_fd);
  rank->exited = true;
  rank->status = status;
  perigee__rank_check_group(rank);
  rank->hooks->exited(rank->hooks->arg, rank);
}

static void on_pidfd(uv_poll_t *poll, int status, int events) {
  (void)status;
  (void)events;
  perigee__rank *rank = poll->data;
  int wait_status;
  if (waitpid(rank->pid, &wait_status, WNOHANG) == rank->pid)
    perigee__rank_set_exited(rank, wait_status);
}

/* poll takes fd when it returns 0. */
static int watch(uv_loop_t *loop, uv_poll_t *poll, int fd, uv_poll_cb cb, void *data) {
  int rc = uv_poll_init(loop, poll, fd);
  if (rc < 0)
    return rc;
  poll->data = data;
  uv_poll_start(poll, UV_READABLE, cb); /* cannot fail on a handle that is not closing */
  return 0;
}

static void watch_process(perigee__rank *rank, uv_loop_t *loop) {
  /* Descriptors of processes become readable in the order in which the processes end, and epoll keeps that order: so the
   * first of several failures at once is known. Without them SIGCHLD still tells that there are some. */
  int fd = (int)syscall(SYS_pidfd_open, rank->pid, 0);
  if (fd >= 0 && watch(loop, &rank->pidfd, fd, on_pidfd, rank) < 0) {
    close(fd);
    fd = -1;
  }
  rank->pidfd_fd = fd;
}

/* ---- life ---------------------------------------------------------------------------------------- */

int perigee__rank_init(perigee__rank *rank, int number, int local, perigee__console *console,
                       const perigee__rank_hooks *hooks, const perigee__rank_style *style) {
  *rank = (perigee__rank){.number = number,
                          .local = local,
                          .console = console,
                          .hooks = hooks,
                          .group_gone = true,
                          .pidfd_fd = -1,
                          .report_fd = -1};
  perigee__rank_prefix(number, console->colour, rank->prefix, sizeof(rank->prefix));
  stream_init(&rank->out, rank, &console->out, console->out_tty, style);
  stream_init(&rank->err, rank, &console->err, console->err_tty, style);
  rank->err.tail = &rank->tail;
  return style->log_dir == NULL ? 0 : open_logs(rank, style->log_dir);
}

enum {
  OUT,
  ERR,
  REPORT,
  PIPES
};

static void close_pipes(int (*pipes)[2]) {
  for (int i = 0; i < PIPES; i++)
    for (int side = 0; side < 2; side++)
      if (pipes[i][side] >= 0)
        close(pipes[i][side]);
}

static int open_pipes(int (*pipes)[2], bool inherit, bool reports) {
  const bool wanted[PIPES] = {!inherit, !inherit, reports};
  for (int i = 0; i < PIPES; i++)
    if (wanted[i] && pipe2(pipes[i], O_CLOEXEC) < 0)
      return perigee__fail_errno(errno, "cannot make the pipes of a rank");
  return 0;
}

/* Hand the reading ends to the loop. */
static int attach(perigee__rank *rank, uv_loop_t *loop, int (*pipes)[2]) {
  if (pipes[OUT][0] >= 0) {
    int out = pipes[OUT][0], err = pipes[ERR][0];
    pipes[OUT][0] = -1;
    PERIGEE_TRY(stream_open(&rank->out, loop, out));
    pipes[ERR][0] = -1;
    PERIGEE_TRY(stream_open(&rank->err, loop, err));
  }
  if (pipes[REPORT][0] >= 0) {
    int rc = watch(loop, &rank->report, pipes[REPORT][0], on_report, rank);
    if (rc < 0)
      return perigee__fail_errno(-rc, "cannot read from rank %d", rank->number);
    rank->report_fd = pipes[REPORT][0];
    pipes[REPORT][0] = -1;
  }
  return 0;
}

int perigee__rank_start(perigee__rank *rank, uv_loop_t *loop, perigee__child_spec *spec,
                        perigee__environ *env, bool inherit, bool reports, bool *exec_failed_p) {
  int pipes[PIPES][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
  *exec_failed_p = false;
  int rc;
  PERIGEE_TRY_GOTO(open_pipes(pipes, inherit, reports), out);
  if (reports)
    PERIGEE_TRY_GOTO(perigee__environ_put(env, PERIGEE_REPORT_FD "=%d", pipes[REPORT][1]), out);
  spec->envp = env->vars;
  spec->out = pipes[OUT][1];
  spec->err = pipes[ERR][1];
  spec->keep = pipes[REPORT][1];
  rc = perigee__child_start(spec, &rank->pid);
  *exec_failed_p = rc < 0;
  if (rc < 0)
    goto out;
  rank->group_gone = false;
  watch_process(rank, loop);
  rc = attach(rank, loop, pipes);
out:
  close_pipes(pipes);
  return rc;
}

void perigee__rank_signal(perigee__rank *rank, int signo) {
  if (!rank->group_gone)
    kill(-rank->pid, signo);
}

void perigee__rank_check_group(perigee__rank *rank) {
  /* The number stays taken while the group has members; once it is seen empty it is not used again. */
  if (rank->exited && !rank->group_gone && kill(-rank->pid, 0) < 0 && errno == ESRCH)
    rank->group_gone = true;
}

bool perigee__rank_pipes_open(const perigee__rank *rank) {
  return rank->out.open || rank->err.open;
}

static void stream_pause(perigee__stream *s, bool pause) {
  if (!s->open)
    return;
  if (pause)
    uv_read_stop((uv_stream_t *)&s->pipe);
  else
    uv_read_start((uv_stream_t *)&s->pipe, on_alloc, on_read);
}

void perigee__rank_pause(perigee__rank *rank, bool pause) {
  stream_pause(&rank->out, pause);
  stream_pause(&rank->err, pause);
}

static void stream_close(perigee__stream *s) {
  if (s->open) {
    s->open = false;
    uv_close((uv_handle_t *)&s->pipe, NULL);
  }
  if (s->rank != NULL)
    stream_finish(s);
}

void perigee__rank_close(perigee__rank *rank) {
  stream_close(&rank->out);
  stream_close(&rank->err);
  close_poll(&rank->pidfd, &rank->pidfd_fd);
  close_poll(&rank->report, &rank->report_fd);
}

void perigee__rank_fini(perigee__rank *rank) {
  perigee__lines_fini(&rank->out.lines);
  perigee__lines_fini(&rank->err.lines);
  perigee__tail_fini(&rank->tail);
}
