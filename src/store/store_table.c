#include "store/store_table.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "store/store.h"
#include "store/store_buf.h"

enum {
  FIRST_BUCKETS = 16,
  ITEM_COST = 32,
  ENTRY_COST = 128
};

/* SipHash-1-3 (Aumasson and Bernstein 2012): keyed, so that chosen keys do not pile up in one bucket. */
static inline uint64_t rotl(uint64_t x, int b) { return x << b | x >> (64 - b); }

static inline void sip_round(uint64_t v[4]) {
  v[0] += v[1], v[1] = rotl(v[1], 13) ^ v[0], v[0] = rotl(v[0], 32);
  v[2] += v[3], v[3] = rotl(v[3], 16) ^ v[2];
  v[0] += v[3], v[3] = rotl(v[3], 21) ^ v[0];
  v[2] += v[1], v[1] = rotl(v[1], 17) ^ v[2], v[2] = rotl(v[2], 32);
}

static uint64_t hash_of(const perigee__table *t, const unsigned char *p, size_t size) {
  uint64_t v[4] = {
      t->seed[0] ^ UINT64_C(0x736f6d6570736575), t->seed[1] ^ UINT64_C(0x646f72616e646f6d),
      t->seed[0] ^ UINT64_C(0x6c7967656e657261), t->seed[1] ^ UINT64_C(0x7465646279746573)};
  uint64_t last = (uint64_t)size << 56;
  for (; size >= 8; p += 8, size -= 8) {
    uint64_t m = perigee__le64(p);
    v[3] ^= m;
    sip_round(v);
    v[0] ^= m;
  }
  for (size_t i = 0; i < size; i++)
    last |= (uint64_t)p[i] << (8 * i);
  v[3] ^= last;
  sip_round(v);
  v[0] ^= last;
  v[2] ^= 0xff;
  for (int i = 0; i < 3; i++)
    sip_round(v);
  return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* ---- entries ---- */

int perigee__table_init(perigee__table *t, size_t bytes_max) {
  *t = (perigee__table){.bytes_max = bytes_max, .nbuckets = FIRST_BUCKETS};
  if (getrandom(t->seed, sizeof(t->seed), GRND_NONBLOCK) != (ssize_t)sizeof(t->seed))
    t->seed[0] = (uint64_t)perigee__now_ns(), t->seed[1] = (uint64_t)(uintptr_t)t;
  t->buckets = perigee__calloc(t->nbuckets, sizeof(*t->buckets));
  return t->buckets != NULL ? 0 : perigee__fail(PERIGEE_ENOMEM, "no memory for a table of keys");
}

static void items_free(perigee__entry *e) {
  for (perigee__item *item = e->first, *next; item != NULL; item = next) {
    next = item->next;
    free(item);
  }
}

void perigee__table_fini(perigee__table *t) {
  for (size_t i = 0; i < t->nbuckets; i++)
    for (perigee__entry *e = t->buckets[i], *next; e != NULL; e = next) {
      next = e->next;
      items_free(e);
      free(e->value);
      free(e);
    }
  free(t->buckets);
  *t = (perigee__table){.nbuckets = 0};
}

static perigee__entry *lookup(const perigee__table *t, uint64_t hash, const void *key,
                              size_t size) {
  for (perigee__entry *e = t->buckets[hash & (t->nbuckets - 1)]; e != NULL; e = e->next)
    if (e->hash == hash && e->key_size == size && memcmp(e->key, key, size) == 0)
      return e;
  return NULL;
}

perigee__entry *perigee__table_find(const perigee__table *t, const void *key, size_t size) {
  return lookup(t, hash_of(t, key, size), key, size);
}

/* Fails silently: a full table is slow, not wrong. */
static void grow(perigee__table *t) {
  size_t n = t->nbuckets * 2;
  perigee__entry **buckets = perigee__calloc(n, sizeof(*buckets));
  if (buckets == NULL)
    return;
  for (size_t i = 0; i < t->nbuckets; i++)
    for (perigee__entry *e = t->buckets[i], *next; e != NULL; e = next) {
      next = e->next;
      e->next = buckets[e->hash & (n - 1)];
      buckets[e->hash & (n - 1)] = e;
    }
  free(t->buckets);
  t->buckets = buckets;
  t->nbuckets = n;
}

/* Whether n more bytes are allowed. */
static int charge_check(const perigee__table *t, size_t n) {
  if (n > t->bytes_max || t->bytes > t->bytes_max - n)
    return perigee__fail(PERIGEE_ELIMIT, "store is full: it holds %zu of at most %zu bytes",
                         t->bytes, t->bytes_max);
  return 0;
}

perigee__entry *perigee__table_obtain(perigee__table *t, const void *key, size_t size) {
  uint64_t hash = hash_of(t, key, size);
  perigee__entry *e = lookup(t, hash, key, size);
  if (e != NULL)
    return e;
  if (charge_check(t, size + ENTRY_COST) < 0)
    return NULL;
  if (t->nentries >= t->nbuckets)
    grow(t);
  e = malloc(sizeof(*e) + size + 1);
  if (e == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a key of %zu bytes", size), NULL;
  *e = (perigee__entry){.hash = hash, .key_size = size};
  perigee__list_init(&e->waiters);
  memcpy(e->key, key, size);
  e->key[size] = '\0';
  e->next = t->buckets[hash & (t->nbuckets - 1)];
  t->buckets[hash & (t->nbuckets - 1)] = e;
  t->nentries++;
  t->bytes += size + ENTRY_COST;
  return e;
}

void perigee__table_release(perigee__table *t, perigee__entry *e) {
  if (e == NULL || perigee__entry_exists(e) || e->pins > 0 || !perigee__list_empty(&e->waiters))
    return;
  perigee__entry **at = &t->buckets[e->hash & (t->nbuckets - 1)];
  while (*at != e)
    at = &(*at)->next;
  *at = e->next;
  t->nentries--;
  t->bytes -= e->key_size + ENTRY_COST;
  free(e);
}

void perigee__table_each(const perigee__table *t, void (*fn)(const perigee__entry *e, void *arg),
                         void *arg) {
  for (size_t i = 0; i < t->nbuckets; i++)
    for (perigee__entry *e = t->buckets[i]; e != NULL; e = e->next)
      fn(e, arg);
}

int perigee__table_list(const perigee__table *t, char ***keys_p, size_t *n_p) {
  char **keys = perigee__calloc(t->nvalues, sizeof(*keys));
  size_t n = 0;
  if (keys == NULL)
    goto no_memory;
  for (size_t i = 0; i < t->nbuckets; i++)
    for (const perigee__entry *e = t->buckets[i]; e != NULL; e = e->next)
      if (e->value != NULL) {
        if ((keys[n] = perigee__strdup(e->key)) == NULL)
          goto no_memory;
        n++;
      }
  *keys_p = keys;
  *n_p = n;
  return 0;
no_memory:
  perigee_store_keys_free(keys, n);
  return perigee__fail(PERIGEE_ENOMEM, "no memory for a list of %zu keys", t->nvalues);
}

/* ---- values ---- */

int perigee__entry_set(perigee__table *t, perigee__entry *e, const void *data, size_t size) {
  if (size > e->size)
    PERIGEE_TRY(charge_check(t, size - e->size));
  char *value = malloc(size + 1);
  if (value == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a value of %zu bytes", size);
  if (size > 0)
    memcpy(value, data, size);
  t->nvalues += e->value == NULL;
  t->bytes = t->bytes - e->size + size;
  free(e->value);
  e->value = value;
  e->size = e->cap = size;
  return 0;
}

int perigee__entry_append(perigee__table *t, perigee__entry *e, const void *data, size_t size) {
  if (e->value == NULL)
    return perigee__entry_set(t, e, data, size);
  PERIGEE_TRY(charge_check(t, size));
  if (size > PERIGEE__STORE_VALUE_MAX - e->size)
    return perigee__fail(PERIGEE_ELIMIT, "append to '%s': value of %zu + %zu bytes, at most %d",
                         e->key, e->size, size, PERIGEE__STORE_VALUE_MAX);
  if (e->size + size > e->cap) {
    size_t cap = e->size + size + e->size / 2;
    char *value = realloc(e->value, cap + 1);
    if (value == NULL)
      return perigee__fail(PERIGEE_ENOMEM, "no memory for a value of %zu bytes", cap);
    e->value = value;
    e->cap = cap;
  }
  if (size > 0)
    memcpy(e->value + e->size, data, size);
  e->size += size;
  t->bytes += size;
  return 0;
}

/* Decimal text with an optional sign and nothing else. */
static bool parse_number(const char *text, size_t size, int64_t *value_p) {
  size_t i = size > 0 && (text[0] == '-' || text[0] == '+');
  bool negative = i > 0 && text[0] == '-';
  int64_t value = 0;
  if (i == size)
    return false;
  for (; i < size; i++) {
    if (text[i] < '0' || text[i] > '9' || __builtin_mul_overflow(value, (int64_t)10, &value))
      return false;
    int64_t digit = text[i] - '0';
    if (__builtin_add_overflow(value, negative ? -digit : digit, &value))
      return false;
  }
  *value_p = value;
  return true;
}

int perigee__entry_sum(const perigee__entry *e, int64_t delta, int64_t *value_p) {
  int64_t value = 0;
  if (e->value != NULL && !parse_number(e->value, e->size, &value))
    return perigee__fail(PERIGEE_EINVAL, "add to '%s': its value '%.*s' is no decimal number",
                         e->key, (int)(e->size < 32 ? e->size : 32), e->value);
  if (__builtin_add_overflow(value, delta, &value))
    return perigee__fail(PERIGEE_ERANGE, "add %" PRId64 " to '%s': exceeds 64 bits", delta, e->key);
  *value_p = value;
  return 0;
}

int perigee__entry_add(perigee__table *t, perigee__entry *e, int64_t delta, int64_t *value_p) {
  int64_t value = 0;
  char text[24];
  PERIGEE_TRY(perigee__entry_sum(e, delta, &value));
  int n = snprintf(text, sizeof(text), "%" PRId64, value);
  PERIGEE_TRY(perigee__entry_set(t, e, text, (size_t)n));
  *value_p = value;
  return 0;
}

bool perigee__entry_matches(const perigee__entry *e, const void *expected, size_t expected_size) {
  if (e->value == NULL)
    return expected_size == 0;
  return e->size == expected_size &&
         (expected_size == 0 || memcmp(e->value, expected, expected_size) == 0);
}

bool perigee__entry_unset(perigee__table *t, perigee__entry *e) {
  if (e->value == NULL)
    return false;
  free(e->value);
  t->bytes -= e->size;
  t->nvalues--;
  e->value = NULL;
  e->size = e->cap = 0;
  return true;
}

/* ---- queues ---- */

int perigee__entry_push(perigee__table *t, perigee__entry *e, const void *data, size_t size) {
  PERIGEE_TRY(charge_check(t, size + ITEM_COST));
  perigee__item *item = malloc(sizeof(*item) + size + 1);
  if (item == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a queue item of %zu bytes", size);
  item->next = NULL;
  item->size = size;
  if (size > 0)
    memcpy(item->data, data, size);
  if (e->last != NULL)
    e->last->next = item;
  else
    e->first = item;
  e->last = item;
  e->queue_len++;
  t->bytes += size + ITEM_COST;
  return 0;
}

perigee__item *perigee__entry_pop(perigee__table *t, perigee__entry *e) {
  perigee__item *item = e->first;
  if (item == NULL)
    return NULL;
  e->first = item->next;
  if (e->first == NULL)
    e->last = NULL;
  e->queue_len--;
  t->bytes -= item->size + ITEM_COST;
  return item;
}
