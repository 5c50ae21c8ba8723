/* The launcher's stdout and stderr, shared by all ranks and by the launcher's own lines. */
#ifndef PERIGEE_CLI_CONSOLE_H
#define PERIGEE_CLI_CONSOLE_H

#include <stdbool.h>
#include <uv.h>

#include "cli/output.h"
#include "cli/sink.h"

typedef struct perigee__console {
  perigee__sink out, err;
  perigee__screen terminal, plain; /* for streams that end at a terminal, and for the others */
  bool out_tty, err_tty;
  bool colour;                /* prefixes of both outputs */
  bool congested;             /* readers are slow: ranks are not read until it is false again */
  perigee__lines own;         /* the launcher's lines, on err */
  bool broken;                /* nobody reads stdout any more */
  void (*changed)(void *arg); /* congested or broken is another than before */
  void *arg;
} perigee__console;

PERIGEE_MUST_CHECK int perigee__console_init(perigee__console *console, uv_loop_t *loop,
                                             void (*changed)(void *arg), void *arg);
/** Columns of the terminal on stdout, 0 when unknown. */
int perigee__console_columns(const perigee__console *console);
/** "perigee run: text\n" on stderr; also without the prefix. */
void perigee__console_say(perigee__console *console, const char *fmt, ...) PERIGEE_PRINTF(2, 3);
void perigee__console_say_plain(perigee__console *console, const char *fmt, ...)
    PERIGEE_PRINTF(2, 3);
/** Write what fits of what was queued. */
void perigee__console_flush(perigee__console *console);
/** Nothing waits to be written (or nobody reads it). */
bool perigee__console_drained(const perigee__console *console);
/** The loop must run once more before the memory goes. */
void perigee__console_close(perigee__console *console);

#endif
