/*
 * Blocks of elements in the widest form of their class: the middle of every conversion, so that n dtypes need n
 * loaders and n storers instead of n * n loops. Every value of every dtype is exact in this form, and storing
 * rounds once.
 */
#ifndef PERIGEE_TENSOR_WIDE_H
#define PERIGEE_TENSOR_WIDE_H

#include <stdint.h>

#include <perigee/tensor.h>

#define PERIGEE__WIDE_MAX 128

typedef struct perigee__wide {
  int class; /* PERIGEE_SCALAR_*: says which member of v holds the values; BOOL is 0 or 1 in i */
  union {
    double re[PERIGEE__WIDE_MAX];
    int64_t i[PERIGEE__WIDE_MAX];
    uint64_t u[PERIGEE__WIDE_MAX];
  } v;
  double im[PERIGEE__WIDE_MAX]; /* COMPLEX only */
} perigee__wide;

/** n (at most PERIGEE__WIDE_MAX) elements that lie stride bytes apart. */
void perigee__wide_load(perigee__wide *w, perigee_dtype dtype, const char *src, int64_t stride,
                        int n);
/** The reverse, converting as perigee_tensor_copy promises. Integers that do not fit saturate too. */
void perigee__wide_store(const perigee__wide *w, perigee_dtype dtype, char *dst, int64_t stride,
                         int n);

/** One value. A scalar of no known kind is EINVAL. */
PERIGEE_MUST_CHECK int perigee__wide_from_scalar(perigee__wide *w, const perigee_scalar *value);
void perigee__wide_to_scalar(const perigee__wide *w, int index, perigee_scalar *value_p);

/** Value number index as a long double, which holds 64-bit integers exactly on x86-64; complex: its real part. */
long double perigee__wide_real(const perigee__wide *w, int index);

#endif
