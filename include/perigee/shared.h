/* A counted value that only its maker knows. */
#ifndef PERIGEE_SHARED_H
#define PERIGEE_SHARED_H

/** Embedded in the maker's own struct. ref and unref are called from any thread, maybe with locks held, and never block. */
typedef struct perigee_shared {
  void (*ref)(struct perigee_shared *self);
  void (*unref)(struct perigee_shared *self);
} perigee_shared;

#endif
