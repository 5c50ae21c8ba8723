/*
 * Collectives with nothing around them: what is left when checks, deadlines, generality and death detection are taken away.
 *  inline     allreduce of 2 floats on 2 ranks: payload and flag in one line per rank
 *  counter    allreduce of n floats on more ranks than cores: one arrival counter, the last one reduces, the others yield a few
 *             times and then sleep
 *  symmetric  allreduce on 2 ranks whose vectors both can reach: each reduces its half and stores it twice
 */
#include <sched.h>
#include <string.h>
#include <unistd.h>

#include "machine.h"

enum {
  RANKS_MAX = 8,
  FLOATS = 1024,
  SLOTS = 4,
  YIELDS = 20
};

typedef struct line {
  _Atomic uint32_t word;
  float payload[14];
  char pad[68];
} line;

typedef struct counter {
  _Atomic uint32_t arrived, released, sleepers;
  char pad[116];
  float in[RANKS_MAX][FLOATS], out[FLOATS];
} counter;

typedef struct shared {
  line lines[2][2]; /* [parity][rank] */
  counter slots[SLOTS];
  double us; /* of rank 0 */
} shared;

typedef struct run {
  shared *s;
  int rank, nranks, iters;
  size_t n; /* floats */
  float *vectors;
  void (*call)(struct run *r, uint32_t epoch);
} run;

static void spin_until(_Atomic uint32_t *word, uint32_t value) {
  while (atomic_load_explicit(word, memory_order_acquire) != value)
    ;
}

static void call_inline(run *r, uint32_t epoch) {
  line *lines = r->s->lines[epoch & 1];
  float in[2] = {1, 2}, out[2];
  memcpy(lines[r->rank].payload, in, sizeof(in));
  atomic_store_explicit(&lines[r->rank].word, epoch, memory_order_release); /* with spin_until */
  spin_until(&lines[1 - r->rank].word, epoch);
  for (int i = 0; i < 2; i++)
    out[i] = lines[0].payload[i] + lines[1].payload[i];
  __asm__ volatile("" : : "r"(out) : "memory");
}

static void release(counter *c, uint32_t epoch) {
  atomic_store(&c->arrived, 0);
  atomic_store(&c->released, epoch);
  if (atomic_exchange(&c->sleepers, 0) > 0)
    futex_wake(&c->released, 1 << 30);
}

static void await_release(counter *c, uint32_t epoch) {
  uint32_t seen;
  for (int tries = 0; (int32_t)((seen = atomic_load(&c->released)) - epoch) < 0; tries++) {
    if (tries < YIELDS) {
      sched_yield();
      continue;
    }
    atomic_fetch_add(&c->sleepers, 1);
    if ((int32_t)(atomic_load(&c->released) - epoch) < 0)
      futex_wait(&c->released, seen);
  }
}

static void call_counter(run *r, uint32_t epoch) {
  counter *c = &r->s->slots[epoch % SLOTS];
  float in[FLOATS], out[FLOATS];
  memset(in, 0, r->n * sizeof(float));
  memcpy(c->in[r->rank], in, r->n * sizeof(float));
  if (atomic_fetch_add(&c->arrived, 1) == (uint32_t)r->nranks - 1) {
    for (size_t i = 0; i < r->n; i++) {
      float x = 0;
      for (int q = 0; q < r->nranks; q++)
        x += c->in[q][i];
      c->out[i] = x;
    }
    release(c, epoch);
  } else {
    await_release(c, epoch);
  }
  memcpy(out, c->out, r->n * sizeof(float));
  __asm__ volatile("" : : "r"(out) : "memory");
}

static void meet(run *r, uint32_t epoch) {
  atomic_store(&r->s->lines[0][r->rank].word, epoch);
  while ((int32_t)(atomic_load(&r->s->lines[0][1 - r->rank].word) - epoch) < 0)
    ;
}

WIDE static void reduce_both(float *restrict a, float *restrict b, size_t n) {
  for (size_t i = 0; i < n; i++) {
    float x = a[i] * 0.5f + b[i] * 0.5f; /* stays finite */
    a[i] = x;
    b[i] = x;
  }
}

static void call_symmetric(run *r, uint32_t epoch) {
  size_t half = r->n / 2, at = (size_t)r->rank * half;
  meet(r, 2 * epoch);
  reduce_both(r->vectors + at, r->vectors + r->n + at, half);
  meet(r, 2 * epoch + 1);
}

static void rank_main(void *arg) {
  run *r = arg;
  if (r->nranks <= cores())
    pin(r->rank);
  uint32_t warm = (uint32_t)r->iters / 10 + 1, epoch = 1;
  for (; epoch <= warm; epoch++)
    r->call(r, epoch);
  double started = now_us();
  for (; epoch <= warm + (uint32_t)r->iters; epoch++)
    r->call(r, epoch);
  if (r->rank == 0)
    r->s->us = (now_us() - started) / r->iters;
}

static double play(run *r) {
  r->s = area(sizeof(shared), 1, 0);
  pid_t pids[RANKS_MAX];
  for (int i = 1; i < r->nranks; i++) {
    r->rank = i;
    pids[i] = child(rank_main, r);
  }
  r->rank = 0;
  rank_main(r);
  for (int i = 1; i < r->nranks; i++)
    reap(pids[i]);
  pin(-1);
  double us = r->s->us;
  area_free(r->s, sizeof(shared));
  return us;
}

static void symmetric(size_t bytes) {
  run r = {.nranks = 2, .n = bytes / 4, .call = call_symmetric};
  r.iters = bytes <= 65536 ? 2000 : bytes <= (1 << 20) ? 200 : 5;
  r.vectors = area(2 * bytes, 1, 0);
  for (size_t i = 0; i < 2 * r.n; i++)
    r.vectors[i] = 0.5f;
  double us = play(&r);
  sample(US, us, bytes, "bare allreduce, symmetric, 2 ranks");
  sample(GBPS, 2 * (double)bytes / us * 1e-3, bytes, "  touched per rank");
  area_free(r.vectors, 2 * bytes);
}

void group_proto(void) {
  if (cores() >= 2) {
    run r = {.nranks = 2, .iters = 100000, .n = 2, .call = call_inline};
    sample(US, play(&r), 8, "bare allreduce, inline, 2 ranks");
  }
  for (int n = 2; n <= RANKS_MAX; n *= 2)
    for (size_t floats = 2; floats <= FLOATS; floats *= 512) {
      run r = {.nranks = n, .iters = 5000, .n = floats, .call = call_counter};
      double us = play(&r);
      sample(US, us, floats * 4, "bare allreduce, counter, %d ranks", n);
    }
  static const size_t sizes[] = {65536, 1 << 20, 16 << 20, 64 << 20};
  for (size_t i = 0; cores() >= 2 && i < sizeof(sizes) / sizeof(sizes[0]); i++)
    symmetric(sizes[i]);
}
