/* What one variant of the kernels offers to reduce.c and half.c. */
#ifndef PERIGEE_TENSOR_REDUCE_TABLE_H
#define PERIGEE_TENSOR_REDUCE_TABLE_H

#include "tensor/reduce.h"
#include "tensor/simd.h"

/* Rows are dtypes; complex uses the rows of its components. NULL where there is nothing to compute. */
typedef struct perigee__reduce_table {
  perigee__nary_fn *nary[PERIGEE_DTYPE_COUNT][PERIGEE_REDOP_COUNT];
  perigee__map_fn *fold[PERIGEE_DTYPE_COUNT][PERIGEE_REDOP_COUNT];
  perigee__map_fn *scale[PERIGEE_DTYPE_COUNT];  /* accumulator := contribution * param */
  perigee__map_fn *divide[PERIGEE_DTYPE_COUNT]; /* result := accumulator / param */
  perigee__map_fn *widen[PERIGEE_DTYPE_COUNT];  /* f32 := f16 or bf16; param is not used */
  perigee__map_fn *narrow[PERIGEE_DTYPE_COUNT]; /* f16 or bf16 := f32; param is not used */
} perigee__reduce_table;

extern const perigee__reduce_table perigee__reduce_base;
#if defined(__x86_64__)
extern const perigee__reduce_table perigee__reduce_avx2;
extern const perigee__reduce_table perigee__reduce_avx512;
#endif

/** The variant in use (tensor/simd.h). */
const perigee__reduce_table *perigee__reduce_table_now(void);

#endif
