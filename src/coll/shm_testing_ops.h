/*
 * For tests of the shared-memory engine: every kind of collective with inputs that say where they come from, run and
 * compared with its plain definition.
 */
#ifndef PERIGEE_COLL_SHM_TESTING_OPS_H
#define PERIGEE_COLL_SHM_TESTING_OPS_H

#include "coll/shm_testing.h"
#include "tensor/reduce.h"

/* What is run. Same on all ranks. */
typedef struct what {
  perigee__coll_kind kind;
  perigee_dtype dtype;
  perigee_redop_kind redop;
  size_t
      numel; /* of one rank's tensor; of one block for gather, scatter, alltoall, reduce_scatter */
  int root;
  bool in_place;
  bool uneven; /* block sizes differ by rank; kinds that allow it */
} what;

static const char *const kind_names[] = {"barrier", "allreduce",      "broadcast",
                                         "reduce",  "allgather",      "gather",
                                         "scatter", "reduce_scatter", "alltoall"};
static const int kind_ops[] = {PERIGEE_OP_BARRIER, PERIGEE_OP_ALLREDUCE,      PERIGEE_OP_BROADCAST,
                               PERIGEE_OP_REDUCE,  PERIGEE_OP_ALLGATHER,      PERIGEE_OP_GATHER,
                               PERIGEE_OP_SCATTER, PERIGEE_OP_REDUCE_SCATTER, PERIGEE_OP_ALLTOALL};
enum {
  KINDS = 9
};

static inline bool kind_reduces(perigee__coll_kind kind) {
  return kind == PERIGEE_COLL_ALLREDUCE || kind == PERIGEE_COLL_REDUCE ||
         kind == PERIGEE_COLL_REDUCE_SCATTER;
}
static inline bool kind_has_root(perigee__coll_kind kind) {
  return kind == PERIGEE_COLL_BROADCAST || kind == PERIGEE_COLL_REDUCE ||
         kind == PERIGEE_COLL_GATHER || kind == PERIGEE_COLL_SCATTER;
}

/* Element i of what rank `from` has for rank `to`: small whole numbers that differ by all three and by operation. */
static inline int value_of(uint64_t seq, int from, int to, size_t i) {
  return (int)((seq * 5 + (uint64_t)from * 3 + (uint64_t)to * 7 + i * 11 + i / 17) % 23) - 8;
}

static inline void put(void *buf, perigee_dtype dtype, size_t i, int value) {
  switch (dtype) {
  case PERIGEE_F32:
    ((float *)buf)[i] = (float)value;
    break;
  case PERIGEE_F64:
    ((double *)buf)[i] = value;
    break;
  case PERIGEE_I32:
    ((int32_t *)buf)[i] = value;
    break;
  case PERIGEE_U8:
    ((uint8_t *)buf)[i] = (uint8_t)value;
    break;
  case PERIGEE_C64:
  case PERIGEE_C128: /* any bytes that are finite numbers */
    memset((char *)buf + i * perigee_dtype_size(dtype), 0, perigee_dtype_size(dtype));
    memcpy((char *)buf + i * perigee_dtype_size(dtype) + 2, &(int16_t){(int16_t)(value & 0x3f)}, 2);
    break;
  default: /* f16, bf16: positive finite; integers and bool: anything */
    memset((char *)buf + i * perigee_dtype_size(dtype), 0, perigee_dtype_size(dtype));
    memcpy((char *)buf + i * perigee_dtype_size(dtype), &(uint8_t){(uint8_t)(value & 0x1f)}, 1);
    break;
  }
}

/* Elements rank `from` has for rank `to`. */
static inline size_t block_numel(const what *w, int from, int to) {
  if (!w->uneven)
    return w->numel;
  switch (w->kind) {
  case PERIGEE_COLL_ALLGATHER:
  case PERIGEE_COLL_GATHER:
    return w->numel * (size_t)from;
  case PERIGEE_COLL_SCATTER:
  case PERIGEE_COLL_REDUCE_SCATTER:
    return w->numel * (size_t)to;
  case PERIGEE_COLL_ALLTOALL:
    return from == to ? 3 : w->numel * (size_t)((from * 2 + to) % 3);
  default:
    return w->numel;
  }
}

static inline void *filled(const what *w, uint64_t seq, int from, int to, size_t numel) {
  char *buf = malloc(numel * perigee_dtype_size(w->dtype) + 16);
  for (size_t i = 0; i < numel; i++)
    put(buf, w->dtype, i, value_of(seq, from, to, i));
  return buf;
}

/* The definition of a reduction, without the kernels for the dtypes that C can count in; others by the kernel on whole vectors. */
static inline void reduce_plainly(const what *w, int n, void *const *srcs, void *out,
                                  size_t numel) {
  perigee__reduce_plan plan;
  if (w->dtype == PERIGEE_F32 && w->redop == PERIGEE_REDOP_SUM) {
    for (size_t i = 0; i < numel; i++) {
      float sum = ((float *)srcs[0])[i];
      for (int r = 1; r < n; r++)
        sum += ((float *)srcs[r])[i];
      ((float *)out)[i] = sum;
    }
  } else if (w->dtype == PERIGEE_I32 && w->redop == PERIGEE_REDOP_MAX) {
    for (size_t i = 0; i < numel; i++) {
      int32_t most = ((int32_t *)srcs[0])[i];
      for (int r = 1; r < n; r++)
        most = ((int32_t *)srcs[r])[i] > most ? ((int32_t *)srcs[r])[i] : most;
      ((int32_t *)out)[i] = most;
    }
  } else {
    if (perigee__reduce_init(&plan, w->dtype, w->redop, 0.5, n) != 0)
      abort();
    perigee__reduce_nary(&plan, out, (const void *const *)srcs, n, numel);
  }
}

static inline void *reduced(const what *w, uint64_t seq, int n, int to, size_t numel) {
  void *srcs[RANKS_MAX], *out = malloc(numel * perigee_dtype_size(w->dtype) + 16);
  for (int r = 0; r < n; r++)
    srcs[r] = filled(w, seq, r, to, numel);
  reduce_plainly(w, n, srcs, out, numel);
  for (int r = 0; r < n; r++)
    free(srcs[r]);
  return out;
}

/* One call on one rank: what it owns, and what it must find afterwards. */
typedef struct trial {
  member *m;
  const what *w;
  perigee__coll_call call;
  perigee__block in[RANKS_MAX], out[RANKS_MAX];
  size_t counts[RANKS_MAX];
  void *mine[2 * RANKS_MAX + 2]; /* to free */
  int nmine;
} trial;

static inline void *owned(trial *t, void *p) { return t->mine[t->nmine++] = p; }

/* Memory of the call: symmetric when the rank has such, but for some of the calls of one rank. */
static inline void *placed(trial *t, void *buf, size_t bytes) {
  member *m = t->m;
  bool odd = m->me == m->n - 1 && (m->seq + 1) % 5 == 0;
  if (m->segment == NULL || odd)
    return owned(t, buf);
  char *at = (char *)perigee__segment_own(m->segment) + m->used;
  m->used += (bytes + 16 + 63) / 64 * 64;
  memcpy(at, buf, bytes);
  free(buf);
  return at;
}

static inline void *room(trial *t, size_t bytes) {
  return placed(t, memset(malloc(bytes + 16), 0x5a, bytes + 16), bytes);
}

static inline void trial_blocks(trial *t, uint64_t seq) {
  const what *w = t->w;
  size_t size = perigee_dtype_size(w->dtype);
  int me = t->m->me, n = t->m->n;
  bool sends = w->kind == PERIGEE_COLL_ALLTOALL || w->kind == PERIGEE_COLL_REDUCE_SCATTER ||
               (w->kind == PERIGEE_COLL_SCATTER && me == w->root);
  bool receives = w->kind == PERIGEE_COLL_ALLTOALL || w->kind == PERIGEE_COLL_ALLGATHER ||
                  (w->kind == PERIGEE_COLL_GATHER && me == w->root);
  for (int r = 0; r < n; r++) {
    t->counts[r] = block_numel(w, me, r);
    size_t in = block_numel(w, me, r) * size, out = block_numel(w, r, me) * size;
    if (sends)
      t->in[r] = (perigee__block){placed(t, filled(w, seq, me, r, in / size), in), in};
    if (receives)
      t->out[r] = (perigee__block){room(t, out), out};
  }
  t->call.in_blocks = sends ? t->in : NULL;
  t->call.out_blocks = receives ? t->out : NULL;
}

static inline void trial_buffers(trial *t, uint64_t seq) {
  const what *w = t->w;
  perigee__coll_call *c = &t->call;
  size_t size = perigee_dtype_size(w->dtype);
  int me = t->m->me;
  size_t numel = w->numel;
  switch (w->kind) {
  case PERIGEE_COLL_ALLREDUCE:
  case PERIGEE_COLL_REDUCE:
    c->out = placed(t, filled(w, seq, me, 0, numel), numel * size);
    c->in = c->out;
    c->count = numel;
    if (w->kind != PERIGEE_COLL_ALLREDUCE && me != w->root)
      c->out = NULL;
    else if (!w->in_place)
      c->out = room(t, numel * size);
    break;
  case PERIGEE_COLL_BROADCAST:
    c->bytes = numel * size;
    c->out = me == w->root ? placed(t, filled(w, seq, me, 0, numel), c->bytes) : room(t, c->bytes);
    break;
  case PERIGEE_COLL_ALLGATHER:
  case PERIGEE_COLL_GATHER:
    numel = block_numel(w, me, 0);
    c->in_bytes = numel * size;
    c->in = placed(t, filled(w, seq, me, 0, numel), c->in_bytes);
    if (w->in_place && t->call.out_blocks != NULL) {
      memcpy(t->out[me].ptr, c->in, c->in_bytes);
      c->in = t->out[me].ptr;
    }
    break;
  case PERIGEE_COLL_SCATTER:
  case PERIGEE_COLL_REDUCE_SCATTER:
    c->out_bytes = block_numel(w, 0, me) * size;
    c->out = w->in_place && t->call.in_blocks != NULL ? t->in[me].ptr : room(t, c->out_bytes);
    c->counts = t->counts;
    break;
  default:
    break;
  }
}

static inline void trial_same(trial *t, uint64_t seq, const void *got, void *expected, size_t bytes,
                              int from) {
  member *m = t->m;
  const what *w = t->w;
  RANK_CHECK(m, bytes == 0 || memcmp(got, expected, bytes) == 0,
             "%s %s[%zu] redop %d root %d%s%s: block of rank %d is wrong (seq %llu)",
             kind_names[w->kind], perigee_dtype_name(w->dtype), w->numel, (int)w->redop, w->root,
             w->in_place ? " in place" : "", w->uneven ? " uneven" : "", from,
             (unsigned long long)seq);
  free(expected);
}

static inline void trial_check(trial *t, uint64_t seq) {
  const what *w = t->w;
  const perigee__coll_call *c = &t->call;
  size_t size = perigee_dtype_size(w->dtype), own = block_numel(w, 0, t->m->me);
  int me = t->m->me, n = t->m->n;
  switch (w->kind) {
  case PERIGEE_COLL_ALLREDUCE:
  case PERIGEE_COLL_REDUCE:
    if (c->out != NULL)
      trial_same(t, seq, c->out, reduced(w, seq, n, 0, w->numel), w->numel * size, me);
    break;
  case PERIGEE_COLL_BROADCAST:
    trial_same(t, seq, c->out, filled(w, seq, w->root, 0, w->numel), c->bytes, w->root);
    break;
  case PERIGEE_COLL_SCATTER:
    trial_same(t, seq, c->out, filled(w, seq, w->root, me, own), c->out_bytes, w->root);
    break;
  case PERIGEE_COLL_REDUCE_SCATTER:
    trial_same(t, seq, c->out, reduced(w, seq, n, me, own), c->out_bytes, me);
    break;
  case PERIGEE_COLL_ALLGATHER:
  case PERIGEE_COLL_GATHER:
  case PERIGEE_COLL_ALLTOALL:
    for (int r = 0; c->out_blocks != NULL && r < n; r++) {
      int to = w->kind == PERIGEE_COLL_ALLTOALL ? me : 0;
      trial_same(t, seq, t->out[r].ptr, filled(w, seq, r, to, t->out[r].bytes / size),
                 t->out[r].bytes, r);
    }
    break;
  default:
    break;
  }
}

static inline void trial_open(trial *t, member *m, const what *w) {
  uint64_t seq = m->seq + 1;
  *t = (trial){.m = m, .w = w};
  m->used = (size_t)m->me * 192; /* not at the same place on all ranks */
  t->call = (perigee__coll_call){.kind = w->kind,
                                 .op = kind_ops[w->kind],
                                 .dtype = w->dtype,
                                 .redop = w->redop,
                                 .factor = 0.5,
                                 .root = w->root};
  t->call.fp = fp_of(kind_ops[w->kind], (int)w->dtype, kind_reduces(w->kind) ? (int)w->redop : -1,
                     kind_has_root(w->kind) ? w->root : -1, w->uneven ? 0 : w->numel);
  trial_blocks(t, seq);
  trial_buffers(t, seq);
}

static inline void trial_close(trial *t) {
  for (int i = 0; i < t->nmine; i++)
    free(t->mine[i]);
}

/* Run it and compare with the definition. */
static inline void rank_try(member *m, const what *w) {
  trial t;
  trial_open(&t, m, w);
  int rc = rank_call(m, &t.call);
  RANK_CHECK(m, rc == 0, "%s %s[%zu]: %d %s", kind_names[w->kind], perigee_dtype_name(w->dtype),
             w->numel, rc, m->error.message);
  if (rc == 0)
    trial_check(&t, m->seq);
  trial_close(&t);
}

#endif
