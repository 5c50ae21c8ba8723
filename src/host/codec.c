#include "host/codec.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/lerror.h"
#include "host/ltensor.h"

#define MAGIC "PG1"

/* ---- out: a buffer that the collector frees ------------------------------------------------------- */

typedef struct buffer {
  char *data;
  size_t size, capacity;
  size_t items; /* table entries so far */
  int i;        /* of a list: what is encoded is value[i]; else 0 */
} buffer;

/* Where the encoder is, from the value outward: for messages, and against cycles. */
typedef struct place {
  const struct place *outer;
  int table, key; /* stack indices */
  int depth;
} place;

static const char buffer_key; /* registry: metatable of buffers */

static int buffer_gc(lua_State *L) {
  buffer *b = lua_touserdata(L, 1);
  free(b->data);
  b->data = NULL;
  return 0;
}

/* [-0, +1, m] */
static buffer *buffer_new(lua_State *L) {
  buffer *b = lua_newuserdatauv(L, sizeof(*b), 0);
  *b = (buffer){.data = NULL};
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &buffer_key) == LUA_TNIL) {
    lua_pop(L, 1);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, buffer_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &buffer_key);
  }
  lua_setmetatable(L, -2);
  return b;
}

static void put(lua_State *L, buffer *b, const void *data, size_t size) {
  if (size > PERIGEE_CODEC_MAX - b->size)
    perigee__raise(L, PERIGEE_ELIMIT, "the value takes more than %d bytes", PERIGEE_CODEC_MAX);
  if (b->size + size > b->capacity) {
    size_t capacity = b->capacity * 2 > b->size + size ? b->capacity * 2 : b->size + size + 64;
    char *grown = realloc(b->data, capacity);
    if (grown == NULL)
      perigee__raise(L, PERIGEE_ENOMEM, "no memory to encode %zu bytes", capacity);
    b->data = grown;
    b->capacity = capacity;
  }
  if (size > 0)
    memcpy(b->data + b->size, data, size);
  b->size += size;
}

static void put_byte(lua_State *L, buffer *b, char byte) { put(L, b, &byte, 1); }

static void put_varint(lua_State *L, buffer *b, uint64_t n) {
  char bytes[10];
  size_t size = 0;
  for (; n >= 0x80; n >>= 7)
    bytes[size++] = (char)(n | 0x80);
  bytes[size++] = (char)n;
  put(L, b, bytes, size);
}

static void put_le64(lua_State *L, buffer *b, uint64_t n) {
  char bytes[8];
  for (int i = 0; i < 8; i++)
    bytes[i] = (char)(n >> (8 * i));
  put(L, b, bytes, 8);
}

/* ---- refusals ------------------------------------------------------------------------------------ */

static size_t path_of(lua_State *L, const buffer *b, const place *p, char *buf, size_t size) {
  if (p == NULL)
    return b->i == 0 ? (size_t)snprintf(buf, size, "value")
                     : (size_t)snprintf(buf, size, "value[%d]", b->i);
  size_t used = path_of(L, b, p->outer, buf, size);
  if (used >= size)
    return used;
  if (lua_type(L, p->key) == LUA_TSTRING)
    return used + (size_t)snprintf(buf + used, size - used, ".%s", lua_tostring(L, p->key));
  lua_pushvalue(L, p->key); /* tolstring would turn the key itself into a string */
  used += (size_t)snprintf(buf + used, size - used, "[%s]", luaL_tolstring(L, -1, NULL));
  lua_pop(L, 2);
  return used;
}

_Noreturn static void refuse(lua_State *L, const buffer *b, const place *p, const char *what) {
  char path[256];
  path_of(L, b, p, path, sizeof(path));
  perigee__raise(L, PERIGEE_EINVAL, "%s: %s", path, what);
}

/* ---- encoding ------------------------------------------------------------------------------------ */

static void encode_value(lua_State *L, buffer *b, int index, const place *p);

static void encode_tensor(lua_State *L, buffer *b, perigee_tensor *t) {
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *flat;
  perigee__check(L, perigee_tensor_contiguous(t, &flat));
  box->ptr = flat;
  put_byte(L, b, 'x');
  put_byte(L, b, (char)perigee_tensor_dtype(flat));
  put_byte(L, b, (char)perigee_tensor_ndim(flat));
  for (int d = 0; d < perigee_tensor_ndim(flat); d++)
    put_varint(L, b, (uint64_t)perigee_tensor_shape(flat)[d]);
  put(L, b, perigee_tensor_data(flat), perigee_tensor_nbytes(flat));
  lua_pop(L, 1);
}

static bool in_list(lua_State *L, int key, lua_Unsigned n) {
  return lua_isinteger(L, key) && lua_tointeger(L, key) >= 1 &&
         (lua_Unsigned)lua_tointeger(L, key) <= n;
}

static void encode_table(lua_State *L, buffer *b, int index, const place *p) {
  int depth = p != NULL ? p->depth + 1 : 1;
  if (depth > PERIGEE_CODEC_DEPTH)
    refuse(L, b, p, "tables nest too deep");
  for (const place *q = p; q != NULL; q = q->outer)
    if (lua_rawequal(L, q->table, index))
      refuse(L, b, p, "the table contains itself");
  luaL_checkstack(L, 12, "tables nest too deep");
  if (perigee__error_is(L, index))
    put_byte(L, b, 'e');
  else if (lua_getmetatable(L, index))
    refuse(L, b, p, "a table with a metatable");
  lua_Unsigned n = lua_rawlen(L, index), m = 0;
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1))
    m += !in_list(L, lua_gettop(L) - 1, n);
  if (n > PERIGEE_CODEC_ITEMS || (b->items += n + m) > PERIGEE_CODEC_ITEMS)
    perigee__raise(L, PERIGEE_ELIMIT, "the value has more than %d table entries",
                   PERIGEE_CODEC_ITEMS);
  put_byte(L, b, m == 0 ? 'a' : n == 0 ? 'm' : 'b');
  if (n > 0 || m == 0)
    put_varint(L, b, n);
  if (m > 0)
    put_varint(L, b, m);
  for (lua_Unsigned i = 1; i <= n; i++) {
    lua_pushinteger(L, (lua_Integer)i);
    lua_rawgeti(L, index, (lua_Integer)i);
    const place here = {p, index, lua_gettop(L) - 1, depth};
    encode_value(L, b, lua_gettop(L), &here);
    lua_pop(L, 2);
  }
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    int key = lua_gettop(L) - 1;
    if (in_list(L, key, n))
      continue;
    const place here = {p, index, key, depth};
    int type = lua_type(L, key);
    if (type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN)
      refuse(L, b, p, lua_pushfstring(L, "a key is a %s", perigee__type_name(L, key)));
    encode_value(L, b, key, &here);
    encode_value(L, b, key + 1, &here);
  }
}

static void encode_number(lua_State *L, buffer *b, int index) {
  if (lua_isinteger(L, index)) {
    uint64_t n = (uint64_t)lua_tointeger(L, index);
    put_byte(L, b, 'i');
    put_varint(L, b,
               n << 1 ^
                   (n >> 63 ? UINT64_MAX : 0)); /* zigzag: small for small numbers of either sign */
    return;
  }
  double d = lua_tonumber(L, index);
  uint64_t bits;
  memcpy(&bits, &d, sizeof(bits));
  put_byte(L, b, 'd');
  put_le64(L, b, bits);
}

static void encode_value(lua_State *L, buffer *b, int index, const place *p) {
  size_t size;
  switch (lua_type(L, index)) {
  case LUA_TNIL:
    put_byte(L, b, 'n');
    return;
  case LUA_TBOOLEAN:
    put_byte(L, b, lua_toboolean(L, index) ? 't' : 'f');
    return;
  case LUA_TNUMBER:
    encode_number(L, b, index);
    return;
  case LUA_TSTRING: {
    const char *s = lua_tolstring(L, index, &size);
    put_byte(L, b, 's');
    put_varint(L, b, size);
    put(L, b, s, size);
    return;
  }
  case LUA_TTABLE:
    encode_table(L, b, index, p);
    return;
  default: {
    perigee_tensor *t = perigee__tensor_get(L, index);
    if (t == NULL)
      refuse(L, b, p, perigee__type_name(L, index));
    encode_tensor(L, b, t);
  }
  }
}

void perigee__encode(lua_State *L, int index) { perigee__encode_at(L, index, 0); }

void perigee__encode_at(lua_State *L, int index, int i) {
  index = lua_absindex(L, index);
  buffer *b = buffer_new(L);
  b->i = i;
  put(L, b, MAGIC, 3);
  encode_value(L, b, index, NULL);
  lua_pushlstring(L, b->data, b->size);
  free(b->data); /* not only when it is collected: it may be large */
  *b = (buffer){.data = NULL};
  lua_remove(L, -2);
}

/* ---- decoding ------------------------------------------------------------------------------------ */

typedef struct reader {
  const unsigned char *at, *end;
  size_t items; /* table entries so far */
} reader;

_Noreturn static void malformed(lua_State *L, const char *what) {
  perigee__raise(L, PERIGEE_EPROTO, "encoded value: %s", what);
}

static size_t left(const reader *r) { return (size_t)(r->end - r->at); }

static unsigned char get_byte(lua_State *L, reader *r) {
  if (r->at == r->end)
    malformed(L, "cut short");
  return *r->at++;
}

static uint64_t get_varint(lua_State *L, reader *r) {
  uint64_t n = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    unsigned char byte = get_byte(L, r);
    if (shift == 63 && byte > 1)
      break;
    n |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80))
      return n;
  }
  malformed(L, "a number is too long");
}

/* A count of things that take at least `least` bytes each. */
static size_t get_count(lua_State *L, reader *r, size_t least) {
  uint64_t n = get_varint(L, r);
  if (n > left(r) / least)
    malformed(L, "a length exceeds the bytes that are left");
  return (size_t)n;
}

static void decode_value(lua_State *L, reader *r, int depth);

static void decode_table(lua_State *L, reader *r, int depth, bool list, bool map) {
  size_t n = list ? get_count(L, r, 1) : 0, m = map ? get_count(L, r, 2) : 0;
  if ((r->items += n + m) > PERIGEE_CODEC_ITEMS)
    malformed(L, "too many table entries");
  if (depth == PERIGEE_CODEC_DEPTH)
    malformed(L, "tables nest too deep");
  luaL_checkstack(L, 8, "tables nest too deep");
  lua_createtable(L, n < INT32_MAX ? (int)n : 0, m < INT32_MAX ? (int)m : 0);
  for (size_t i = 1; i <= n; i++) {
    decode_value(L, r, depth + 1);
    lua_rawseti(L, -2, (lua_Integer)i);
  }
  for (size_t i = 0; i < m; i++) {
    decode_value(L, r, depth + 1);
    int type = lua_type(L, -1);
    if ((type != LUA_TSTRING && type != LUA_TNUMBER && type != LUA_TBOOLEAN) ||
        (type == LUA_TNUMBER && lua_tonumber(L, -1) != lua_tonumber(L, -1)))
      malformed(L, "a key is no string, number or boolean");
    decode_value(L, r, depth + 1);
    lua_rawset(L, -3);
  }
}

static void decode_tensor(lua_State *L, reader *r) {
  unsigned dtype = get_byte(L, r), ndim = get_byte(L, r);
  int64_t shape[PERIGEE_MAX_DIMS], bytes = (int64_t)perigee_dtype_size((perigee_dtype)dtype);
  if (dtype >= PERIGEE_DTYPE_COUNT || ndim > PERIGEE_MAX_DIMS)
    malformed(L, "unknown tensor");
  for (unsigned d = 0; d < ndim; d++) {
    uint64_t extent = get_varint(L, r);
    if (extent > INT64_MAX || __builtin_mul_overflow(bytes, (int64_t)extent, &bytes))
      malformed(L, "a tensor is too large");
    shape[d] = (int64_t)extent;
  }
  if ((uint64_t)bytes > left(r))
    malformed(L, "a tensor exceeds the bytes that are left");
  perigee__box *box = perigee__tensor_slot(L);
  perigee_tensor *t;
  perigee__check(L, perigee_tensor_create((perigee_dtype)dtype, (int)ndim, shape, &t));
  box->ptr = t;
  if (bytes > 0)
    memcpy(perigee_tensor_data(t), r->at, (size_t)bytes);
  r->at += bytes;
}

static void decode_float(lua_State *L, reader *r) {
  uint64_t bits = 0;
  for (int i = 0; i < 8; i++)
    bits |= (uint64_t)get_byte(L, r) << (8 * i);
  double d;
  memcpy(&d, &bits, sizeof(d));
  lua_pushnumber(L, d);
}

static void decode_value(lua_State *L, reader *r, int depth) {
  unsigned char tag = get_byte(L, r);
  switch (tag) {
  case 'n':
    lua_pushnil(L);
    return;
  case 't':
  case 'f':
    lua_pushboolean(L, tag == 't');
    return;
  case 'i': {
    uint64_t n = get_varint(L, r);
    lua_pushinteger(L, (lua_Integer)(n >> 1 ^ (n & 1 ? UINT64_MAX : 0)));
    return;
  }
  case 'd':
    decode_float(L, r);
    return;
  case 's': {
    size_t n = get_count(L, r, 1);
    lua_pushlstring(L, (const char *)r->at, n);
    r->at += n;
    return;
  }
  case 'a':
  case 'm':
  case 'b':
    decode_table(L, r, depth, tag != 'm', tag != 'a');
    return;
  case 'e': {
    unsigned char kind = get_byte(L, r);
    if (kind != 'a' && kind != 'm' && kind != 'b')
      malformed(L, "an error object is no table");
    decode_table(L, r, depth, kind != 'm', kind != 'a');
    perigee__error_bless(L);
    return;
  }
  case 'x':
    decode_tensor(L, r);
    return;
  default:
    malformed(L, "unknown tag");
  }
}

void perigee__decode(lua_State *L, const char *data, size_t size) {
  if (size < 3 || memcmp(data, MAGIC, 3) != 0)
    malformed(L, "not made by perigee.encode");
  reader r = {(const unsigned char *)data + 3, (const unsigned char *)data + size, 0};
  decode_value(L, &r, 0);
  if (r.at != r.end)
    malformed(L, "bytes after the end");
}

/* ---- in the module ------------------------------------------------------------------------------- */

static int l_encode(lua_State *L) {
  luaL_checkany(L, 1);
  perigee__encode(L, 1);
  return 1;
}

static int l_decode(lua_State *L) {
  if (lua_type(L, 1) != LUA_TSTRING)
    perigee__raise_arg(L, "decode", 1, "string expected, got %s", perigee__type_name(L, 1));
  size_t size;
  const char *data = lua_tolstring(L, 1, &size);
  perigee__decode(L, data, size);
  return 1;
}

void perigee__codec_open(lua_State *L) {
  static const luaL_Reg functions[] = {{"encode", l_encode}, {"decode", l_decode}, {NULL, NULL}};
  perigee__functions_add(L, functions);
}
