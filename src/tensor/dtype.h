/* Facts about dtypes that more than one file of this layer needs. */
#ifndef PERIGEE_TENSOR_DTYPE_H
#define PERIGEE_TENSOR_DTYPE_H

#include <stdbool.h>
#include <stdint.h>

#include <perigee/tensor.h>

typedef struct perigee__c64 {
  float re, im;
} perigee__c64;
typedef struct perigee__c128 {
  double re, im;
} perigee__c128;

bool perigee__dtype_valid(int dtype);
/** PERIGEE_SCALAR_* of its elements; -1 for an unknown dtype. */
int perigee__dtype_class(perigee_dtype dtype);
/** Alignment that memory of a tensor must have: the size of one component. */
size_t perigee__dtype_align(perigee_dtype dtype);

#endif
