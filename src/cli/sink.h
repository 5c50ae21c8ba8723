/*
 * Writing to the launcher's stdout and stderr without ever blocking in write.
 *
 * The descriptor belongs to others too (the shell, a pipe's other writers), so it is not made non-blocking: poll() says
 * when a piece of up to PIPE_BUF bytes fits. What does not fit waits in memory; an epoll descriptor around the
 * output tells the loop when to go on (libuv would set O_NONBLOCK on the output itself). One thread, the loop's.
 */
#ifndef PERIGEE_CLI_SINK_H
#define PERIGEE_CLI_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

#include "base/attr.h"

typedef struct perigee__sink {
  int fd;      /* borrowed */
  int epoll;   /* holds fd; -1 for files, which are always writable */
  bool broken; /* the reader has gone: everything is dropped */
  char *data;  /* waits to be written: [start, end) */
  size_t start, end, capacity;
  uv_poll_t poll;
  void (*moved)(void *arg); /* something was written, or the sink broke, outside of flush */
  void *arg;
} perigee__sink;

PERIGEE_MUST_CHECK int perigee__sink_init(perigee__sink *sink, uv_loop_t *loop, int fd,
                                          void (*moved)(void *arg), void *arg);
/** Queue bytes; nothing is written before flush. Matches perigee__emit_fn with the sink as arg. */
void perigee__sink_write(void *sink, const char *data, size_t size);
/** Write what fits now; the rest follows from the loop. */
void perigee__sink_flush(perigee__sink *sink);
/** Bytes that wait. */
size_t perigee__sink_pending(const perigee__sink *sink);
/** Drops what waits. The loop must run once more before the memory goes. */
void perigee__sink_close(perigee__sink *sink);

#endif
