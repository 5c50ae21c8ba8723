/* The last bytes of a stream: what a rank said before it failed. */
#ifndef PERIGEE_CLI_TAIL_H
#define PERIGEE_CLI_TAIL_H

#include <stddef.h>

enum {
  PERIGEE__TAIL_BYTES = 64 * 1024,
  PERIGEE__TAIL_LINES = 100
};

/** A ring of PERIGEE__TAIL_BYTES, allocated at the first byte. All zero is empty. */
typedef struct perigee__tail {
  char *ring;
  size_t total; /* bytes ever fed; the newest is at (total - 1) % PERIGEE__TAIL_BYTES */
} perigee__tail;

void perigee__tail_feed(perigee__tail *tail, const char *data, size_t size);
/**
 * The last whole lines, at most PERIGEE__TAIL_LINES, in new memory (free it), NULL when there is none.
 * *size_p: bytes. *cut_p: 1 when the stream had more.
 */
char *perigee__tail_text(const perigee__tail *tail, size_t *size_p, int *cut_p);
void perigee__tail_fini(perigee__tail *tail);

#endif
