#include "tensor/iter.h"

#include <stddef.h>

void perigee__iter_init(perigee__iter *it, const perigee_tensor *a, const perigee_tensor *b) {
  const perigee_tensor *t[2] = {a, b != NULL ? b : a};
  int64_t size[2];
  int n = 0; /* dimensions found, innermost first */
  for (int k = 0; k < 2; k++) {
    size[k] = (int64_t)perigee_dtype_size(t[k]->dtype);
    it->at[k] = t[k]->data;
  }
  for (int d = a->ndim - 1; d >= 0; d--) {
    int64_t step[2] = {t[0]->strides[d] * size[0], t[1]->strides[d] * size[1]};
    if (a->shape[d] == 1)
      continue;
    if (n > 0 && step[0] == it->step[0][n - 1] * it->extent[n - 1] &&
        step[1] == it->step[1][n - 1] * it->extent[n - 1]) {
      it->extent[n - 1] *= a->shape[d];
      continue;
    }
    it->extent[n] = a->shape[d];
    it->step[0][n] = step[0];
    it->step[1][n] = step[1];
    it->index[n] = 0;
    n++;
  }
  it->more = a->numel > 0;
  it->ndim = n;
  it->count = n > 0 ? it->extent[0] : 1;
  it->stride[0] = n > 0 ? it->step[0][0] : size[0];
  it->stride[1] = n > 0 ? it->step[1][0] : size[1];
}

bool perigee__iter_next(perigee__iter *it, char **a_p, char **b_p) {
  if (!it->more)
    return false;
  *a_p = it->at[0];
  if (b_p != NULL)
    *b_p = it->at[1];
  it->more = false;
  for (int d = 1; d < it->ndim; d++) { /* 0 is the run */
    if (++it->index[d] < it->extent[d]) {
      it->at[0] += it->step[0][d];
      it->at[1] += it->step[1][d];
      it->more = true;
      break;
    }
    it->index[d] = 0;
    it->at[0] -= it->step[0][d] * (it->extent[d] - 1);
    it->at[1] -= it->step[1][d] * (it->extent[d] - 1);
  }
  return true;
}
