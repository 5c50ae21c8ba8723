#include "cli/sink.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/error.h"

static void on_writable(uv_poll_t *poll, int status, int events);

int perigee__sink_init(perigee__sink *sink, uv_loop_t *loop, int fd, void (*moved)(void *arg),
                       void *arg) {
  *sink = (perigee__sink){.fd = fd, .epoll = -1, .moved = moved, .arg = arg};
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0)
    return perigee__fail_errno(errno, "cannot watch descriptor %d", fd);
  struct epoll_event event = {.events = EPOLLOUT};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
    int cause = errno;
    close(epoll);
    /* EPERM: a file or the like, never blocks */
    return cause == EPERM ? 0 : perigee__fail_errno(cause, "cannot watch descriptor %d", fd);
  }
  int rc = uv_poll_init(loop, &sink->poll, epoll);
  if (rc < 0) {
    close(epoll);
    return perigee__fail_errno(-rc, "cannot watch descriptor %d", fd);
  }
  sink->poll.data = sink;
  sink->epoll = epoll;
  return 0;
}

void perigee__sink_write(void *arg, const char *data, size_t size) {
  perigee__sink *sink = arg;
  if (sink->broken || size == 0)
    return;
  if (sink->start > 0 && sink->start == sink->end)
    sink->start = sink->end = 0;
  if (sink->end + size > sink->capacity) {
    if (sink->start > 0)
      memmove(sink->data, sink->data + sink->start, sink->end - sink->start);
    sink->end -= sink->start;
    sink->start = 0;
    size_t capacity = sink->capacity == 0 ? 8192 : sink->capacity;
    while (capacity < sink->end + size)
      capacity *= 2;
    char *more = capacity > sink->capacity ? realloc(sink->data, capacity) : sink->data;
    if (more == NULL)
      return; /* output is lost, ranks are not */
    sink->data = more;
    sink->capacity = capacity;
  }
  memcpy(sink->data + sink->end, data, size);
  sink->end += size;
}

/* Whether a piece fits without blocking. */
static bool fits(const perigee__sink *sink) {
  if (sink->epoll < 0)
    return true;
  struct pollfd p = {.fd = sink->fd, .events = POLLOUT};
  return poll(&p, 1, 0) > 0;
}

void perigee__sink_flush(perigee__sink *sink) {
  size_t piece = sink->epoll < 0 ? SIZE_MAX : PIPE_BUF;
  while (!sink->broken && sink->start < sink->end && fits(sink)) {
    size_t size = sink->end - sink->start;
    ssize_t n = write(sink->fd, sink->data + sink->start, size < piece ? size : piece);
    if (n >= 0) {
      sink->start += (size_t)n;
    } else if (errno == EAGAIN) {
      break;
    } else if (errno != EINTR) {
      sink->broken = true;
      sink->start = sink->end;
    }
  }
  if (sink->epoll < 0)
    return;
  if (sink->start < sink->end)
    uv_poll_start(&sink->poll, UV_READABLE, on_writable);
  else
    uv_poll_stop(&sink->poll);
}

static void on_writable(uv_poll_t *poll, int status, int events) {
  (void)status;
  (void)events;
  perigee__sink *sink = poll->data;
  perigee__sink_flush(sink);
  sink->moved(sink->arg);
}

size_t perigee__sink_pending(const perigee__sink *sink) { return sink->end - sink->start; }

static void on_closed(uv_handle_t *handle) { close(((perigee__sink *)handle->data)->epoll); }

void perigee__sink_close(perigee__sink *sink) {
  free(sink->data);
  sink->data = NULL;
  sink->start = sink->end = sink->capacity = 0;
  sink->broken = true;
  if (sink->epoll >= 0)
    uv_close((uv_handle_t *)&sink->poll, on_closed);
}
