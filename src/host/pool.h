/*
 * Memory of an owned state: what Lua asks for and gives back in small pieces, thousands of times per second.
 *
 * Pieces up to PERIGEE_POOL_MAX bytes come from free lists by size, cut from blocks that live as long as the pool; larger ones from
 * malloc. Only the holder of the interpreter's mutex uses it, so it has no lock. Under a sanitizer everything comes from malloc.
 */
#ifndef PERIGEE_HOST_POOL_H
#define PERIGEE_HOST_POOL_H

#include <stdbool.h>
#include <stddef.h>

enum {
  PERIGEE_POOL_STEP = 16,
  PERIGEE_POOL_MAX = 512
};

typedef struct perigee__pool {
  void *free[PERIGEE_POOL_MAX /
             PERIGEE_POOL_STEP]; /* by size, rounded up: a list through the pieces' first word */
  void *blocks;                  /* all blocks: a list through their first word */
  char *next, *end;              /* what is left of the newest block */
} perigee__pool;

/** An empty pool is a zeroed one. Frees all blocks; pieces from malloc are their owners'. */
void perigee__pool_fini(perigee__pool *pool);
/** realloc with the old size known; new_size 0 frees. NULL when there is no memory, and the old piece is as it was. */
void *perigee__pool_realloc(perigee__pool *pool, void *ptr, size_t old_size, size_t new_size);

#endif
