#include "coll/fingerprint.h"

#include <stdio.h>

#include <perigee/op.h>

enum {
  OP_SHIFT = 59,
  DTYPE_SHIFT = 55,
  REDOP_SHIFT = 51,
  ROOT_SHIFT = 39,
  HASHED_SHIFT = 38,
  OP_MASK = 31,
  DTYPE_NONE = 15,
  REDOP_NONE = 15,
  ROOT_MASK = 4095
};
#define VALUE_MASK ((UINT64_C(1) << HASHED_SHIFT) - 1)

/* The tables of rows are data of a layer above; their names are all that is needed here. */
static const char *const op_names[] = {
#define XX(_id, _NAME, _name, _out, _in, _opts, _aliases) [_id] = #_name,
    PERIGEE_OP_MAP(XX)
#undef XX
};
static const char *const redop_names[] = {
#define XX(_id, _NAME, _name) [_id] = #_name,
    PERIGEE_REDOP_MAP(XX)
#undef XX
};
static const char *const dtype_names[] = {
#define XX(_id, _NAME, _name, _size) [_id] = #_name,
    PERIGEE_DTYPE_MAP(XX)
#undef XX
};
_Static_assert((int)PERIGEE_OP_COUNT < OP_MASK, "1 + op has 5 bits");
_Static_assert((int)PERIGEE_DTYPE_COUNT <= DTYPE_NONE, "dtype has 4 bits, one value means none");
_Static_assert((int)PERIGEE_REDOP_COUNT <= REDOP_NONE,
               "reduce op has 4 bits, one value means none");

static const char *name_of(const char *const *names, int count, int id) {
  return id >= 0 && id < count && names[id] != NULL ? names[id] : "?";
}

uint64_t perigee__fingerprint_pack(const perigee__fingerprint *f) {
  uint64_t value = f->hashed ? f->hash & VALUE_MASK : f->count;
  if (value > VALUE_MASK)
    value = VALUE_MASK;
  return (uint64_t)((f->op + 1) & OP_MASK) << OP_SHIFT |
         (uint64_t)(f->dtype < 0 ? DTYPE_NONE : f->dtype & DTYPE_NONE) << DTYPE_SHIFT |
         (uint64_t)(f->redop < 0 ? REDOP_NONE : f->redop & REDOP_NONE) << REDOP_SHIFT |
         (uint64_t)((f->root + 1) & ROOT_MASK) << ROOT_SHIFT |
         (uint64_t)(f->hashed != 0) << HASHED_SHIFT | value;
}

perigee__fingerprint perigee__fingerprint_unpack(uint64_t fp) {
  int dtype = (int)(fp >> DTYPE_SHIFT & DTYPE_NONE);
  int redop = (int)(fp >> REDOP_SHIFT & REDOP_NONE);
  int hashed = (int)(fp >> HASHED_SHIFT & 1);
  return (perigee__fingerprint){.op = (int)(fp >> OP_SHIFT & OP_MASK) - 1,
                                .dtype = dtype == DTYPE_NONE ? -1 : dtype,
                                .redop = redop == REDOP_NONE ? -1 : redop,
                                .root = (int)(fp >> ROOT_SHIFT & ROOT_MASK) - 1,
                                .count = hashed ? 0 : fp & VALUE_MASK,
                                .hash = hashed ? fp & VALUE_MASK : 0,
                                .hashed = hashed};
}

const char *perigee__fingerprint_describe(uint64_t fp, char *buf, size_t size) {
  perigee__fingerprint f = perigee__fingerprint_unpack(fp);
  char what[48] = "", redop[24] = "", root[24] = "";
  const char *dtype = f.dtype < 0 ? "" : name_of(dtype_names, PERIGEE_DTYPE_COUNT, f.dtype);
  if (f.hashed) /* the shapes are not in there: the number only shows that they differ */
    snprintf(what, sizeof(what), " %s[#%010llx]", dtype, (unsigned long long)f.hash);
  else if (f.dtype >= 0 || f.count > 0)
    snprintf(what, sizeof(what), " %s[%llu]", dtype, (unsigned long long)f.count);
  if (f.redop >= 0)
    snprintf(redop, sizeof(redop), " %s", name_of(redop_names, PERIGEE_REDOP_COUNT, f.redop));
  if (f.root >= 0)
    snprintf(root, sizeof(root), " root %d", f.root);
  snprintf(buf, size, "%s%s%s%s", name_of(op_names, PERIGEE_OP_COUNT, f.op), what, redop, root);
  return buf;
}

uint64_t perigee__hash_mix(uint64_t hash, uint64_t value) {
  uint64_t z = hash + UINT64_C(0x9e3779b97f4a7c15) + value;
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return z ^ (z >> 31);
}
