/*
 * Bytes to requests, pure and incremental: the same bytes give the same requests however they are cut.
 *
 * Nothing is believed before it is checked, and nothing is allocated because a peer said so: a length is held against its
 * limit when its last byte arrives, and memory grows with the bytes that really come (to at most six times of them; the
 * worst are empty keys).
 */
#ifndef PERIGEE_STORE_TCP_PARSE_H
#define PERIGEE_STORE_TCP_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/store_buf.h"
#include "store/store_tcp_proto.h"

/* Where a key or value is in the parser's text. */
typedef struct perigee__span {
  size_t at, size;
} perigee__span;

typedef struct perigee__parser {
  bool validated; /* the handshake has been seen */
  /* the request, valid after feed returned 1 and until the next feed */
  uint8_t code;
  uint64_t count; /* of the list */
  int64_t number; /* field i */
  uint32_t word;  /* field w */
  size_t nspans;
  perigee__span *spans; /* keys and values in order */
  perigee__buf text;
  /* progress */
  size_t spans_cap;
  bool done;         /* the request above is whole: the next feed starts a new one */
  const char *field; /* the field being read, NULL: the code byte is */
  const char *loop;  /* first field of the list */
  uint64_t left;     /* rounds of the list still to come, with this one */
  bool in_body;      /* within the bytes of a key or value */
  size_t body_left;
  unsigned nfixed; /* bytes of a fixed-size field, or of a length */
  unsigned char fixed[8];
} perigee__parser;

void perigee__parser_init(perigee__parser *p);
void perigee__parser_fini(perigee__parser *p);
/**
 * Take bytes up to the end of the current request. *used_p: how many were taken, also on failure.
 * Returns 1 when a request is whole, 0 when more bytes are needed, or EPROTO, ENOMEM: close the connection.
 */
int perigee__parser_feed(perigee__parser *p, const void *data, size_t size, size_t *used_p);

static inline const char *perigee__parser_text(const perigee__parser *p, size_t span) {
  return p->spans[span].size > 0 ? p->text.data + p->spans[span].at : "";
}
/** "SET", or "?" for a code that is none. */
const char *perigee__request_name(unsigned code);

#endif
