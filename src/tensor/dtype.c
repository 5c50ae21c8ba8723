#include "tensor/dtype.h"

#include <string.h>

#include "base/attr.h"
#include "base/error.h"

static const struct {
  const char *name;
  uint8_t size;
} dtypes[PERIGEE_DTYPE_COUNT] = {
#define XX(_id, _NAME, _name, _size) [_id] = {#_name, _size},
    PERIGEE_DTYPE_MAP(XX)
#undef XX
};

/* What the public table does not say. align: one component; other: the name numpy and torch use. */
static const struct {
  const char *other;
  uint8_t align;
  int8_t class;
} more[PERIGEE_DTYPE_COUNT] = {
    [PERIGEE_F16] = {"float16", 2, PERIGEE_SCALAR_FLOAT},
    [PERIGEE_BF16] = {"bfloat16", 2, PERIGEE_SCALAR_FLOAT},
    [PERIGEE_F32] = {"float32", 4, PERIGEE_SCALAR_FLOAT},
    [PERIGEE_F64] = {"float64", 8, PERIGEE_SCALAR_FLOAT},
    [PERIGEE_I8] = {"int8", 1, PERIGEE_SCALAR_INT},
    [PERIGEE_U8] = {"uint8", 1, PERIGEE_SCALAR_UINT},
    [PERIGEE_I16] = {"int16", 2, PERIGEE_SCALAR_INT},
    [PERIGEE_U16] = {"uint16", 2, PERIGEE_SCALAR_UINT},
    [PERIGEE_I32] = {"int32", 4, PERIGEE_SCALAR_INT},
    [PERIGEE_U32] = {"uint32", 4, PERIGEE_SCALAR_UINT},
    [PERIGEE_I64] = {"int64", 8, PERIGEE_SCALAR_INT},
    [PERIGEE_U64] = {"uint64", 8, PERIGEE_SCALAR_UINT},
    [PERIGEE_BOOL] = {"bool", 1, PERIGEE_SCALAR_BOOL},
    [PERIGEE_C64] = {"complex64", 4, PERIGEE_SCALAR_COMPLEX},
    [PERIGEE_C128] = {"complex128", 8, PERIGEE_SCALAR_COMPLEX},
};

bool perigee__dtype_valid(int dtype) { return dtype >= 0 && dtype < (int)PERIGEE_DTYPE_COUNT; }

size_t perigee_dtype_size(perigee_dtype dtype) {
  return perigee__dtype_valid((int)dtype) ? dtypes[dtype].size : 0;
}

const char *perigee_dtype_name(perigee_dtype dtype) {
  return perigee__dtype_valid((int)dtype) ? dtypes[dtype].name : "?";
}

int perigee__dtype_class(perigee_dtype dtype) {
  return perigee__dtype_valid((int)dtype) ? more[dtype].class : -1;
}

size_t perigee__dtype_align(perigee_dtype dtype) {
  return perigee__dtype_valid((int)dtype) ? more[dtype].align : 1;
}

int perigee_dtype_parse(const char *name, perigee_dtype *dtype_p) {
  if (name == NULL)
    return perigee__fail(PERIGEE_EDTYPE, "dtype name is NULL");
  for (size_t i = 0; i < PERIGEE_COUNT(dtypes); i++)
    if (strcmp(name, dtypes[i].name) == 0 || strcmp(name, more[i].other) == 0) {
      *dtype_p = (perigee_dtype)i;
      return 0;
    }
  return perigee__fail(PERIGEE_EDTYPE,
                       "unknown dtype '%.40s' (f16 bf16 f32 f64 i8 u8 i16 u16 i32 u32 i64 u64 bool "
                       "c64 c128)",
                       name);
}
