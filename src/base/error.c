#include "base/error.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <uv.h>

#include <perigee/version.h>

/* A plain array, no destructor: destruction order at thread exit cannot matter. */
static _Thread_local perigee_error last_error;
static const char *(*op_namer)(int op);

#define STR2(_x) #_x
#define STR(_x) STR2(_x)

const char *perigee_version(void) {
  return STR(PERIGEE_VERSION_MAJOR) "." STR(PERIGEE_VERSION_MINOR) "." STR(PERIGEE_VERSION_PATCH);
}

const char *perigee_err_name(int code) {
  switch (code) {
  case 0:
    return "OK";
#define XX(_name, _number, _text)                                                                  \
  case PERIGEE_##_name:                                                                            \
    return #_name;
    PERIGEE_ERR_MAP(XX)
#undef XX
    /* uv_err_name makes (and leaks) a string for numbers it does not know: ask only for what it does */
#define XX(_name, _text)                                                                           \
  case UV_##_name:                                                                                 \
    return #_name;
    UV_ERRNO_MAP(XX)
#undef XX
  default:
    return "EUNKNOWN";
  }
}

const char *perigee_strerror(int code) {
  switch (code) {
  case 0:
    return "success";
#define XX(_name, _number, _text)                                                                  \
  case PERIGEE_##_name:                                                                            \
    return _text;
    PERIGEE_ERR_MAP(XX)
#undef XX
#define XX(_name, _text)                                                                           \
  case UV_##_name:                                                                                 \
    return _text;
    UV_ERRNO_MAP(XX)
#undef XX
  default:
    return "unknown error";
  }
}

const perigee_error *perigee_last_error(void) { return &last_error; }
perigee_error *perigee__last_error(void) { return &last_error; }

void perigee__error_set_op_namer(const char *(*namer)(int op)) { op_namer = namer; }

void perigee__error_init(perigee_error *error) {
  error->code = 0;
  error->rank = error->op = error->origin = -1;
  error->nranks = 0;
  error->seq = 0;
  error->group[0] = error->message[0] = error->traceback[0] = '\0';
}

int perigee__fail(int code, const char *fmt, ...) {
  char text[sizeof(last_error.message)]; /* the arguments may point into last_error */
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof(text), fmt, ap);
  va_end(ap);
  perigee__error_init(&last_error);
  last_error.code = code;
  memcpy(last_error.message, text, sizeof(text));
  return code;
}

int perigee_error_fail(int code, const char *fmt, ...) {
  char text[sizeof(last_error.message)];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof(text), fmt, ap);
  va_end(ap);
  return perigee__fail(code, "%s", text);
}

int perigee_error_set(perigee_error *error, int code, const char *fmt, ...) {
  char text[sizeof(last_error.message)]; /* the arguments may point into *error */
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof(text), fmt, ap);
  va_end(ap);
  perigee__error_set(error, code, "%s", text);
  return code;
}

int perigee__fail_errno(int errno_value, const char *fmt, ...) {
  char text[sizeof(last_error.message)];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof(text), fmt, ap);
  va_end(ap);
  return perigee__fail(-errno_value, "%s: %s", text, perigee_strerror(-errno_value));
}

int perigee__fail_with(const perigee_error *error) {
  if (error != &last_error)
    memcpy(&last_error, error, sizeof(last_error));
  return error->code;
}

void perigee__error_set(perigee_error *error, int code, const char *fmt, ...) {
  perigee__error_init(error);
  error->code = code;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(error->message, sizeof(error->message), fmt, ap);
  va_end(ap);
}

void perigee__error_add_rank(perigee_error *error, int rank) {
  int at = 0;
  while (at < error->nranks && error->ranks[at] < rank)
    at++;
  if (at < error->nranks && error->ranks[at] == rank)
    return;
  if (error->nranks == PERIGEE_ERR_RANKS_MAX)
    return;
  memmove(&error->ranks[at + 1], &error->ranks[at],
          (size_t)(error->nranks - at) * sizeof(error->ranks[0]));
  error->ranks[at] = rank;
  error->nranks++;
}

void perigee__error_ranks_text(const perigee_error *error, char *buf, size_t size) {
  size_t used = 0;
  if (size > 0)
    buf[0] = '\0';
  for (int i = 0; i < error->nranks && used < size; i++)
    used += (size_t)snprintf(buf + used, size - used, "%s%d", i > 0 ? "," : "", error->ranks[i]);
  if (error->nranks == PERIGEE_ERR_RANKS_MAX && used + 5 < size)
    snprintf(buf + used, size - used, ",...");
}

size_t perigee_error_format(const perigee_error *error, char *buf, size_t size) {
  char head[160] = "", tail[32] = "";
  const char *op = error->op >= 0 && op_namer != NULL ? op_namer(error->op) : NULL;
  if (op != NULL && error->seq > 0)
    snprintf(head, sizeof(head), "%s #%" PRIu64 "%s%s: ", op, error->seq,
             error->group[0] != '\0' ? " on " : "", error->group);
  else if (op != NULL)
    snprintf(head, sizeof(head), "%s%s%s: ", op, error->group[0] != '\0' ? " on " : "",
             error->group);
  else if (error->group[0] != '\0')
    snprintf(head, sizeof(head), "%s: ", error->group);
  if (error->rank >= 0)
    snprintf(tail, sizeof(tail), " (rank %d)", error->rank);
  int n =
      snprintf(buf, size, "%s%s%s", head,
               error->message[0] != '\0' ? error->message : perigee_strerror(error->code), tail);
  return n > 0 ? (size_t)n : 0;
}
