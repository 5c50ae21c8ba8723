#include <string.h>
#include <strings.h>

#include <perigee/op.h>

#include "base/attr.h"
#include "tensor/reduce.h"

static const perigee_op_info table[] = {
#define XX(_id, _NAME, _name, _out, _in, _opts, _aliases)                                          \
  [_id] = {PERIGEE_OP_##_NAME, #_name, PERIGEE_FORM_##_out, PERIGEE_FORM_##_in, _opts, _aliases},
    PERIGEE_OP_MAP(XX)
#undef XX
};
_Static_assert(PERIGEE_COUNT(table) == PERIGEE_OP_COUNT, "PERIGEE_OP_COUNT counts the rows");

const perigee_op_info *perigee_op_get(int op) {
  return op >= 0 && op < PERIGEE_OP_COUNT ? &table[op] : NULL;
}

const char *perigee_op_name(int op) {
  return op >= 0 && op < PERIGEE_OP_COUNT ? table[op].name : "?";
}

/* Whether name is one of the words of `words`, which are separated by blanks. */
static bool has_word(const char *words, const char *name) {
  size_t len = strlen(name);
  for (const char *at = words; *at != '\0';) {
    const char *end = strchr(at, ' ');
    size_t n = end != NULL ? (size_t)(end - at) : strlen(at);
    if (n == len && memcmp(at, name, n) == 0)
      return true;
    at += end != NULL ? n + 1 : n;
  }
  return false;
}

int perigee_op_find(const char *name) {
  for (int i = 0; i < PERIGEE_OP_COUNT; i++)
    if (strcmp(table[i].name, name) == 0)
      return i;
  for (int i = 0; i < PERIGEE_OP_COUNT; i++)
    if (has_word(table[i].aliases, name))
      return i;
  return -1;
}

static const char *const redop_names[] = {
#define XX(_id, _NAME, _name) [_id] = #_name,
    PERIGEE_REDOP_MAP(XX)
#undef XX
};

const char *perigee_redop_name(int kind) {
  return kind >= 0 && kind < PERIGEE_REDOP_COUNT ? redop_names[kind] : "?";
}

int perigee_redop_find(const char *name) {
  for (int i = 0; i < PERIGEE_REDOP_COUNT; i++)
    if (strcmp(redop_names[i], name) == 0)
      return i;
  return strcmp(name, "prod") == 0 ? PERIGEE_REDOP_PRODUCT : -1;
}

bool perigee_redop_defined(int kind, perigee_dtype dtype) {
  return kind == PERIGEE_REDOP_CUSTOM || perigee__redop_defined(kind, dtype);
}

void perigee_request_init(perigee_request *req, int op) {
  memset(req, 0, sizeof(*req));
  req->size = sizeof(*req);
  req->op = op;
  req->peer = -1;
  req->redop.factor = 1.0;
  req->timeout_ns = PERIGEE_TIMEOUT_DEFAULT;
}
