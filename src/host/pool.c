#include "host/pool.h"

#include <stdlib.h>
#include <string.h>

#include "base/attr.h"

#define BLOCK_BYTES ((size_t)32 << 10)
/* The list word in front of a block, kept to the alignment of malloc. */
#define BLOCK_HEAD ((size_t)16)

static bool is_small(size_t size) { return !PERIGEE_SANITIZED && size <= PERIGEE_POOL_MAX; }
static size_t class_of(size_t size) { return (size - 1) / PERIGEE_POOL_STEP; }

static void *take_new(perigee__pool *pool, size_t bytes) {
  if ((size_t)(pool->end - pool->next) < bytes) {
    char *block = malloc(BLOCK_BYTES);
    if (block == NULL)
      return NULL;
    memcpy(block, &pool->blocks, sizeof(void *));
    pool->blocks = block;
    /* The rest of the old block is lost until the end: less than one piece. */
    pool->next = block + BLOCK_HEAD;
    pool->end = block + BLOCK_BYTES;
  }
  void *piece = pool->next;
  pool->next += bytes;
  return piece;
}

static void *small_alloc(perigee__pool *pool, size_t size) {
  size_t c = class_of(size);
  void *piece = pool->free[c];
  if (PERIGEE_LIKELY(piece != NULL)) {
    memcpy(&pool->free[c], piece, sizeof(void *));
    return piece;
  }
  return take_new(pool, (c + 1) * PERIGEE_POOL_STEP);
}

static void small_free(perigee__pool *pool, void *ptr, size_t size) {
  size_t c = class_of(size);
  memcpy(ptr, &pool->free[c], sizeof(void *));
  pool->free[c] = ptr;
}

static void drop(perigee__pool *pool, void *ptr, size_t size) {
  if (is_small(size))
    small_free(pool, ptr, size);
  else
    free(ptr);
}

void *perigee__pool_realloc(perigee__pool *pool, void *ptr, size_t old_size, size_t new_size) {
  if (new_size == 0) {
    if (ptr != NULL)
      drop(pool, ptr, old_size);
    return NULL;
  }
  if (ptr == NULL)
    return is_small(new_size) ? small_alloc(pool, new_size) : malloc(new_size);
  if (!is_small(old_size) && !is_small(new_size))
    return realloc(ptr, new_size);
  if (is_small(old_size) && is_small(new_size) && class_of(old_size) == class_of(new_size))
    return ptr;
  void *moved = is_small(new_size) ? small_alloc(pool, new_size) : malloc(new_size);
  if (moved == NULL)
    return NULL;
  memcpy(moved, ptr, old_size < new_size ? old_size : new_size);
  drop(pool, ptr, old_size);
  return moved;
}

void perigee__pool_fini(perigee__pool *pool) {
  while (pool->blocks != NULL) {
    void *block = pool->blocks;
    memcpy(&pool->blocks, block, sizeof(void *));
    free(block);
  }
}
