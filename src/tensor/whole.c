/* Values of whole tensors: sums, norms, extremes, comparisons. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "tensor/dtype.h"
#include "tensor/iter.h"
#include "tensor/tensor.h"
#include "tensor/wide.h"

/* Walks one tensor in widened blocks. */
typedef struct walker {
  perigee__iter it;
  perigee_dtype dtype;
  char *at;
  int64_t left; /* elements of the run from at on */
  perigee__wide w;
  int n; /* elements in w */
} walker;

static void walk_start(walker *walk, const perigee_tensor *t) {
  perigee__iter_init(&walk->it, t, NULL);
  walk->dtype = t->dtype;
  walk->left = 0;
}

/* Next block of elements into walk->w and walk->n. False at the end. */
static bool walk_next(walker *walk) {
  if (walk->left == 0) {
    if (!perigee__iter_next(&walk->it, &walk->at, NULL))
      return false;
    walk->left = walk->it.count;
  }
  walk->n = walk->left < PERIGEE__WIDE_MAX ? (int)walk->left : PERIGEE__WIDE_MAX;
  perigee__wide_load(&walk->w, walk->dtype, walk->at, walk->it.stride[0], walk->n);
  walk->at += walk->n * walk->it.stride[0];
  walk->left -= walk->n;
  return true;
}

static int refuse_empty(const char *what, const perigee_tensor *t) {
  char text[PERIGEE__DESCRIBE_SIZE];
  return perigee__fail(PERIGEE_EINVAL, "%s: %s has no elements", what,
                       perigee_tensor_describe(t, text, sizeof(text)));
}

static int refuse_dtype(const char *what, const perigee_tensor *t) {
  return perigee__fail(PERIGEE_EDTYPE, "%s is not defined for %s", what,
                       perigee_dtype_name(t->dtype));
}

/* ---- sums --------------------------------------------------------------------------------------- */

/* Blocks are summed first and then their sums, which keeps the rounding error of long tensors small. */
int perigee_tensor_sum(const perigee_tensor *t, perigee_scalar *v_p) {
  walker walk;
  double re = 0.0, im = 0.0;
  uint64_t whole = 0; /* integers wrap in 64 bits */
  walk_start(&walk, t);
  const int class = perigee__dtype_class(t->dtype);
  while (walk_next(&walk)) {
    const perigee__wide *w = &walk.w;
    double block_re = 0.0, block_im = 0.0;
    for (int k = 0; k < walk.n; k++)
      if (class == PERIGEE_SCALAR_FLOAT) {
        block_re += w->v.re[k];
      } else if (class == PERIGEE_SCALAR_COMPLEX) {
        block_re += w->v.re[k];
        block_im += w->im[k];
      } else {
        whole += class == PERIGEE_SCALAR_UINT ? w->v.u[k] : (uint64_t)w->v.i[k];
      }
    re += block_re;
    im += block_im;
  }
  perigee_scalar v = {0};
  v.re = re;
  v.im = im;
  if (class == PERIGEE_SCALAR_FLOAT)
    v.kind = PERIGEE_SCALAR_FLOAT;
  else if (class == PERIGEE_SCALAR_COMPLEX)
    v.kind = PERIGEE_SCALAR_COMPLEX;
  else if (class == PERIGEE_SCALAR_UINT)
    v.kind = PERIGEE_SCALAR_UINT, v.u = whole;
  else /* bool too: how many are true */
    v.kind = PERIGEE_SCALAR_INT, v.i = (int64_t)whole;
  *v_p = v;
  return 0;
}

int perigee_tensor_mean(const perigee_tensor *t, double *v_p) {
  if (perigee__dtype_class(t->dtype) == PERIGEE_SCALAR_COMPLEX)
    return refuse_dtype("mean", t);
  if (t->numel == 0)
    return refuse_empty("mean", t);
  walker walk;
  long double sum = 0.0L; /* not the wrapping sum of integers */
  walk_start(&walk, t);
  while (walk_next(&walk))
    for (int k = 0; k < walk.n; k++)
      sum += perigee__wide_real(&walk.w, k);
  *v_p = (double)(sum / (long double)t->numel);
  return 0;
}

/* Sum of squares of the elements times scale; *largest_p: the largest magnitude of a component, NaN if one is. */
static double squares(const perigee_tensor *t, double scale, double *largest_p) {
  walker walk;
  double sum = 0.0, largest = 0.0;
  walk_start(&walk, t);
  const bool complex = perigee__dtype_class(t->dtype) == PERIGEE_SCALAR_COMPLEX;
  while (walk_next(&walk)) {
    double block = 0.0;
    for (int k = 0; k < walk.n; k++) {
      double re = (double)perigee__wide_real(&walk.w, k) * scale;
      double im = complex ? walk.w.im[k] * scale : 0.0;
      double size = fabs(re) > fabs(im) || isnan(re) ? fabs(re) : fabs(im);
      if (size > largest || isnan(size))
        largest = size;
      block += re * re + im * im;
    }
    sum += block;
  }
  *largest_p = largest;
  return sum;
}

int perigee_tensor_norm(const perigee_tensor *t, double *v_p) {
  double largest, sum = squares(t, 1.0, &largest);
  /* Squares that overflowed, or lost digits near zero: again with the largest element brought near 1. */
  if (!isnan(sum) && isfinite(largest) && largest > 0.0 && (isinf(sum) || sum < 0x1p-900)) {
    int exponent, scaled;
    frexp(largest, &exponent);
    scaled = exponent < -1000 ? -1000 : exponent; /* 2^-scaled stays finite */
    double ignored;
    sum = squares(t, ldexp(1.0, -scaled), &ignored);
    *v_p = ldexp(sqrt(sum), scaled);
    return 0;
  }
  *v_p = sqrt(sum);
  return 0;
}

/* ---- extremes ----------------------------------------------------------------------------------- */

static bool is_nan(const perigee__wide *w, int k) {
  return w->class == PERIGEE_SCALAR_FLOAT && isnan(w->v.re[k]);
}

static bool less(const perigee__wide *a, int i, const perigee__wide *b, int k) {
  if (a->class == PERIGEE_SCALAR_FLOAT)
    return a->v.re[i] < b->v.re[k];
  if (a->class == PERIGEE_SCALAR_UINT)
    return a->v.u[i] < b->v.u[k];
  return a->v.i[i] < b->v.i[k];
}

/* The first smallest (want_max: largest) element, or the first NaN. */
static int extreme(const char *what, const perigee_tensor *t, bool want_max, perigee_scalar *v_p) {
  if (perigee__dtype_class(t->dtype) == PERIGEE_SCALAR_COMPLEX)
    return refuse_dtype(what, t);
  if (t->numel == 0)
    return refuse_empty(what, t);
  walker walk;
  perigee__wide best; /* one element */
  bool have = false;
  walk_start(&walk, t);
  while (walk_next(&walk))
    for (int k = 0; k < walk.n; k++) {
      const bool better = !have || is_nan(&walk.w, k) ||
                          (want_max ? less(&best, 0, &walk.w, k) : less(&walk.w, k, &best, 0));
      if (!better)
        continue;
      perigee__wide_to_scalar(&walk.w, k, v_p);
      if (is_nan(&walk.w, k))
        return 0;
      best.class = walk.w.class;
      best.v.u[0] = walk.w.v.u[k]; /* bits of whichever member it is */
      have = true;
    }
  return 0;
}

int perigee_tensor_min(const perigee_tensor *t, perigee_scalar *v_p) {
  return extreme("min", t, false, v_p);
}

int perigee_tensor_max(const perigee_tensor *t, perigee_scalar *v_p) {
  return extreme("max", t, true, v_p);
}

/* ---- comparisons -------------------------------------------------------------------------------- */

bool perigee_tensor_equal(const perigee_tensor *a, const perigee_tensor *b) {
  if (a->dtype != b->dtype || !perigee__tensor_same_shape(a, b))
    return false;
  const size_t size = perigee_dtype_size(a->dtype);
  perigee__iter it;
  char *pa, *pb;
  perigee__iter_init(&it, a, b);
  while (perigee__iter_next(&it, &pa, &pb)) {
    if (it.stride[0] == (int64_t)size && it.stride[1] == (int64_t)size) {
      if (memcmp(pa, pb, (size_t)it.count * size) != 0)
        return false;
      continue;
    }
    for (int64_t k = 0; k < it.count; k++)
      if (memcmp(pa + k * it.stride[0], pb + k * it.stride[1], size) != 0)
        return false;
  }
  return true;
}

/* Long double, so that neighbours among large 64-bit integers stay apart. */
static bool close_values(const perigee__wide *a, int i, const perigee__wide *b, int k,
                         long double rtol, long double atol) {
  const long double are = perigee__wide_real(a, i), bre = perigee__wide_real(b, k);
  const long double aim = a->class == PERIGEE_SCALAR_COMPLEX ? (long double)a->im[i] : 0.0L;
  const long double bim = b->class == PERIGEE_SCALAR_COMPLEX ? (long double)b->im[k] : 0.0L;
  if (are == bre && aim == bim) /* also equal infinities, whose difference is NaN */
    return true;
  const bool real = aim == 0.0L && bim == 0.0L;
  const long double size = real ? fabsl(bre) : hypotl(bre, bim);
  const long double apart = real ? fabsl(are - bre) : hypotl(are - bre, aim - bim);
  return isfinite(size) && apart <= atol + rtol * size; /* an infinite b would allow any a */
}

bool perigee_tensor_allclose(const perigee_tensor *a, const perigee_tensor *b, double rtol,
                             double atol) {
  if (!perigee__tensor_same_shape(a, b))
    return false;
  walker wa, wb;
  walk_start(&wa, a);
  walk_start(&wb, b);
  int ia = 0, ib = 0;
  wa.n = wb.n = 0;
  for (int64_t left = a->numel; left > 0; left--, ia++, ib++) {
    if (ia == wa.n) /* the runs of the two may differ in length */
      ia = 0, walk_next(&wa);
    if (ib == wb.n)
      ib = 0, walk_next(&wb);
    if (!close_values(&wa.w, ia, &wb.w, ib, (long double)rtol, (long double)atol))
      return false;
  }
  return true;
}
