/* .npy files (format 1.0 and 2.0, little-endian, C order), as numpy writes and reads them. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/ltensor.h"

#include "host/lerror.h"

/* Longest header accepted: numpy writes 118 bytes for everything but structured dtypes, which are refused anyway. */
enum {
  HEADER_MAX = 4096
};

static const struct {
  const char *descr;
  perigee_dtype dtype;
} descrs[] = {
    {"<f2", PERIGEE_F16}, {"<f4", PERIGEE_F32},   {"<f8", PERIGEE_F64}, {"|i1", PERIGEE_I8},
    {"|u1", PERIGEE_U8},  {"<i2", PERIGEE_I16},   {"<u2", PERIGEE_U16}, {"<i4", PERIGEE_I32},
    {"<u4", PERIGEE_U32}, {"<i8", PERIGEE_I64},   {"<u8", PERIGEE_U64}, {"|b1", PERIGEE_BOOL},
    {"<c8", PERIGEE_C64}, {"<c16", PERIGEE_C128},
};

static const char *descr_of(perigee_dtype dtype) {
  for (size_t i = 0; i < PERIGEE_COUNT(descrs); i++)
    if (descrs[i].dtype == dtype)
      return descrs[i].descr;
  return NULL;
}

/* Header with its magic, padded so that the data starts at a multiple of 64 bytes. Returns its length. */
static size_t make_header(const perigee_tensor *t, const char *descr, char *buf, size_t size) {
  char dict[512];
  int n = snprintf(dict, sizeof(dict), "{'descr': '%s', 'fortran_order': False, 'shape': (", descr);
  int ndim = perigee_tensor_ndim(t);
  for (int d = 0; d < ndim; d++)
    n += snprintf(dict + n, sizeof(dict) - (size_t)n, "%s%lld%s", d > 0 ? ", " : "",
                  (long long)perigee_tensor_shape(t)[d], ndim == 1 ? "," : "");
  n += snprintf(dict + n, sizeof(dict) - (size_t)n, "), }");
  size_t total = (10 + (size_t)n + 1 + 63) / 64 * 64;
  if (total > size)
    return 0;
  memset(buf, ' ', total);
  memcpy(buf, "\x93NUMPY\x01\x00", 8);
  buf[8] = (char)((total - 10) & 0xff);
  buf[9] = (char)((total - 10) >> 8);
  memcpy(buf + 10, dict, (size_t)n);
  buf[total - 1] = '\n';
  return total;
}

/* perigee.save_npy(path, tensor): written beside and renamed, so that a reader never sees half a file */
static int l_save(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  perigee_tensor *t = perigee__tensor_get(L, 2);
  if (t == NULL)
    perigee__raise_arg(L, "save_npy", 2, "tensor expected, got %s", perigee__type_name(L, 2));
  const char *descr = descr_of(perigee_tensor_dtype(t));
  if (descr == NULL)
    perigee__raise_arg(L, "save_npy", 2, ".npy has no %s: convert it with to(\"f32\")",
                       perigee_dtype_name(perigee_tensor_dtype(t)));
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *flat;
  perigee__check(L, perigee_tensor_contiguous(t, &flat));
  box->ptr = flat;
  const char *temp = lua_pushfstring(L, "%s.tmp", path);
  char header[640];
  size_t head = make_header(flat, descr, header, sizeof(header)),
         body = perigee_tensor_nbytes(flat);
  FILE *f = fopen(temp, "wb");
  if (f == NULL)
    perigee__raise(L, -errno, "cannot write %s: %s", temp, strerror(errno));
  bool ok = fwrite(header, 1, head, f) == head &&
            (body == 0 || fwrite(perigee_tensor_data(flat), 1, body, f) == body);
  ok = fclose(f) == 0 && ok;
  ok = ok && rename(temp, path) == 0;
  if (!ok) {
    int saved = errno;
    remove(temp);
    perigee__raise(L, -saved, "cannot write %s: %s", path, strerror(saved));
  }
  return 0;
}

/* ---- load ---------------------------------------------------------------------------------------- */

typedef struct npy {
  perigee_dtype dtype;
  int ndim;
  int64_t shape[PERIGEE_MAX_DIMS];
} npy;

/* The value after 'key': in the header, or NULL. */
static const char *value_of(const char *header, const char *key) {
  const char *at = strstr(header, key);
  if (at == NULL)
    return NULL;
  at += strlen(key);
  at += strspn(at, " :");
  return at;
}

static const char *parse_header(const char *header, npy *out) {
  const char *descr = value_of(header, "'descr'"), *order = value_of(header, "'fortran_order'"),
             *shape = value_of(header, "'shape'");
  if (descr == NULL || order == NULL || shape == NULL || *shape != '(')
    return "no .npy header";
  if (strncmp(order, "False", 5) != 0)
    return "Fortran order is not supported";
  bool known = false;
  for (size_t i = 0; i < PERIGEE_COUNT(descrs) && !known; i++) {
    size_t n = strlen(descrs[i].descr);
    known = descr[0] == '\'' && strncmp(descr + 1, descrs[i].descr, n) == 0 && descr[n + 1] == '\'';
    out->dtype = descrs[i].dtype;
  }
  if (!known)
    return "its dtype is not supported";
  out->ndim = 0;
  for (const char *at = shape + 1; *at != ')';) {
    char *end;
    long long extent = strtoll(at, &end, 10);
    if (end == at || extent < 0 || out->ndim == PERIGEE_MAX_DIMS)
      return "its shape cannot be read";
    out->shape[out->ndim++] = extent;
    at = end + strspn(end, ", ");
  }
  return NULL;
}

/* Reads magic and header. Returns what is wrong, or NULL. */
static const char *read_header(FILE *f, npy *out) {
  unsigned char head[12];
  if (fread(head, 1, 10, f) != 10 || memcmp(head, "\x93NUMPY", 6) != 0)
    return "not a .npy file";
  size_t length = (size_t)head[8] | (size_t)head[9] << 8;
  if (head[6] == 2) {
    if (fread(head + 10, 1, 2, f) != 2)
      return "cut short";
    length |= (size_t)head[10] << 16 | (size_t)head[11] << 24;
  } else if (head[6] != 1) {
    return "unknown .npy version";
  }
  char header[HEADER_MAX + 1];
  if (length > HEADER_MAX)
    return "its header is too long";
  if (fread(header, 1, length, f) != length)
    return "cut short";
  header[length] = '\0';
  return parse_header(header, out);
}

/* Bytes from here to the end; the size a header claims is checked against it before memory is taken. */
static long long bytes_left(FILE *f) {
  long here = ftell(f);
  if (here < 0 || fseek(f, 0, SEEK_END) != 0)
    return -1;
  long end = ftell(f);
  return fseek(f, here, SEEK_SET) == 0 ? (long long)(end - here) : -1;
}

static const char *read_file(FILE *f, perigee__box *box) {
  npy info;
  const char *wrong = read_header(f, &info);
  if (wrong != NULL)
    return wrong;
  long long want = (long long)perigee_dtype_size(info.dtype), left = bytes_left(f);
  for (int d = 0; d < info.ndim; d++)
    if (__builtin_mul_overflow(want, info.shape[d], &want))
      return "its shape is too large";
  if (left < want)
    return "cut short";
  perigee_tensor *t;
  if (perigee_tensor_create(info.dtype, info.ndim, info.shape, &t) < 0)
    return perigee_last_error()->message;
  box->ptr = t;
  if (want > 0 && fread(perigee_tensor_data(t), 1, (size_t)want, f) != (size_t)want)
    return "cannot be read";
  return NULL;
}

/* perigee.load_npy(path) */
static int l_load(lua_State *L) {
  const char *path = luaL_checkstring(L, 1);
  perigee__box *box = perigee__tensor_slot(L);
  FILE *f = fopen(path, "rb");
  if (f == NULL)
    perigee__raise(L, -errno, "cannot read %s: %s", path, strerror(errno));
  const char *wrong = read_file(f, box);
  fclose(f);
  if (wrong != NULL)
    perigee__raise(L, PERIGEE_EINVAL, "%s: %s", path, wrong);
  perigee__tensor_account(L, box->ptr);
  return 1;
}

void perigee__ltensor_npy_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"save_npy", l_save}, {"load_npy", l_load}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
