/*
 * The kernels, included once by the file of each variant (reduce_base.c, ...), which defines before:
 *   KERNELS            name of the table
 *   KERNELS_BYTES      width of its vectors
 *   KERNELS_TARGET     function attributes
 *   part_load, part_store             the first nbytes (< KERNELS_BYTES) of a vector; loads give 0 in the others
 *   half_load, half_store             the same for vectors of half the width
 *   widen_f16, widen_bf16, narrow_f16, narrow_bf16    between v_half and v_f32
 *
 * Every element of every variant goes through the same vector expressions, the last few in a vector that is not
 * full, so there is no scalar copy of an operation that could differ. Loads and stores are memcpy: no alignment
 * is needed and the compiler makes one instruction of each.
 *
 * Nary kernels take four vectors of each input in turn: one pointer is fetched per 4 * KERNELS_BYTES, inputs are
 * read front to back, and one kernel serves every n.
 */

/* No guard: it is meant to be included by each variant. */

#include <string.h>

/* A product and a sum must round twice, in this variant as in all others. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#define INLINE static inline __attribute__((always_inline)) KERNELS_TARGET
#define KERNEL static KERNELS_TARGET

/* ---- lanes: how elements of a dtype come into a vector of their accumulator ------------------------ */

#define LANE(_name, _size, _acc)                                                                   \
  INLINE _acc ld_##_name(const char *p) {                                                          \
    _acc v;                                                                                        \
    memcpy(&v, p, sizeof(v));                                                                      \
    return v;                                                                                      \
  }                                                                                                \
  INLINE _acc ldn_##_name(const char *p, size_t n) { return (_acc)part_load(p, n * (_size)); }     \
  INLINE void st_##_name(char *p, _acc v) { memcpy(p, &v, sizeof(v)); }                            \
  INLINE void stn_##_name(char *p, _acc v, size_t n) { part_store(p, (v_u8)v, n *(_size)); }

#define LANE_HALF(_name)                                                                           \
  INLINE v_f32 ld_##_name(const char *p) {                                                         \
    v_half v;                                                                                      \
    memcpy(&v, p, sizeof(v));                                                                      \
    return widen_##_name(v);                                                                       \
  }                                                                                                \
  INLINE v_f32 ldn_##_name(const char *p, size_t n) { return widen_##_name(half_load(p, n * 2)); } \
  INLINE void st_##_name(char *p, v_f32 a) {                                                       \
    v_half v = narrow_##_name(a);                                                                  \
    memcpy(p, &v, sizeof(v));                                                                      \
  }                                                                                                \
  INLINE void stn_##_name(char *p, v_f32 a, size_t n) { half_store(p, narrow_##_name(a), n * 2); }

LANE(f32, 4, v_f32)
LANE(f64, 8, v_f64)
LANE(i8, 1, v_i8)
LANE(u8, 1, v_u8)
LANE(i16, 2, v_i16)
LANE(u16, 2, v_u16)
LANE(i32, 4, v_i32)
LANE(u32, 4, v_u32)
LANE(i64, 8, v_i64)
LANE(u64, 8, v_u64)
LANE_HALF(f16)
LANE_HALF(bf16)

/* ---- expressions ----------------------------------------------------------------------------------- */

/* _mask: the signed integer vector that comparisons of _acc give, all ones for true */
#define SELECT(_acc, _mask, _m, _a, _b)                                                            \
  ((_acc)(((_mask)(_m) & (_mask)(_a)) | (~(_mask)(_m) & (_mask)(_b))))

#define OP_ADD(_acc, _mask, _a, _b) ((_a) + (_b))
#define OP_MUL(_acc, _mask, _a, _b) ((_a) * (_b))
#define OP_AND(_acc, _mask, _a, _b) ((_a) & (_b))
#define OP_OR(_acc, _mask, _a, _b) ((_a) | (_b))
#define OP_XOR(_acc, _mask, _a, _b) ((_a) ^ (_b))
#define OP_MIN(_acc, _mask, _a, _b) SELECT(_acc, _mask, (_a) < (_b), _a, _b)
#define OP_MAX(_acc, _mask, _a, _b) SELECT(_acc, _mask, (_a) > (_b), _a, _b)
/* A NaN in _b makes the comparison false and is taken; one in _a is kept. */
#define OP_FMIN(_acc, _mask, _a, _b) SELECT(_acc, _mask, ((_a) < (_b)) | ((_a) != (_a)), _a, _b)
#define OP_FMAX(_acc, _mask, _a, _b) SELECT(_acc, _mask, ((_a) > (_b)) | ((_a) != (_a)), _a, _b)

#define AS_IS(_acc, _x, _q) (_x)
#define TIMES(_acc, _x, _q) ((_x) * (_q))
#define OVER(_acc, _x, _q) ((_x) / (_q))
#define TRUTH(_acc, _x, _q) ((_acc)((_x) != 0) & 1)

/* ---- kernels --------------------------------------------------------------------------------------- */

/* _name: of the lane; _acc, _mask: its vectors; _real: type of param; _size: bytes of an element in memory;
 * _PRE is applied to every input, _OP folds, _POST is applied to the result. */
#define NARY(_name, _op, _acc, _mask, _real, _size, _PRE, _OP, _POST)                              \
  KERNEL void nary_##_name##_##_op(void *dst, const void *const *srcs, int n, size_t count,        \
                                   double param) {                                                 \
    enum {                                                                                         \
      W = sizeof(_acc) / LANE_BYTES_##_name,                                                       \
      STEP = W * (_size)                                                                           \
    };                                                                                             \
    const _real q = (_real)param;                                                                  \
    (void)q;                                                                                       \
    size_t i = 0;                                                                                  \
    for (; i + 4 * W <= count; i += 4 * W) {                                                       \
      const char *s = (const char *)srcs[0] + i * (_size);                                         \
      _acc a = _PRE(_acc, ld_##_name(s), q), b = _PRE(_acc, ld_##_name(s + STEP), q);              \
      _acc c = _PRE(_acc, ld_##_name(s + 2 * STEP), q);                                            \
      _acc d = _PRE(_acc, ld_##_name(s + 3 * STEP), q);                                            \
      for (int k = 1; k < n; k++) {                                                                \
        s = (const char *)srcs[k] + i * (_size);                                                   \
        const _acc e = _PRE(_acc, ld_##_name(s), q), f = _PRE(_acc, ld_##_name(s + STEP), q);      \
        const _acc g = _PRE(_acc, ld_##_name(s + 2 * STEP), q);                                    \
        const _acc h = _PRE(_acc, ld_##_name(s + 3 * STEP), q);                                    \
        a = _OP(_acc, _mask, a, e);                                                                \
        b = _OP(_acc, _mask, b, f);                                                                \
        c = _OP(_acc, _mask, c, g);                                                                \
        d = _OP(_acc, _mask, d, h);                                                                \
      }                                                                                            \
      char *to = (char *)dst + i * (_size);                                                        \
      st_##_name(to, _POST(_acc, a, q));                                                           \
      st_##_name(to + STEP, _POST(_acc, b, q));                                                    \
      st_##_name(to + 2 * STEP, _POST(_acc, c, q));                                                \
      st_##_name(to + 3 * STEP, _POST(_acc, d, q));                                                \
    }                                                                                              \
    for (; i + W <= count; i += W) {                                                               \
      _acc a = _PRE(_acc, ld_##_name((const char *)srcs[0] + i * (_size)), q);                     \
      for (int k = 1; k < n; k++) {                                                                \
        const _acc e = _PRE(_acc, ld_##_name((const char *)srcs[k] + i * (_size)), q);             \
        a = _OP(_acc, _mask, a, e);                                                                \
      }                                                                                            \
      st_##_name((char *)dst + i * (_size), _POST(_acc, a, q));                                    \
    }                                                                                              \
    if (i < count) {                                                                               \
      const size_t left = count - i;                                                               \
      _acc a = _PRE(_acc, ldn_##_name((const char *)srcs[0] + i * (_size), left), q);              \
      for (int k = 1; k < n; k++) {                                                                \
        const _acc e = _PRE(_acc, ldn_##_name((const char *)srcs[k] + i * (_size), left), q);      \
        a = _OP(_acc, _mask, a, e);                                                                \
      }                                                                                            \
      stn_##_name((char *)dst + i * (_size), _POST(_acc, a, q), left);                             \
    }                                                                                              \
  }

/* dst[i] := _EXPR of a (loaded as lane _dst) and x (loaded as lane _src), stored as lane _dst. */
#define MAP(_fn, _dst, _dst_size, _src, _src_size, _acc, _mask, _real, _EXPR)                      \
  KERNEL void _fn(void *dst, const void *src, size_t count, double param) {                        \
    enum {                                                                                         \
      W = sizeof(_acc) / LANE_BYTES_##_src                                                         \
    };                                                                                             \
    const _real q = (_real)param;                                                                  \
    (void)q;                                                                                       \
    size_t i = 0;                                                                                  \
    for (; i + W <= count; i += W) {                                                               \
      char *to = (char *)dst + i * (_dst_size);                                                    \
      const _acc x = ld_##_src((const char *)src + i * (_src_size));                               \
      st_##_dst(to, _EXPR(_acc, _mask, ld_##_dst(to), x, q));                                      \
    }                                                                                              \
    if (i < count) {                                                                               \
      char *to = (char *)dst + i * (_dst_size);                                                    \
      const size_t left = count - i;                                                               \
      const _acc x = ldn_##_src((const char *)src + i * (_src_size), left);                        \
      stn_##_dst(to, _EXPR(_acc, _mask, ldn_##_dst(to, left), x, q), left);                        \
    }                                                                                              \
  }
/* Expressions of MAP; those that do not use _a never load it. */
#define MAP_SAME(_acc, _mask, _a, _x, _q) (_x)
#define MAP_TIMES(_acc, _mask, _a, _x, _q) ((_x) * (_q))
#define MAP_OVER(_acc, _mask, _a, _x, _q) ((_x) / (_q))
#define MAP_SUM(_acc, _mask, _a, _x, _q) OP_ADD(_acc, _mask, _a, _x)
#define MAP_PREMUL(_acc, _mask, _a, _x, _q) OP_ADD(_acc, _mask, _a, (_x) * (_q))
#define MAP_PRODUCT(_acc, _mask, _a, _x, _q) OP_MUL(_acc, _mask, _a, _x)
#define MAP_MIN(_acc, _mask, _a, _x, _q) OP_FMIN(_acc, _mask, _a, _x)
#define MAP_MAX(_acc, _mask, _a, _x, _q) OP_FMAX(_acc, _mask, _a, _x)

/* Bytes of one lane of the accumulator. */
#define LANE_BYTES_f16 4
#define LANE_BYTES_bf16 4
#define LANE_BYTES_f32 4
#define LANE_BYTES_f64 8
#define LANE_BYTES_i8 1
#define LANE_BYTES_u8 1
#define LANE_BYTES_i16 2
#define LANE_BYTES_u16 2
#define LANE_BYTES_i32 4
#define LANE_BYTES_u32 4
#define LANE_BYTES_i64 8
#define LANE_BYTES_u64 8
#define LANE_BYTES_bool 1
#define ld_bool ld_u8
#define ldn_bool ldn_u8
#define st_bool st_u8
#define stn_bool stn_u8

/* ---- every kernel ---------------------------------------------------------------------------------- */

#define NARY_FLOAT(_name, _acc, _mask, _real, _size)                                               \
  NARY(_name, sum, _acc, _mask, _real, _size, AS_IS, OP_ADD, AS_IS)                                \
  NARY(_name, avg, _acc, _mask, _real, _size, AS_IS, OP_ADD, OVER)                                 \
  NARY(_name, premul, _acc, _mask, _real, _size, TIMES, OP_ADD, AS_IS)                             \
  NARY(_name, product, _acc, _mask, _real, _size, AS_IS, OP_MUL, AS_IS)                            \
  NARY(_name, min, _acc, _mask, _real, _size, AS_IS, OP_FMIN, AS_IS)                               \
  NARY(_name, max, _acc, _mask, _real, _size, AS_IS, OP_FMAX, AS_IS)

/* Wrapping arithmetic does not know a sign: signed rows of the table use these too. */
#define NARY_WORD(_name, _acc, _mask, _size)                                                       \
  NARY(_name, sum, _acc, _mask, double, _size, AS_IS, OP_ADD, AS_IS)                               \
  NARY(_name, product, _acc, _mask, double, _size, AS_IS, OP_MUL, AS_IS)                           \
  NARY(_name, band, _acc, _mask, double, _size, AS_IS, OP_AND, AS_IS)                              \
  NARY(_name, bor, _acc, _mask, double, _size, AS_IS, OP_OR, AS_IS)                                \
  NARY(_name, bxor, _acc, _mask, double, _size, AS_IS, OP_XOR, AS_IS)

#define NARY_ORDER(_name, _acc, _mask, _size)                                                      \
  NARY(_name, min, _acc, _mask, double, _size, AS_IS, OP_MIN, AS_IS)                               \
  NARY(_name, max, _acc, _mask, double, _size, AS_IS, OP_MAX, AS_IS)

NARY_FLOAT(f16, v_f32, v_i32, float, 2)
NARY_FLOAT(bf16, v_f32, v_i32, float, 2)
NARY_FLOAT(f32, v_f32, v_i32, float, 4)
NARY_FLOAT(f64, v_f64, v_i64, double, 8)
NARY_WORD(u8, v_u8, v_i8, 1)
NARY_WORD(u16, v_u16, v_i16, 2)
NARY_WORD(u32, v_u32, v_i32, 4)
NARY_WORD(u64, v_u64, v_i64, 8)
NARY_ORDER(i8, v_i8, v_i8, 1)
NARY_ORDER(u8, v_u8, v_i8, 1)
NARY_ORDER(i16, v_i16, v_i16, 2)
NARY_ORDER(u16, v_u16, v_i16, 2)
NARY_ORDER(i32, v_i32, v_i32, 4)
NARY_ORDER(u32, v_u32, v_i32, 4)
NARY_ORDER(i64, v_i64, v_i64, 8)
NARY_ORDER(u64, v_u64, v_i64, 8)
NARY(bool, and, v_u8, v_i8, double, 1, TRUTH, OP_AND, AS_IS)
NARY(bool, or, v_u8, v_i8, double, 1, TRUTH, OP_OR, AS_IS)
NARY(bool, xor, v_u8, v_i8, double, 1, TRUTH, OP_XOR, AS_IS)

#define MAPS_HALF(_name)                                                                           \
  MAP(fold_##_name##_sum, f32, 4, _name, 2, v_f32, v_i32, float, MAP_SUM)                          \
  MAP(fold_##_name##_premul, f32, 4, _name, 2, v_f32, v_i32, float, MAP_PREMUL)                    \
  MAP(fold_##_name##_product, f32, 4, _name, 2, v_f32, v_i32, float, MAP_PRODUCT)                  \
  MAP(fold_##_name##_min, f32, 4, _name, 2, v_f32, v_i32, float, MAP_MIN)                          \
  MAP(fold_##_name##_max, f32, 4, _name, 2, v_f32, v_i32, float, MAP_MAX)                          \
  MAP(scale_##_name, f32, 4, _name, 2, v_f32, v_i32, float, MAP_TIMES)                             \
  MAP(divide_##_name, _name, 2, f32, 4, v_f32, v_i32, float, MAP_OVER)                             \
  MAP(map_widen_##_name, f32, 4, _name, 2, v_f32, v_i32, float, MAP_SAME)                          \
  MAP(map_narrow_##_name, _name, 2, f32, 4, v_f32, v_i32, float, MAP_SAME)

#define MAPS_FULL(_name, _acc, _mask, _real, _size)                                                \
  MAP(fold_##_name##_premul, _name, _size, _name, _size, _acc, _mask, _real, MAP_PREMUL)           \
  MAP(scale_##_name, _name, _size, _name, _size, _acc, _mask, _real, MAP_TIMES)                    \
  MAP(divide_##_name, _name, _size, _name, _size, _acc, _mask, _real, MAP_OVER)

MAPS_HALF(f16)
MAPS_HALF(bf16)
MAPS_FULL(f32, v_f32, v_i32, float, 4)
MAPS_FULL(f64, v_f64, v_i64, double, 8)

/* ---- the table --------------------------------------------------------------------------------------- */

#define ROW_FLOAT(_NAME, _name)                                                                    \
  [PERIGEE_##_NAME] = {[PERIGEE_REDOP_SUM] = nary_##_name##_sum,                                   \
                       [PERIGEE_REDOP_AVG] = nary_##_name##_avg,                                   \
                       [PERIGEE_REDOP_PREMUL_SUM] = nary_##_name##_premul,                         \
                       [PERIGEE_REDOP_PRODUCT] = nary_##_name##_product,                           \
                       [PERIGEE_REDOP_MIN] = nary_##_name##_min,                                   \
                       [PERIGEE_REDOP_MAX] = nary_##_name##_max}
/* avg: the sum; reduce.c divides */
#define ROW_INT(_NAME, _word, _order)                                                              \
  [PERIGEE_##_NAME] = {[PERIGEE_REDOP_SUM] = nary_##_word##_sum,                                   \
                       [PERIGEE_REDOP_AVG] = nary_##_word##_sum,                                   \
                       [PERIGEE_REDOP_PRODUCT] = nary_##_word##_product,                           \
                       [PERIGEE_REDOP_BAND] = nary_##_word##_band,                                 \
                       [PERIGEE_REDOP_BOR] = nary_##_word##_bor,                                   \
                       [PERIGEE_REDOP_BXOR] = nary_##_word##_bxor,                                 \
                       [PERIGEE_REDOP_MIN] = nary_##_order##_min,                                  \
                       [PERIGEE_REDOP_MAX] = nary_##_order##_max}
#define FOLD_HALF(_NAME, _name)                                                                    \
  [PERIGEE_##_NAME] = {[PERIGEE_REDOP_SUM] = fold_##_name##_sum,                                   \
                       [PERIGEE_REDOP_AVG] = fold_##_name##_sum,                                   \
                       [PERIGEE_REDOP_PREMUL_SUM] = fold_##_name##_premul,                         \
                       [PERIGEE_REDOP_PRODUCT] = fold_##_name##_product,                           \
                       [PERIGEE_REDOP_MIN] = fold_##_name##_min,                                   \
                       [PERIGEE_REDOP_MAX] = fold_##_name##_max}

const perigee__reduce_table KERNELS = {
    .nary =
        {
            ROW_FLOAT(F16, f16),
            ROW_FLOAT(BF16, bf16),
            ROW_FLOAT(F32, f32),
            ROW_FLOAT(F64, f64),
            ROW_INT(I8, u8, i8),
            ROW_INT(U8, u8, u8),
            ROW_INT(I16, u16, i16),
            ROW_INT(U16, u16, u16),
            ROW_INT(I32, u32, i32),
            ROW_INT(U32, u32, u32),
            ROW_INT(I64, u64, i64),
            ROW_INT(U64, u64, u64),
            [PERIGEE_BOOL] = {[PERIGEE_REDOP_SUM] = nary_bool_or,
                              [PERIGEE_REDOP_MAX] = nary_bool_or,
                              [PERIGEE_REDOP_BOR] = nary_bool_or,
                              [PERIGEE_REDOP_PRODUCT] = nary_bool_and,
                              [PERIGEE_REDOP_MIN] = nary_bool_and,
                              [PERIGEE_REDOP_BAND] = nary_bool_and,
                              [PERIGEE_REDOP_BXOR] = nary_bool_xor},
        },
    .fold =
        {
            FOLD_HALF(F16, f16),
            FOLD_HALF(BF16, bf16),
            [PERIGEE_F32] = {[PERIGEE_REDOP_PREMUL_SUM] = fold_f32_premul},
            [PERIGEE_F64] = {[PERIGEE_REDOP_PREMUL_SUM] = fold_f64_premul},
        },
    .scale = {scale_f16, scale_bf16, scale_f32, scale_f64},
    .divide = {divide_f16, divide_bf16, divide_f32, divide_f64},
    .widen = {map_widen_f16, map_widen_bf16},
    .narrow = {map_narrow_f16, map_narrow_bf16},
};
