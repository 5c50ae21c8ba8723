/*
 * A lock that is waited for with a deadline, for what does I/O while it is held: a caller whose own deadline is near
 * must not be held up by one whose is far.
 */
#ifndef PERIGEE_STORE_GATE_H
#define PERIGEE_STORE_GATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/thread.h"

/** A condition variable on CLOCK_MONOTONIC. */
void perigee__cond_init(pthread_cond_t *cond);
/** Mutex held. 0 when woken (or for no reason), PERIGEE_ETIMEDOUT when the deadline has passed; sets no error text. */
int perigee__cond_wait(pthread_cond_t *cond, perigee_mutex *mutex, int64_t deadline_ns);

typedef struct perigee__gate {
  perigee_mutex mutex; /* held for moments only */
  pthread_cond_t free; /* signalled when busy becomes false */
  int kick_fd;         /* immutable: eventfd made readable when somebody wants in, or -1 */
  int wanted;          /* under mutex: threads inside enter */
  bool busy;           /* under mutex: somebody is in */
} perigee__gate;

void perigee__gate_init(perigee__gate *gate, const char *name, int kick_fd);
void perigee__gate_fini(perigee__gate *gate);
/** 0, or PERIGEE_ETIMEDOUT without an error text. */
int perigee__gate_enter(perigee__gate *gate, int64_t deadline_ns);
void perigee__gate_leave(perigee__gate *gate);
/** Whoever is in asks: does somebody want in? Takes back the kick that said so. */
bool perigee__gate_wanted(perigee__gate *gate);

#endif
