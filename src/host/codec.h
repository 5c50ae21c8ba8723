/*
 * Data as bytes: nil, booleans, integers, floats, strings, tables of these (trees), tensors. Never code, never behaviour.
 *
 *   "PG1"  value
 *   value: 'n' | 't' | 'f'                        nil, true, false
 *          'i' zigzag varint                      integer
 *          'd' 8 bytes little-endian              float
 *          's' varint bytes, bytes                string
 *          'a' varint count, values               table 1..count
 *          'm' varint count, (key, value)*        table; keys: strings, numbers, booleans
 *          'b' varint n, varint m, n values, m pairs   table with both parts
 *          'e' table                              error object
 *          'x' dtype, ndim, varint extents, bytes tensor, row-major, little-endian
 * Tables nest at most PERIGEE_CODEC_DEPTH deep; a table that is reached twice becomes two copies. Encoding refuses anything else
 * and says where: "value.a[3]: function", "value.b: a table with a metatable" (its behaviour would stay behind unnoticed).
 * Decoding checks every length against the bytes that are left before it takes memory for it.
 */
#ifndef PERIGEE_HOST_CODEC_H
#define PERIGEE_HOST_CODEC_H

#include "host/interp.h"

enum {
  PERIGEE_CODEC_DEPTH = 100,
  PERIGEE_CODEC_MAX = 1 << 30, /* bytes of one value */
  PERIGEE_CODEC_ITEMS =
      1 << 26 /* entries of all its tables: a byte may stand for an entry of 16 to 40 bytes */
};

/** [-0, +1, e] Push a string of the value at index. EINVAL (where and what), ELIMIT. */
PERIGEE_RAISES void perigee__encode(lua_State *L, int index);
/** As encode; messages call the value "value[i]". [-0, +1, e] */
PERIGEE_RAISES void perigee__encode_at(lua_State *L, int index, int i);
/** [-0, +1, e] Push the value of these bytes. EPROTO. */
PERIGEE_RAISES void perigee__decode(lua_State *L, const char *data, size_t size);

/** perigee.encode and decode into the module table on top of the stack. [-0, +0, m] */
PERIGEE_RAISES void perigee__codec_open(lua_State *L);

#endif
