/*
 * Fuzz target for what a store server does with bytes from strangers: the parser and the engine, without sockets.
 *
 * With libFuzzer, from the top of the repository:
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Iinclude -Isrc spec/fuzz/fuzz_store_tcp.c \
 *     src/store/store{,_generic,_buf,_table,_tcp_parse,_tcp_engine}.c src/base/{error,clock,thread,assert,alloc,log,env}.c \
 *     -luv -lpthread -o fuzz_store_tcp && ./fuzz_store_tcp spec/fuzz/corpus/store_tcp
 * Without: add -DPERIGEE_FUZZ_MAIN and leave out "fuzzer"; then
 *   ./fuzz_store_tcp FILE...      replays files
 *   ./fuzz_store_tcp -n N [-s S]  runs N inputs mutated from built-in ones, seeded with S
 *
 * First byte of an input: even, the rest is one connection's bytes, which must parse alike however they are cut. Odd, the
 *   rest is a play of four peers on one engine: (peer and what it does, number of bytes, bytes)*.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "store/store_tcp_engine.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- one connection, cut in different ways ---- */

/* What a stream of bytes came to. */
typedef struct outcome {
  uint64_t digest;
  size_t requests, taken; /* taken: bytes up to the end of the last whole request */
  int rc;
} outcome;

static void mix(outcome *o, const void *data, size_t size) {
  const unsigned char *p = data;
  for (size_t i = 0; i < size; i++)
    o->digest = (o->digest ^ p[i]) * UINT64_C(1099511628211);
}

static void take_request(outcome *o, const perigee__parser *p) {
  o->requests++;
  mix(o, &p->code, sizeof(p->code));
  if (p->code == PERIGEE__REQ_ADD || p->code == PERIGEE__REQ_BARRIER)
    mix(o, &p->number, sizeof(p->number));
  if (p->code == PERIGEE__REQ_PING)
    mix(o, &p->word, sizeof(p->word));
  for (size_t i = 0; i < p->nspans; i++) {
    PERIGEE_CHECK(p->spans[i].at + p->spans[i].size <= p->text.size);
    PERIGEE_CHECK(p->spans[i].size <= PERIGEE__WIRE_VALUE_MAX);
    mix(o, &p->spans[i].size, sizeof(p->spans[i].size));
    mix(o, perigee__parser_text(p, i), p->spans[i].size);
  }
}

/* step(i): length of the i-th piece. */
static outcome parse(const uint8_t *data, size_t size, size_t (*step)(size_t i)) {
  outcome o = {.digest = UINT64_C(14695981039346656037)};
  perigee__parser p;
  perigee__parser_init(&p);
  size_t at = 0;
  for (size_t i = 0; at < size && o.rc >= 0; i++) {
    size_t piece = step(i), end = piece < size - at ? at + piece : size;
    while (at < end && o.rc >= 0) {
      size_t used = 0;
      o.rc = perigee__parser_feed(&p, data + at, end - at, &used);
      PERIGEE_CHECK(used > 0 && used <= end - at);
      at += used;
      if (o.rc == 1) {
        take_request(&o, &p);
        o.taken = at;
      }
      /* memory follows what arrived, never what was claimed */
      PERIGEE_CHECK(p.text.cap <= (2 * at > 64 << 10 ? 2 * at : 64 << 10));
      PERIGEE_CHECK(p.spans_cap <= (at > 64 ? at : 64));
    }
  }
  perigee__parser_fini(&p);
  if (o.rc > 0)
    o.rc = 0;
  return o;
}

static size_t all_at_once(size_t i) {
  (void)i;
  return SIZE_MAX;
}
static size_t by_ones(size_t i) {
  (void)i;
  return 1;
}
static size_t uneven(size_t i) { return 1 + i * 7 % 23; }

static void cut_in_different_ways(const uint8_t *data, size_t size) {
  outcome whole = parse(data, size, all_at_once), ones = parse(data, size, by_ones),
          pieces = parse(data, size, uneven);
  PERIGEE_CHECK(whole.rc == ones.rc && whole.rc == pieces.rc);
  PERIGEE_CHECK(whole.requests == ones.requests && whole.requests == pieces.requests);
  PERIGEE_CHECK(whole.taken == ones.taken && whole.taken == pieces.taken);
  PERIGEE_CHECK(whole.digest == ones.digest && whole.digest == pieces.digest);
}

/* ---- several peers ---- */

enum {
  PEERS = 4
};

typedef struct play {
  perigee__engine engine;
  perigee__peer peers[PEERS];
  size_t values; /* counted by count_entry */
} play;

static void peer_start(play *p, int i) {
  perigee__peer_init(&p->peers[i], &p->engine);
  PERIGEE_CHECK(perigee__peer_feed(&p->peers[i], "\0" PERIGEE__WIRE_MAGIC, 5) == 0);
}

static void peer_check(const perigee__peer *peer) {
  size_t missing = 0;
  for (size_t i = 0; i < peer->nwaiters; i++)
    if (peer->waiters[i].entry != NULL) {
      missing++;
      PERIGEE_CHECK(!perigee__list_empty(&peer->waiters[i].node));
      /* who still waits, waits for what is not there, or for what was promised to another */
      const perigee__entry *e = peer->waiters[i].entry;
      PERIGEE_CHECK(peer->waiters[i].barrier || e->value == NULL);
    }
  PERIGEE_CHECK(missing == peer->missing);
  PERIGEE_CHECK((peer->waiters == NULL) == (missing == 0));
  PERIGEE_CHECK((peer->baton_entry == NULL) == perigee__list_empty(&peer->baton));
}

static void count_entry(const perigee__entry *e, void *arg) {
  play *p = arg;
  p->values += e->value != NULL;
  PERIGEE_CHECK(perigee__entry_exists(e));
  PERIGEE_CHECK(e->pins == 0 && perigee__list_empty(&e->waiters));
  PERIGEE_CHECK((e->first != NULL) == (e->queue_len > 0));
}

static void peers_drain(play *p) {
  while (!perigee__list_empty(&p->engine.ready))
    perigee__list_remove(p->engine.ready.next);
  for (int i = 0; i < PEERS; i++) {
    peer_check(&p->peers[i]);
    perigee__buf_reset(&p->peers[i].out, 64);
  }
}

static void peers_play(const uint8_t *data, size_t size) {
  static play p;
  p.values = 0;
  PERIGEE_CHECK(perigee__engine_init(&p.engine, 1 << 20) == 0);
  for (int i = 0; i < PEERS; i++)
    peer_start(&p, i);
  while (size >= 2) {
    int i = data[0] % PEERS, what = data[0] / PEERS % 8;
    size_t n = data[1] < size - 2 ? data[1] : size - 2;
    bool gone = what == 7 || perigee__peer_feed(&p.peers[i], data + 2, n) < 0;
    if (gone) {
      perigee__peer_fini(&p.peers[i]);
      peer_start(&p, i);
    }
    if (what == 6)
      PERIGEE_CHECK(perigee__engine_tick(&p.engine, PERIGEE_NEVER - 1) == PERIGEE_NEVER);
    peers_drain(&p);
    data += 2 + n;
    size -= 2 + n;
  }
  for (int i = 0; i < PEERS; i++)
    perigee__peer_fini(&p.peers[i]);
  PERIGEE_CHECK(perigee__list_empty(&p.engine.ready) && perigee__list_empty(&p.engine.batons));
  perigee__table_each(&p.engine.table, count_entry, &p);
  PERIGEE_CHECK(p.values == p.engine.table.nvalues);
  PERIGEE_CHECK(p.engine.table.bytes <= 1 << 20);
  perigee__engine_fini(&p.engine);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size == 0)
    return 0;
  if (data[0] % 2 == 0)
    cut_in_different_ways(data + 1, size - 1);
  else
    peers_play(data + 1, size - 1);
  return 0;
}

/* ---- without libFuzzer ---- */

#ifdef PERIGEE_FUZZ_MAIN
enum {
  INPUT_MAX = 4096
};

static uint64_t rng;

static uint32_t random_below(uint32_t n) {
  rng ^= rng << 13;
  rng ^= rng >> 7;
  rng ^= rng << 17;
  return (uint32_t)(rng >> 32) % n;
}

static size_t put_field(uint8_t *out, char field) {
  static const uint64_t odd[] = {0, 1, 8192, 8193, 131072, 131073, UINT64_C(1) << 63, UINT64_MAX};
  size_t n = field == 'm' || field == 'w' ? 4 : 8;
  uint64_t v = random_below(20) == 0 ? odd[random_below(PERIGEE_COUNT(odd))] : random_below(4);
  for (size_t i = 0; i < n; i++)
    out[i] = (uint8_t)(v >> (8 * i));
  if (field == 'K' || field == 'V')
    for (size_t i = 0; i < v && i < 4; i++)
      out[n++] = (uint8_t)('a' + random_below(2));
  return n;
}

/* A request with small random fields, mostly well formed. */
static size_t put_request(uint8_t *out) {
  static const char *const fields[] = {
#define XX(_name, _code, _fields) _fields,
      PERIGEE__STORE_REQUEST_MAP(XX)
#undef XX
  };
  size_t n = 0;
  uint32_t code = 1 + random_below(PERIGEE__REQ_COUNT - 1), rounds = 1;
  out[n++] = (uint8_t)code;
  const char *f = fields[code];
  if (*f == '*') {
    rounds = random_below(4);
    memset(out + n, 0, 8);
    out[n] = (uint8_t)rounds;
    n += 8;
    f++;
  }
  for (; rounds > 0; rounds--)
    for (const char *g = f; *g != '\0'; g++)
      n += put_field(out + n, *g);
  return n;
}

static size_t make_input(uint8_t *out) {
  size_t n = 0;
  bool alone = random_below(2) == 0;
  out[n++] = !alone;
  if (alone) {
    memcpy(out + n, "\0" PERIGEE__WIRE_MAGIC, 5);
    n += 5;
  }
  for (uint32_t k = 1 + random_below(20); k > 0; k--) {
    size_t head = n;
    n += alone ? 0 : 2;
    size_t size = put_request(out + n);
    n += size;
    if (!alone) {
      out[head] = (uint8_t)random_below(256);
      out[head + 1] = (uint8_t)size;
    }
  }
  for (uint32_t k = random_below(4); k > 0; k--) {
    size_t at = random_below((uint32_t)n);
    if (random_below(2) == 0)
      out[at] = (uint8_t)random_below(256);
    else
      n = at + 1;
  }
  return n;
}

static int replay(const char *path) {
  static uint8_t data[1 << 20];
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    return 1;
  }
  size_t n = fread(data, 1, sizeof(data), file);
  fclose(file);
  return LLVMFuzzerTestOneInput(data, n);
}

int main(int argc, char **argv) {
  long inputs = 0;
  rng = 1;
  for (int i = 1; i < argc; i++)
    if (strcmp(argv[i], "-n") == 0 && i + 1 < argc)
      inputs = strtol(argv[++i], NULL, 10);
    else if (strcmp(argv[i], "-s") == 0 && i + 1 < argc)
      rng = strtoull(argv[++i], NULL, 10) * 2 + 1;
    else if (replay(argv[i]) != 0)
      return 1;
  static uint8_t input[INPUT_MAX];
  for (long i = 0; i < inputs; i++)
    LLVMFuzzerTestOneInput(input, make_input(input));
  return 0;
}
#endif
