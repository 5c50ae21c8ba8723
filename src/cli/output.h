/*
 * Lines of many ranks on one output, without I/O: bytes in, whole lines with their prefix out through a callback.
 *
 * Rules
 *  - A line goes out as one piece when its '\n' has come, or when the stream ends (then '\n' is added).
 *  - '\r' starts the line again, as a terminal would show it: only what follows the last '\r' counts ("\r\n" is
 *    a plain line end). Off a terminal that is all there is to it.
 *  - On a terminal an unfinished line with a '\r' in it (a progress bar) is drawn at once with its prefix, and is drawn again
 *    below whatever line another stream prints: it stays the last line of the screen until it ends.
 *  - A line of more than PERIGEE__LINE_MAX bytes is cut there.
 */
#ifndef PERIGEE_CLI_OUTPUT_H
#define PERIGEE_CLI_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>

enum {
  PERIGEE__LINE_MAX = 1 << 20
};

typedef struct perigee__lines perigee__lines;

/** What streams that share one terminal share; for streams off a terminal too (tty false). */
typedef struct perigee__screen {
  bool tty;
  perigee__lines
      *bar; /* whose unfinished line is on the screen, the cursor at its column 0; or NULL */
} perigee__screen;

typedef void (*perigee__emit_fn)(void *arg, const char *data, size_t size);

/** One stream (stdout or stderr) of one rank. */
struct perigee__lines {
  perigee__screen *screen;
  const char *prefix; /* borrowed; "" for none */
  perigee__emit_fn emit;
  void *arg;
  char *text; /* the unfinished line */
  size_t size, capacity;
  bool redraws; /* it has had a '\r' */
  bool cr;      /* the last byte was a '\r' whose meaning the next one decides */
  bool drawn;   /* text is on the screen as it is */
};

void perigee__lines_init(perigee__lines *lines, perigee__screen *screen, const char *prefix,
                         perigee__emit_fn emit, void *arg);
void perigee__lines_feed(perigee__lines *lines, const char *data, size_t size);
/** The stream has ended: what is left is a line. */
void perigee__lines_flush(perigee__lines *lines);
void perigee__lines_fini(perigee__lines *lines);

/** "[3] ", in the rank's colour if wanted. Returns buf. */
const char *perigee__rank_prefix(int rank, bool colour, char *buf, size_t size);
/** Whether to colour: NO_COLOR forbids, CLICOLOR_FORCE demands, else a terminal that is not dumb. */
bool perigee__wants_colour(bool tty);

#endif
