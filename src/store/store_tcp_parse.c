#include "store/store_tcp_parse.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#ifdef PERIGEE_HOSTILE
enum {
  TEXT_KEEP = 0,
  SPANS_KEEP = 0,
  FIRST_SPANS = 1
};
#else
/* Memory a connection keeps between requests. */
enum {
  TEXT_KEEP = 64 << 10,
  SPANS_KEEP = 64,
  FIRST_SPANS = 8
};
#endif

static const struct {
  const char *name, *fields;
} requests[PERIGEE__REQ_COUNT] = {
#define XX(_name, _code, _fields) [_code] = {#_name, _fields},
    PERIGEE__STORE_REQUEST_MAP(XX)
#undef XX
};

const char *perigee__request_name(unsigned code) {
  return code < PERIGEE__REQ_COUNT ? requests[code].name : "?";
}

void perigee__parser_init(perigee__parser *p) { *p = (perigee__parser){.validated = false}; }

void perigee__parser_fini(perigee__parser *p) {
  perigee__buf_fini(&p->text);
  free(p->spans);
  p->spans = NULL;
}

static void start(perigee__parser *p) {
  perigee__buf_reset(&p->text, TEXT_KEEP);
  if (p->spans_cap > SPANS_KEEP) {
    free(p->spans);
    p->spans = NULL;
    p->spans_cap = 0;
  }
  p->nspans = 0;
  p->field = p->loop = NULL;
  p->in_body = p->done = false;
  p->nfixed = 0;
  p->count = p->left = 0;
}

/* The current field is read: go to the next one, or round the list once more. */
static void advance(perigee__parser *p) {
  p->nfixed = 0;
  p->in_body = false;
  p->field++;
  if (*p->field == '\0' && p->loop != NULL && --p->left > 0)
    p->field = p->loop;
  p->done = *p->field == '\0';
}

static int take_code(perigee__parser *p, unsigned char code) {
  if (!p->validated && code != PERIGEE__REQ_VALIDATE)
    return perigee__fail(PERIGEE_EPROTO, "first byte is %02x, no handshake", code);
  if (p->validated && (code == PERIGEE__REQ_VALIDATE || code >= PERIGEE__REQ_COUNT))
    return perigee__fail(PERIGEE_EPROTO, "request code %02x", code);
  p->code = code;
  p->field = requests[code].fields;
  p->done = *p->field == '\0';
  return 0;
}

static int add_span(perigee__parser *p, size_t size) {
  if (p->nspans == p->spans_cap) {
    size_t cap = p->spans_cap > 0 ? p->spans_cap * 2 : FIRST_SPANS;
    perigee__span *spans = realloc(p->spans, cap * sizeof(*spans));
    if (spans == NULL)
      return perigee__fail(PERIGEE_ENOMEM, "no memory for %zu keys and values", cap);
    p->spans = spans;
    p->spans_cap = cap;
  }
  p->spans[p->nspans++] = (perigee__span){.at = p->text.size, .size = size};
  return 0;
}

static int too_long(const perigee__parser *p, const char *what, uint64_t n, uint64_t max) {
  return perigee__fail(PERIGEE_EPROTO, "%s: %s of %" PRIu64 ", at most %" PRIu64,
                       perigee__request_name(p->code), what, n, max);
}

/* The length of a key or value has arrived. */
static int take_length(perigee__parser *p, uint64_t n) {
  uint64_t max = *p->field == 'K' ? PERIGEE__WIRE_KEY_MAX : PERIGEE__WIRE_VALUE_MAX;
  if (n > max)
    return too_long(p, *p->field == 'K' ? "key" : "value", n, max);
  if (p->text.size + n > PERIGEE__WIRE_REQUEST_MAX)
    return too_long(p, "request", p->text.size + n, PERIGEE__WIRE_REQUEST_MAX);
  PERIGEE_TRY(add_span(p, (size_t)n));
  p->in_body = true;
  p->body_left = (size_t)n;
  if (n == 0)
    advance(p);
  return 0;
}

static int take_list(perigee__parser *p, uint64_t n) {
  if (n > PERIGEE__WIRE_LIST_MAX)
    return too_long(p, "list", n, PERIGEE__WIRE_LIST_MAX);
  p->count = p->left = n;
  p->loop = p->field + 1;
  advance(p);
  if (n == 0)
    p->done = true;
  return 0;
}

/* All bytes of a fixed-size field or a length have arrived. */
static int take_fixed(perigee__parser *p) {
  switch (*p->field) {
  case 'm':
    p->validated = true; /* each byte was checked as it came */
    advance(p);
    return 0;
  case 'w':
    p->word = perigee__le32(p->fixed);
    advance(p);
    return 0;
  case 'i':
    p->number = (int64_t)perigee__le64(p->fixed);
    advance(p);
    return 0;
  case '*':
    return take_list(p, perigee__le64(p->fixed));
  default:
    return take_length(p, perigee__le64(p->fixed));
  }
}

static int take_byte(perigee__parser *p, unsigned char byte) {
  if (*p->field == 'm' && byte != (unsigned char)PERIGEE__WIRE_MAGIC[p->nfixed])
    return perigee__fail(PERIGEE_EPROTO, "byte %u of the handshake is %02x", p->nfixed + 1, byte);
  p->fixed[p->nfixed++] = byte;
  unsigned want = *p->field == 'm' || *p->field == 'w' ? 4 : 8;
  return p->nfixed == want ? take_fixed(p) : 0;
}

static int take_body(perigee__parser *p, const char *data, size_t size, size_t *used_p) {
  size_t n = size < p->body_left ? size : p->body_left;
  perigee__buf_put(&p->text, data, n);
  if (p->text.failed)
    return perigee__fail(PERIGEE_ENOMEM, "%s: no memory for what arrived",
                         perigee__request_name(p->code));
  *used_p += n;
  p->body_left -= n;
  if (p->body_left == 0)
    advance(p);
  return 0;
}

int perigee__parser_feed(perigee__parser *p, const void *data, size_t size, size_t *used_p) {
  const char *bytes = data;
  *used_p = 0;
  if (p->done)
    start(p);
  while (*used_p < size && !p->done) {
    if (p->in_body) {
      PERIGEE_TRY(take_body(p, bytes + *used_p, size - *used_p, used_p));
      continue;
    }
    unsigned char byte = (unsigned char)bytes[(*used_p)++];
    PERIGEE_TRY(p->field == NULL ? take_code(p, byte) : take_byte(p, byte));
  }
  return p->done;
}
