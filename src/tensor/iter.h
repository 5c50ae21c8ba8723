/*
 * Walk one tensor, or two of the same shape, in row-major order as few long runs of elements at equal distance.
 * Dimensions that lie without gaps in both are merged, so contiguous tensors are one run.
 */
#ifndef PERIGEE_TENSOR_ITER_H
#define PERIGEE_TENSOR_ITER_H

#include <stdbool.h>
#include <stdint.h>

#include "tensor/tensor.h"

typedef struct perigee__iter {
  int64_t count;     /* elements of every run */
  int64_t stride[2]; /* bytes between two of them; [0] first tensor, [1] second */
  /* private */
  bool more;
  int ndim; /* dimensions around the run, innermost first */
  int64_t extent[PERIGEE_MAX_DIMS], index[PERIGEE_MAX_DIMS], step[2][PERIGEE_MAX_DIMS];
  char *at[2];
} perigee__iter;

/** b may be NULL; otherwise it has the shape of a. */
void perigee__iter_init(perigee__iter *it, const perigee_tensor *a, const perigee_tensor *b);
/** Next run: its first elements; b_p may be NULL. False at the end. */
bool perigee__iter_next(perigee__iter *it, char **a_p, char **b_p);

#endif
