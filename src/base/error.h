/* Setting errors. See include/perigee/error.h for what codes mean. */
#ifndef PERIGEE_BASE_ERROR_H
#define PERIGEE_BASE_ERROR_H

#include <errno.h>

#include <perigee/error.h>

#include "base/attr.h"

/** Fill this thread's last error with code and message (other fields cleared) and return code. */
int perigee__fail(int code, const char *fmt, ...) PERIGEE_PRINTF(2, 3);
/** As perigee__fail with -errno_value as code and ": <strerror>" appended to the message. */
int perigee__fail_errno(int errno_value, const char *fmt, ...) PERIGEE_PRINTF(2, 3);
/** Make *error this thread's last error and return its code. */
int perigee__fail_with(const perigee_error *error);
/** Clear *error to "nothing known": code, rank, op -1 where that is the meaning. */
void perigee__error_init(perigee_error *error);
/** Fill *error with code and message. */
void perigee__error_set(perigee_error *error, int code, const char *fmt, ...) PERIGEE_PRINTF(3, 4);
/** Add a culprit, keeping ranks[] sorted and without duplicates. */
void perigee__error_add_rank(perigee_error *error, int rank);
/** "1,3" of ranks[], "1,3,..." when cut. */
void perigee__error_ranks_text(const perigee_error *error, char *buf, size_t size);
/** Writable last error of this thread, for adding fields after perigee__fail. */
perigee_error *perigee__last_error(void);
/** Names of ops live two layers up; group/ registers its lookup here so that base can print them. */
void perigee__error_set_op_namer(const char *(*namer)(int op));

/** Propagate: int rc = expr; if (rc < 0) return rc. */
#define PERIGEE_TRY(_expr)                                                                         \
  do {                                                                                             \
    int _rc_try = (_expr);                                                                         \
    if (_rc_try < 0)                                                                               \
      return _rc_try;                                                                              \
  } while (0)
/** For unwinding: sets rc (a variable of the function) and jumps. */
#define PERIGEE_TRY_GOTO(_expr, _label)                                                            \
  do {                                                                                             \
    rc = (_expr);                                                                                  \
    if (rc < 0)                                                                                    \
      goto _label;                                                                                 \
  } while (0)

#endif
