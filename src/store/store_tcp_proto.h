/*
 * The wire protocol of PyTorch's TCPStore (2.4 and later), which the client, the parser and the engine share.
 *
 *   No framing, no ids, no version: a request is a code byte and its fields, replies come in the order of the requests, except
 *   those of WAIT and BARRIER, which come when there is something to say. Integers are little endian.
 *
 *   field       bytes
 *   m  magic    CE F7 85 3C
 *   w  u32      4
 *   i  i64      8
 *   K  key      u64 length, then that many bytes; at most 8 KiB
 *   V  value    u64 length, then that many bytes; at most 8 MiB
 *   *  list     u64 n, then n times the fields that follow; at most 131072
 *
 *   code             fields   reply                                        effect
 *   00 VALIDATE      m        none                                         first message, and only that
 *   01 SET           K V      none                                         store
 *   02 COMPARE_SET   K V V    value                                        expected, desired: see store.h
 *   03 GET           K        value, empty when missing                    clients WAIT first
 *   04 ADD           K i      i64 sum                                      missing counts as 0, kept as decimal text
 *   05 CHECK         * K      u8: 0 all exist, 1 not
 *   06 WAIT          * K      u8 0 when each key has come into being
 *   07 GETNUMKEYS             i64                                          queues do not count
 *   08 DELETE_KEY    K        i64: 0 or 1                                  leaves queues alone
 *   09 APPEND        K V      none
 *   0A MULTI_GET     * K      n values
 *   0B MULTI_SET     * K V    none
 *   0C CANCEL_WAIT            u8 1, always                                 ends this connection's WAIT or BARRIER
 *   0D PING          w        the same u32
 *   0E QUEUE_PUSH    K V      none                                         wakes one waiter
 *   0F QUEUE_POP     K        i64 length before, then a value if it was > 0   never blocks
 *   10 QUEUE_LEN     K        i64
 *   11 LIST_KEYS              i64 n, then n keys                           queues do not count
 *   12 BARRIER       K i      u8 0 when i have arrived                     counts arrivals in the decimal text at K
 *
 *   A client writes VALIDATE in one write, then PING with a number of its choice, then, if it takes part in a world,
 *   ADD "init/" 1. It puts "/" before every user key. There is no error reply: a server that cannot go on closes.
 */
#ifndef PERIGEE_STORE_TCP_PROTO_H
#define PERIGEE_STORE_TCP_PROTO_H

#define PERIGEE__STORE_REQUEST_MAP(XX)                                                             \
  XX(VALIDATE, 0x00, "m")                                                                          \
  XX(SET, 0x01, "KV")                                                                              \
  XX(COMPARE_SET, 0x02, "KVV")                                                                     \
  XX(GET, 0x03, "K")                                                                               \
  XX(ADD, 0x04, "Ki")                                                                              \
  XX(CHECK, 0x05, "*K")                                                                            \
  XX(WAIT, 0x06, "*K")                                                                             \
  XX(GETNUMKEYS, 0x07, "")                                                                         \
  XX(DELETE_KEY, 0x08, "K")                                                                        \
  XX(APPEND, 0x09, "KV")                                                                           \
  XX(MULTI_GET, 0x0A, "*K")                                                                        \
  XX(MULTI_SET, 0x0B, "*KV")                                                                       \
  XX(CANCEL_WAIT, 0x0C, "")                                                                        \
  XX(PING, 0x0D, "w")                                                                              \
  XX(QUEUE_PUSH, 0x0E, "KV")                                                                       \
  XX(QUEUE_POP, 0x0F, "K")                                                                         \
  XX(QUEUE_LEN, 0x10, "K")                                                                         \
  XX(LIST_KEYS, 0x11, "")                                                                          \
  XX(BARRIER, 0x12, "Ki")

typedef enum perigee__request_code {
#define XX(_name, _code, _fields) PERIGEE__REQ_##_name = _code,
  PERIGEE__STORE_REQUEST_MAP(XX)
#undef XX
  PERIGEE__REQ_COUNT
} perigee__request_code;

enum {
  PERIGEE__WIRE_MAGIC_SIZE = 4,
  PERIGEE__WIRE_KEY_MAX = 8192,
  PERIGEE__WIRE_VALUE_MAX = 8 << 20,
  PERIGEE__WIRE_LIST_MAX = 131072,
  /* One request with all its lists, and one reply: what both sides are ready to hold. Not part of the protocol. */
  PERIGEE__WIRE_REQUEST_MAX = 256 << 20,
  PERIGEE__WIRE_READY = 0,
  PERIGEE__WIRE_NOT_READY = 1,
  PERIGEE__WIRE_STOP_WAITING = 0,
  PERIGEE__WIRE_WAIT_CANCELED = 1,
};
#define PERIGEE__WIRE_MAGIC "\xCE\xF7\x85\x3C"
/* The one key without "/": how many clients have joined. */
#define PERIGEE__WIRE_INIT_KEY "init/"

#endif
