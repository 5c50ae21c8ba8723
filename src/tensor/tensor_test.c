/* Dtypes, creation, references, views. */
#include "tensor/testing.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/attr.h"

/* Sanitizers end the process on an allocation they find too large; this test wants NULL.
 * Exported, for their libraries to find. */
PERIGEE_API const char *__asan_default_options(void);
PERIGEE_API const char *__tsan_default_options(void);
const char *__asan_default_options(void) { return "allocator_may_return_null=1"; }
const char *__tsan_default_options(void) { return "allocator_may_return_null=1"; }

static void test_dtypes(void **state) {
  (void)state;
  static const char *const others[PERIGEE_DTYPE_COUNT] = {
      "float16", "bfloat16", "float32", "float64", "int8", "uint8",     "int16",     "uint16",
      "int32",   "uint32",   "int64",   "uint64",  "bool", "complex64", "complex128"};
  perigee_dtype dtype;
#define XX(_id, _NAME, _name, _size)                                                               \
  assert_int_equal(perigee_dtype_size(PERIGEE_##_NAME), _size);                                    \
  assert_string_equal(perigee_dtype_name(PERIGEE_##_NAME), #_name);                                \
  assert_int_equal(perigee_dtype_parse(#_name, &dtype), 0);                                        \
  assert_int_equal(dtype, _id);                                                                    \
  assert_int_equal(perigee_dtype_parse(others[_id], &dtype), 0);                                   \
  assert_int_equal(dtype, _id);
  PERIGEE_DTYPE_MAP(XX)
#undef XX
  assert_int_equal(perigee_dtype_size((perigee_dtype)15), 0);
  assert_string_equal(perigee_dtype_name((perigee_dtype)-1), "?");
  dtype = PERIGEE_F64;
  assert_fails(perigee_dtype_parse("f33", &dtype), PERIGEE_EDTYPE, "'f33'");
  assert_fails(perigee_dtype_parse(NULL, &dtype), PERIGEE_EDTYPE, "NULL");
  assert_int_equal(dtype, PERIGEE_F64);
}

static void test_create(void **state) {
  (void)state;
  static const int64_t shapes[][2] = {{0, 3}, {1, 1}, {3, 5}, {100, 1000}};
  char text[PERIGEE__DESCRIBE_SIZE];
  for (int dtype = 0; dtype < PERIGEE_DTYPE_COUNT; dtype++)
    for (size_t s = 0; s < PERIGEE_COUNT(shapes); s++) {
      perigee_tensor *t;
      const int64_t numel = shapes[s][0] * shapes[s][1];
      assert_int_equal(perigee_tensor_create((perigee_dtype)dtype, 2, shapes[s], &t), 0);
      assert_int_equal(perigee_tensor_dtype(t), dtype);
      assert_int_equal(perigee_tensor_ndim(t), 2);
      assert_memory_equal(perigee_tensor_shape(t), shapes[s], sizeof(shapes[s]));
      assert_int_equal(perigee_tensor_strides(t)[0], shapes[s][1]);
      assert_int_equal(perigee_tensor_strides(t)[1], 1);
      assert_int_equal(perigee_tensor_numel(t), numel);
      assert_int_equal(perigee_tensor_nbytes(t),
                       (size_t)numel * perigee_dtype_size((perigee_dtype)dtype));
      assert_true(perigee_tensor_is_contiguous(t));
      const unsigned char *data = perigee_tensor_data(t);
      assert_int_equal((uintptr_t)data % 64, 0);
      for (size_t k = 0; k < perigee_tensor_nbytes(t); k++)
        if (data[k] != 0)
          fail_msg("byte %zu is not zero", k);
      perigee_tensor_unref(t);
    }
  perigee_tensor *scalar;
  assert_int_equal(perigee_tensor_create(PERIGEE_C64, 0, NULL, &scalar), 0);
  assert_int_equal(perigee_tensor_numel(scalar), 1);
  assert_string_equal(perigee_tensor_describe(scalar, text, sizeof(text)), "c64[]");
  perigee_tensor_unref(scalar);
  perigee_tensor_unref(NULL);
}

static void test_create_errors(void **state) {
  (void)state;
  perigee_tensor *t = NULL;
  const int64_t negative[] = {2, -1}, huge[] = {INT64_C(1) << 40, INT64_C(1) << 40};
  const int64_t hidden[] = {0, INT64_MAX, INT64_MAX}, many[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  const int64_t memory[] = {INT64_C(1) << 61};
  assert_fails(perigee_tensor_create(PERIGEE_F32, 2, negative, &t), PERIGEE_EINVAL,
               "shape[1] is -1");
  assert_fails(perigee_tensor_create(PERIGEE_F32, -1, negative, &t), PERIGEE_EINVAL, "ndim is -1");
  assert_fails(perigee_tensor_create(PERIGEE_F32, 9, many, &t), PERIGEE_EINVAL, "ndim is 9");
  assert_fails(perigee_tensor_create(PERIGEE_F32, 1, NULL, &t), PERIGEE_EINVAL, "shape is NULL");
  assert_fails(perigee_tensor_create((perigee_dtype)15, 0, NULL, &t), PERIGEE_EDTYPE, "dtype 15");
  assert_fails(perigee_tensor_create(PERIGEE_U8, 2, huge, &t), PERIGEE_ELIMIT, "shape[1]");
  assert_fails(perigee_tensor_create(PERIGEE_U8, 3, hidden, &t), PERIGEE_ELIMIT, "shape[1]");
  assert_fails(perigee_tensor_create(PERIGEE_U8, 1, memory, &t), PERIGEE_ENOMEM,
               "2305843009213693952 bytes");
  assert_null(t);
}

/* ---- wrapping ----------------------------------------------------------------------------------------- */

static void count_release(void *arg) { (*(int *)arg)++; }

static void test_wrap(void **state) {
  (void)state;
  float data[6] = {0, 1, 2, 3, 4, 5};
  const int64_t shape[] = {2, 3};
  int released = 0;
  perigee_tensor *t, *row, *again;
  assert_int_equal(perigee_tensor_wrap(PERIGEE_F32, 2, shape, data, count_release, &released, &t),
                   0);
  assert_ptr_equal(perigee_tensor_data(t), data);
  assert_int_equal(perigee_tensor_narrow(t, 0, 1, 1, &row), 0);
  assert_ptr_equal(perigee_tensor_data(row), data + 3);
  assert_ptr_equal(perigee_tensor_ref(t), t);
  perigee_tensor_unref(t);
  perigee_tensor_unref(t);
  assert_int_equal(released, 0); /* the view keeps it */
  assert_int_equal(perigee_tensor_narrow(row, 1, 2, 1, &again), 0);
  perigee_tensor_unref(row);
  assert_int_equal(released, 0);
  assert_true(test_number(again, 0) == 5.0);
  perigee_tensor_unref(again);
  assert_int_equal(released, 1);

  assert_int_equal(perigee_tensor_wrap(PERIGEE_F32, 2, shape, data, NULL, NULL, &t), 0);
  assert_int_equal(perigee_tensor_narrow(t, 1, 0, 2, &row), 0);
  perigee_tensor_unref(t);
  assert_true(test_number(row, 3) == 4.0);
  perigee_tensor_unref(row);
}

static void test_wrap_errors(void **state) {
  (void)state;
  double data[2] = {0};
  const int64_t shape[] = {1}, none[] = {0};
  int released = 0;
  perigee_tensor *t = NULL;
  assert_fails(perigee_tensor_wrap(PERIGEE_F64, 1, shape, NULL, count_release, &released, &t),
               PERIGEE_EINVAL, "data is NULL");
  assert_fails(
      perigee_tensor_wrap(PERIGEE_F64, 1, shape, (char *)data + 4, count_release, &released, &t),
      PERIGEE_EINVAL, "aligned to 8 bytes");
  assert_null(t);
  assert_int_equal(released, 0); /* a refused call owns nothing */
  assert_int_equal(perigee_tensor_wrap(PERIGEE_F64, 1, none, NULL, NULL, NULL, &t), 0);
  perigee_tensor_unref(t);
}

static void test_borrow(void **state) {
  (void)state;
  int32_t data[4] = {10, 20, 30, 40};
  perigee_tensor t, *view, *copy;
  char text[PERIGEE__DESCRIBE_SIZE];
  perigee__tensor_borrow(&t, PERIGEE_I32, 4, data);
  assert_string_equal(perigee_tensor_describe(&t, text, sizeof(text)), "i32[4]");
  assert_int_equal(perigee_tensor_nbytes(&t), 16);
  assert_true(perigee_tensor_is_contiguous(&t));
  for (int k = 0; k < 100; k++) /* more drops than references */
    perigee_tensor_unref(&t);
  perigee_tensor_ref(&t);
  assert_int_equal(perigee_tensor_narrow(&t, 0, 1, 2, &view), 0);
  assert_int_equal(perigee_tensor_contiguous(view, &copy), 0);
  assert_ptr_equal(copy, view);
  perigee_tensor_unref(copy);
  test_set(view, 0, scalar_int(-1));
  assert_int_equal(data[1], -1);
  perigee_tensor_unref(view);
  perigee__tensor_borrow(&t, PERIGEE_I32, 0, NULL);
  assert_int_equal(perigee_tensor_numel(&t), 0);
}

/* ---- views -------------------------------------------------------------------------------------------- */

static perigee_tensor *counting(int ndim, const int64_t *shape) {
  perigee_tensor *t;
  assert_int_equal(perigee_tensor_create(PERIGEE_I32, ndim, shape, &t), 0);
  for (int64_t k = 0; k < t->numel; k++)
    test_set(t, k, scalar_int(k));
  return t;
}

static void test_narrow(void **state) {
  (void)state;
  const int64_t shape[] = {2, 3, 4};
  perigee_tensor *t = counting(3, shape), *a, *b, *packed;
  assert_int_equal(perigee_tensor_narrow(t, 0, 1, 1, &a), 0);
  assert_true(perigee_tensor_is_contiguous(a));
  assert_true(test_number(a, 0) == 12.0);
  perigee_tensor_unref(a);
  assert_int_equal(perigee_tensor_narrow(t, 1, 1, 2, &a), 0);
  assert_false(perigee_tensor_is_contiguous(a));
  assert_int_equal(perigee_tensor_strides(a)[0], 12);
  assert_int_equal(perigee_tensor_narrow(a, 2, 1, 2, &b), 0);
  perigee_tensor_unref(t);
  perigee_tensor_unref(a);
  static const double expected[] = {5, 6, 9, 10, 17, 18, 21, 22};
  assert_int_equal(perigee_tensor_numel(b), 8);
  for (int64_t k = 0; k < 8; k++)
    assert_true(test_number(b, k) == expected[k]);
  assert_int_equal(perigee_tensor_contiguous(b, &packed), 0);
  assert_ptr_not_equal(packed, b);
  assert_true(perigee_tensor_is_contiguous(packed));
  assert_true(perigee_tensor_equal(packed, b));
  for (int64_t k = 0; k < 8; k++)
    assert_int_equal(((int32_t *)perigee_tensor_data(packed))[k], (int)expected[k]);
  perigee_tensor_unref(packed);
  perigee_tensor_unref(b);
}

static void test_narrow_errors(void **state) {
  (void)state;
  const int64_t shape[] = {2, 3};
  perigee_tensor *t = counting(2, shape), *v = NULL;
  assert_fails(perigee_tensor_narrow(t, 2, 0, 1, &v), PERIGEE_ERANGE, "dim 2 of i32[2,3]");
  assert_fails(perigee_tensor_narrow(t, -1, 0, 1, &v), PERIGEE_ERANGE, "dim -1");
  assert_fails(perigee_tensor_narrow(t, 1, 4, 0, &v), PERIGEE_ERANGE, "start 4 in dim 1");
  assert_fails(perigee_tensor_narrow(t, 1, -1, 1, &v), PERIGEE_ERANGE, "start -1");
  assert_fails(perigee_tensor_narrow(t, 1, 2, 2, &v), PERIGEE_ERANGE, "length 2 from start 2");
  assert_fails(perigee_tensor_narrow(t, 1, 1, INT64_MAX, &v), PERIGEE_ERANGE, "length");
  assert_fails(perigee_tensor_narrow(t, 1, 1, -1, &v), PERIGEE_ERANGE, "length -1");
  assert_null(v);
  assert_int_equal(perigee_tensor_narrow(t, 1, 3, 0, &v), 0);
  assert_int_equal(perigee_tensor_numel(v), 0);
  assert_true(perigee_tensor_is_contiguous(v));
  perigee_tensor_unref(v);
  perigee_tensor_unref(t);
}

static void test_view(void **state) {
  (void)state;
  const int64_t shape[] = {2, 6}, other[] = {3, -1}, flat[] = {-1}, one[] = {1, 12, 1};
  perigee_tensor *t = counting(2, shape), *v;
  assert_int_equal(perigee_tensor_view(t, 2, other, &v), 0);
  assert_int_equal(perigee_tensor_shape(v)[1], 4);
  assert_ptr_equal(perigee_tensor_data(v), perigee_tensor_data(t));
  perigee_tensor_unref(v);
  assert_int_equal(perigee_tensor_view(t, 1, flat, &v), 0);
  assert_int_equal(perigee_tensor_shape(v)[0], 12);
  perigee_tensor_unref(v);
  assert_int_equal(perigee_tensor_view(t, 3, one, &v), 0);
  perigee_tensor_unref(t);
  assert_true(test_number(v, 11) == 11.0); /* the view keeps the data */
  perigee_tensor_unref(v);
}

static void test_view_errors(void **state) {
  (void)state;
  const int64_t shape[] = {2, 6}, two[] = {-1, -1}, seven[] = {7, -1}, wrong[] = {5};
  const int64_t negative[] = {-2}, zero[] = {0, -1}, huge[] = {INT64_MAX, 4, -1};
  perigee_tensor *t = counting(2, shape), *strided, *v = NULL;
  assert_fails(perigee_tensor_view(t, 2, two, &v), PERIGEE_EINVAL, "shape[0] and shape[1]");
  assert_fails(perigee_tensor_view(t, 2, seven, &v), PERIGEE_ESHAPE, "shape[1] = -1");
  assert_fails(perigee_tensor_view(t, 2, zero, &v), PERIGEE_ESHAPE, "cannot be inferred");
  assert_fails(perigee_tensor_view(t, 3, huge, &v), PERIGEE_ELIMIT, "shape[1] = 4");
  assert_fails(perigee_tensor_view(t, 1, wrong, &v), PERIGEE_ESHAPE,
               "5 elements asked of i32[2,6]");
  assert_fails(perigee_tensor_view(t, 1, negative, &v), PERIGEE_EINVAL, "shape[0] is -2");
  assert_fails(perigee_tensor_view(t, 9, shape, &v), PERIGEE_EINVAL, "ndim is 9");
  assert_fails(perigee_tensor_view(t, 1, NULL, &v), PERIGEE_EINVAL, "shape is NULL");
  assert_int_equal(perigee_tensor_narrow(t, 1, 0, 2, &strided), 0);
  assert_fails(perigee_tensor_view(strided, 1, wrong, &v), PERIGEE_ESHAPE,
               "i32[2,2] is not contiguous");
  assert_null(v);
  perigee_tensor_unref(strided);
  perigee_tensor_unref(t);
}

static void test_describe(void **state) {
  (void)state;
  const int64_t shape[] = {1, 1, 1, 1, 1, 1, 1, 12345678}, pair[] = {2, 3};
  char text[PERIGEE__DESCRIBE_SIZE], tiny[7];
  perigee_tensor *t;
  assert_int_equal(perigee_tensor_create(PERIGEE_BF16, 8, shape, &t), 0);
  assert_string_equal(perigee_tensor_describe(t, text, sizeof(text)),
                      "bf16[1,1,1,1,1,1,1,12345678]");
  perigee_tensor_unref(t);
  assert_int_equal(perigee_tensor_create(PERIGEE_F32, 2, pair, &t), 0);
  assert_string_equal(perigee_tensor_describe(t, tiny, sizeof(tiny)), "f32[2,"); /* cut */
  memset(tiny, 'x', sizeof(tiny));
  perigee_tensor_describe(t, tiny, 0);
  assert_int_equal(tiny[0], 'x');
  perigee_tensor_unref(t);
}

/* ---- threads ------------------------------------------------------------------------------------------ */

static void *use_views(void *arg) {
  perigee_tensor *t = arg, *view;
  for (int k = 0; k < 20000; k++) {
    perigee_tensor_ref(t);
    if (perigee_tensor_narrow(t, 0, k % 8, 1, &view) < 0)
      abort();
    perigee_tensor_unref(t);
    perigee_tensor_unref(view);
  }
  perigee_tensor_unref(t); /* this thread's own */
  return NULL;
}

/* Whichever thread is last frees, once. */
static void test_threads(void **state) {
  (void)state;
  enum {
    N = 3
  };
  float data[8] = {0};
  const int64_t shape[] = {8};
  int released = 0;
  perigee_tensor *t;
  pthread_t threads[N];
  assert_int_equal(perigee_tensor_wrap(PERIGEE_F32, 1, shape, data, count_release, &released, &t),
                   0);
  for (int k = 0; k < N; k++)
    assert_int_equal(pthread_create(&threads[k], NULL, use_views, perigee_tensor_ref(t)), 0);
  perigee_tensor_unref(t);
  for (int k = 0; k < N; k++)
    assert_int_equal(pthread_join(threads[k], NULL), 0);
  assert_int_equal(released, 1);
}

typedef struct attachment {
  perigee_shared base;
  atomic_int refs;
} attachment;

static void attachment_ref(perigee_shared *self) {
  atomic_fetch_add(&((attachment *)self)->refs, 1);
}
static void attachment_unref(perigee_shared *self) {
  atomic_fetch_sub(&((attachment *)self)->refs, 1);
}

/* What is attached belongs to the memory, not to one view of it; the first wins. */
static void test_attach(void **state) {
  (void)state;
  attachment first = {{attachment_ref, attachment_unref}, 1}, second = first;
  const int64_t shape[] = {4};
  perigee_tensor *t, *view;
  assert_int_equal(perigee_tensor_create(PERIGEE_F32, 1, shape, &t), 0);
  assert_null(perigee_tensor_attach(t, NULL));
  assert_int_equal(perigee_tensor_narrow(t, 0, 1, 2, &view), 0);
  assert_ptr_equal(perigee_tensor_attach(view, &first.base), &first.base);
  assert_ptr_equal(perigee_tensor_attach(t, &second.base), &first.base);
  assert_ptr_equal(perigee_tensor_attach(t, NULL), &first.base);
  assert_int_equal(first.refs, 2);
  assert_int_equal(second.refs, 1);
  perigee_tensor_unref(t);
  assert_ptr_equal(perigee_tensor_attach(view, NULL), &first.base);
  perigee_tensor_unref(view);
  assert_int_equal(first.refs, 1);

  float data[4] = {0};
  int released = 0;
  assert_int_equal(perigee_tensor_wrap(PERIGEE_F32, 1, shape, data, NULL, NULL, &t), 0);
  assert_null(perigee_tensor_attach(t, &first.base)); /* nobody counts this memory */
  perigee_tensor_unref(t);
  assert_int_equal(perigee_tensor_wrap(PERIGEE_F32, 1, shape, data, count_release, &released, &t),
                   0);
  assert_ptr_equal(perigee_tensor_attach(t, &first.base), &first.base);
  perigee_tensor_unref(t);
  assert_int_equal(released, 1);
  assert_int_equal(first.refs, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_dtypes),        cmocka_unit_test(test_create),
      cmocka_unit_test(test_create_errors), cmocka_unit_test(test_wrap),
      cmocka_unit_test(test_wrap_errors),   cmocka_unit_test(test_borrow),
      cmocka_unit_test(test_narrow),        cmocka_unit_test(test_narrow_errors),
      cmocka_unit_test(test_view),          cmocka_unit_test(test_view_errors),
      cmocka_unit_test(test_describe),      cmocka_unit_test(test_threads),
      cmocka_unit_test(test_attach),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
