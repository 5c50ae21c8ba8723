/*
 * Reducing contributions of several ranks, element by element.
 *
 * A plan is made once per operation and used for every chunk. Two ways to use it:
 *   all inputs at hand   perigee__reduce_nary: one pass, each input read once, the result written once.
 *   one after another    an accumulator: load the first contribution, add the others, merge accumulators,
 *                        finish into the result. It is wider than the dtype where rounding must wait.
 *
 * What is computed (the same on every CPU, bit for bit, but for which of two NaNs survives):
 *   order        left fold over the inputs as given
 *   f16, bf16    accumulate in f32, round once at the end; avg and premul_sum in f32 too
 *   avg          the sum divided by ncontrib at the end; integers truncate toward zero; complex by component
 *   premul_sum   every input times the factor, rounded to the accumulator's type, then summed
 *   integers     wrap around
 *   min, max     NaN when any input is NaN
 *   bool         any non-zero byte is true; results are 0 or 1; sum, max and bor are or; product, min and band are
 *                and; bxor is xor
 * Memory may have any alignment.
 */
#ifndef PERIGEE_TENSOR_REDUCE_H
#define PERIGEE_TENSOR_REDUCE_H

#include <stdbool.h>
#include <stddef.h>

#include <perigee/op.h>

/* param: the factor of premul_sum, the divisor of avg */
typedef void perigee__nary_fn(void *dst, const void *const *srcs, int n, size_t count,
                              double param);
typedef void perigee__map_fn(void *dst, const void *src, size_t count, double param);

/** A plain value; copy it freely, nothing to free. Fields are read by the functions below alone. */
typedef struct perigee__reduce_plan {
  perigee_dtype dtype;
  perigee_redop_kind kind;
  size_t size, acc_size; /* bytes of an element, and of its accumulator */
  size_t lanes;          /* numbers per element: complex 2, others 1 */
  double param;
  perigee__nary_fn *nary;  /* all of it, for avg of integers without the division */
  perigee__nary_fn *merge; /* op among accumulators */
  perigee__map_fn *fold;   /* acc op= contribution; NULL: merge does it */
  perigee__map_fn *load;   /* NULL: a copy */
  perigee__map_fn *finish; /* NULL: a copy */
  bool nary_unfinished;    /* finish must follow nary */
} perigee__reduce_plan;

/** The rule behind perigee_redop_defined. CUSTOM is defined for every dtype. */
bool perigee__redop_defined(int kind, perigee_dtype dtype);

/**
 * Errors: EINVAL (kind, ncontrib < 1), EDTYPE (no dtype, or kind not defined for it), ENOTSUP (CUSTOM has no kernel).
 * factor is used by PREMUL_SUM alone, ncontrib by AVG alone.
 */
PERIGEE_MUST_CHECK int perigee__reduce_init(perigee__reduce_plan *p, perigee_dtype dtype,
                                            perigee_redop_kind kind, double factor, int ncontrib);

/** dst[i] := srcs[0][i] op ... op srcs[n-1][i], n >= 1. dst may be one of the srcs, but must not overlap any
 *  otherwise. count: elements. */
void perigee__reduce_nary(const perigee__reduce_plan *p, void *dst, const void *const *srcs, int n,
                          size_t count);

/** Bytes of one element's accumulator: f16 and bf16 4, otherwise the dtype's size. */
size_t perigee__reduce_acc_size(const perigee__reduce_plan *p);
/** acc := first contribution. acc may be src when the accumulator has the dtype's size. */
void perigee__reduce_load(const perigee__reduce_plan *p, void *acc, const void *src, size_t count);
/** acc := acc op one more contribution. */
void perigee__reduce_add(const perigee__reduce_plan *p, void *acc, const void *src, size_t count);
/** acc := acc op other, both accumulators. */
void perigee__reduce_add_acc(const perigee__reduce_plan *p, void *acc, const void *other,
                             size_t count);
/** acc := one contribution op another. acc may be the first when the accumulator has the dtype's size. */
void perigee__reduce_pair(const perigee__reduce_plan *p, void *acc, const void *first,
                          const void *second, size_t count);
/** acc := one accumulator op another. acc may be either. */
void perigee__reduce_merge(const perigee__reduce_plan *p, void *acc, const void *first,
                           const void *second, size_t count);
/** dst := the result. dst may be acc when the accumulator has the dtype's size. */
void perigee__reduce_finish(const perigee__reduce_plan *p, void *dst, const void *acc,
                            size_t count);

#endif
