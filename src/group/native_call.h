/* What the files that turn a request into collectives share. */
#ifndef PERIGEE_GROUP_NATIVE_CALL_H
#define PERIGEE_GROUP_NATIVE_CALL_H

#include "group/native_impl.h"
#include "tensor/copy.h"

/** One request while it is run, by the thread that has the right to run. */
typedef struct perigee__native_call {
  perigee__native *native;
  const perigee_request *req;
  int64_t deadline_ns, timeout_ns; /* timeout: for texts */
  perigee_error *error;
} perigee__native_call;

/**
 * What goes into the fingerprint of a collective besides operation, dtype and root: one tensor is its exact number of
 * elements, anything more is a hash.
 */
typedef struct perigee__native_print {
  uint64_t count, hash;
  unsigned parts;
  bool hashed;
} perigee__native_print;

/** With what the reduce operation adds: the factor of premul_sum, the name of a custom one. */
perigee__native_print perigee__native_print_start(const perigee__native_call *x);
void perigee__native_print_add(perigee__native_print *print, uint64_t count);
uint64_t perigee__native_print_pack(const perigee__native_call *x,
                                    const perigee__native_print *print, perigee_dtype dtype);
/** Of one tensor of this many elements. */
uint64_t perigee__native_print_one(const perigee__native_call *x, perigee_dtype dtype,
                                   uint64_t count);

/** Of pair i of a request of pairs (out[i], in[i]): exact for one, else a hash of all and of i. */
uint64_t perigee__native_print_pair(const perigee__native_call *x, uint32_t i);

/** The next collective of the group, with what every kind needs filled in. */
perigee__coll_call perigee__native_next(const perigee__native_call *x, perigee__coll_kind kind,
                                        perigee_dtype dtype, uint64_t fp);
int perigee__native_do(const perigee__native_call *x, const perigee__coll_call *call);

/** count * size bytes (any values, aligned for every dtype), to be freed; NULL: the group has failed and the error is filled. */
void *perigee__native_room(const perigee__native_call *x, uint64_t count, uint64_t size);

static inline uint64_t perigee__native_numel(const perigee_tensor *t) {
  return (uint64_t)perigee_tensor_numel(t);
}
static inline perigee__block perigee__native_block(const perigee_tensor *t) {
  return (perigee__block){perigee_tensor_data(t), perigee_tensor_nbytes(t)};
}
/** Tensors of one size, which may be the same. */
static inline void perigee__native_copy(perigee_tensor *dst, const perigee_tensor *src) {
  if (perigee_tensor_data(dst) != perigee_tensor_data(src))
    perigee__copy(perigee_tensor_data(dst), perigee_tensor_data(src), perigee_tensor_nbytes(src));
}

/* ---- operations: each makes its collectives and returns what became of them ---------------------- */

/* native_reduce.c */
int perigee__native_allreduce(const perigee__native_call *x);
int perigee__native_allreduce_coalesced(const perigee__native_call *x);
int perigee__native_reduce(const perigee__native_call *x);
int perigee__native_reduce_scatter(const perigee__native_call *x);
/** One or several. */
int perigee__native_reduce_scatter_tensor(const perigee__native_call *x);

/* native_move.c */
int perigee__native_broadcast(const perigee__native_call *x);
int perigee__native_allgather(const perigee__native_call *x);
/** One or several. */
int perigee__native_allgather_into(const perigee__native_call *x);
int perigee__native_gather(const perigee__native_call *x);
int perigee__native_scatter(const perigee__native_call *x);
int perigee__native_alltoall(const perigee__native_call *x);
int perigee__native_alltoall_base(const perigee__native_call *x);

/* ---- operations with a reduce function of the caller (native_custom.c) ------------------------- */

int perigee__native_custom_allreduce(const perigee__native_call *x);
int perigee__native_custom_allreduce_coalesced(const perigee__native_call *x);
int perigee__native_custom_reduce(const perigee__native_call *x);
/** in_blocks: n blocks of this rank, block r for rank r; out: this rank's. fp: of the operation. */
int perigee__native_custom_reduce_scatter(const perigee__native_call *x,
                                          const perigee__block *in_blocks, perigee_tensor *out,
                                          uint64_t fp);

#endif
