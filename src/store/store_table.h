/*
 * Keys with values and queues: the memory of the hash store, of a file store's copy and of the TCP server.
 *
 * Values and queues are two name spaces with the same names, so one entry may have both. An entry lives while it has a
 * value, a queue item or a pin; whoever obtained an entry calls perigee__table_release when done with it.
 * Not thread-safe: the owner's lock (or loop) guards a table.
 */
#ifndef PERIGEE_STORE_TABLE_H
#define PERIGEE_STORE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/list.h"

typedef struct perigee__item {
  struct perigee__item *next;
  size_t size;
  char data[];
} perigee__item;

typedef struct perigee__entry {
  struct perigee__entry *next; /* in its bucket */
  uint64_t hash;
  char *value; /* NULL: there is none */
  size_t size, cap;
  perigee__item *first, *last;
  int64_t queue_len;
  perigee__node waiters; /* for the table's owner; the table only sees whether it is empty */
  unsigned pins;         /* for the table's owner: keeps the entry alive */
  size_t key_size;
  char key[]; /* with a NUL behind it */
} perigee__entry;

typedef struct perigee__table {
  perigee__entry **buckets;
  size_t nbuckets; /* power of two */
  size_t nentries;
  size_t nvalues;   /* entries with a value */
  size_t bytes;     /* of keys, values and queue items, with a guess of the overhead */
  size_t bytes_max; /* operations that would exceed it fail with ELIMIT */
  uint64_t seed[2]; /* keys come from strangers: they must not know which collide */
} perigee__table;

int perigee__table_init(perigee__table *t, size_t bytes_max);
void perigee__table_fini(perigee__table *t);
/** NULL when there is none. */
perigee__entry *perigee__table_find(const perigee__table *t, const void *key, size_t size);
/** Find or make; NULL when out of memory or over the limit (error set). */
perigee__entry *perigee__table_obtain(perigee__table *t, const void *key, size_t size);
/** Drop the entry when nothing keeps it. NULL is accepted. */
void perigee__table_release(perigee__table *t, perigee__entry *e);

/** What check and wait mean by "the key exists". */
static inline bool perigee__entry_exists(const perigee__entry *e) {
  return e != NULL && (e->value != NULL || e->queue_len > 0);
}

/* Operations on an obtained entry; 0 or ELIMIT, ENOMEM, EINVAL, ERANGE with nothing changed. */
int perigee__entry_set(perigee__table *t, perigee__entry *e, const void *data, size_t size);
int perigee__entry_append(perigee__table *t, perigee__entry *e, const void *data, size_t size);
int perigee__entry_add(perigee__table *t, perigee__entry *e, int64_t delta, int64_t *value_p);
/** What add would store: the value as a number (0 when there is none) plus delta. */
int perigee__entry_sum(const perigee__entry *e, int64_t delta, int64_t *value_p);
/** Whether compare_set would store: the value is expected, or there is none and expected is empty. */
bool perigee__entry_matches(const perigee__entry *e, const void *expected, size_t expected_size);
/** Whether there was a value. */
bool perigee__entry_unset(perigee__table *t, perigee__entry *e);
int perigee__entry_push(perigee__table *t, perigee__entry *e, const void *data, size_t size);
/** The oldest item, returned owned (free it); NULL when the queue is empty. */
perigee__item *perigee__entry_pop(perigee__table *t, perigee__entry *e);

/** Visit every entry, in no order; fn must not change the table. */
void perigee__table_each(const perigee__table *t, void (*fn)(const perigee__entry *e, void *arg),
                         void *arg);
/** Names of all entries with a value, as perigee_store_list_keys returns them. */
int perigee__table_list(const perigee__table *t, char ***keys_p, size_t *n_p);

#endif
