/*
 * Errors: one list, stable numbers, grouped by the largest thing that is unusable afterwards.
 *
 * Functions return 0 on success and a negative code on failure. Codes from -1 to -4095 are libuv or
 * system codes (-errno) passed through unchanged; Perigee's own are -10001 and below.
 * A function that fails at once leaves the detail in the calling thread's perigee_last_error();
 * an operation that fails later leaves it in its work (perigee_work_error()).
 * A call that returned an error never runs its callback, and leaves its output pointers unset.
 */
#ifndef PERIGEE_ERROR_H
#define PERIGEE_ERROR_H

#include <stddef.h>
#include <stdint.h>

#include "export.h"

/*     name          number  text                                        what the caller does */
#define PERIGEE_ERR_MAP(XX)                                                                        \
  /* this call: fix the arguments, or try again */                                                 \
  XX(EINVAL, -10001, "invalid argument")                                                           \
  XX(ESHAPE, -10002, "shape does not fit")                                                         \
  XX(EDTYPE, -10003, "dtype does not fit")                                                         \
  XX(ERANGE, -10004, "value out of range")                                                         \
  XX(ENOTSUP, -10005, "not supported")                                                             \
  XX(EAGAIN, -10006, "try again")                                                                  \
  XX(ENOMEM, -10007, "out of memory")                                                              \
  XX(ESTATE, -10008, "not possible in this state")                                                 \
  XX(EDEADLK, -10009, "would deadlock")                                                            \
  XX(ENOENT, -10010, "not found")                                                                  \
  XX(EEXIST, -10011, "exists already")                                                             \
  XX(ELIMIT, -10012, "limit reached")                                                              \
  XX(EFORKED, -10013, "not usable in a forked child")                                              \
  /* this operation: the group stays usable where the text says so */                              \
  XX(ETIMEDOUT, -10101, "timed out")                                                               \
  XX(ECANCELED, -10102, "canceled")                                                                \
  XX(EMISMATCH, -10103, "ranks called different operations")                                       \
  XX(ETRUNC, -10104, "message longer than the buffer")                                             \
  /* one peer: rebuild the group */                                                                \
  XX(EPEERDEAD, -10201, "peer died")                                                               \
  XX(EPEERCLOSED, -10202, "peer closed its group")                                                 \
  XX(EPROTO, -10203, "protocol error")                                                             \
  XX(EVERSION, -10204, "version does not fit")                                                     \
  XX(EUNREACH, -10205, "peer cannot be reached")                                                   \
  /* group or store: close it and make a new one */                                                \
  XX(EABORTED, -10301, "group was aborted")                                                        \
  XX(ECLOSED, -10302, "closed")                                                                    \
  XX(ESTORE, -10303, "store failed")                                                               \
  XX(ERENDEZVOUS, -10304, "rendezvous failed")                                                     \
  XX(ENOSHM, -10305, "no shared memory")                                                           \
  XX(ECONFIG, -10306, "ranks disagree on the configuration")                                       \
  XX(EDUPRANK, -10307, "rank is taken")                                                            \
  /* Lua */                                                                                        \
  XX(ELUA, -10401, "error in Lua")                                                                 \
  XX(ELUASTATE, -10402, "interpreter is closed")                                                   \
  XX(ELUATYPE, -10403, "Lua returned the wrong type")                                              \
  /* us */                                                                                         \
  XX(EBUG, -10901, "internal error")

typedef enum perigee_err {
  PERIGEE_OK = 0,
#define XX(_name, _number, _text) PERIGEE_##_name = _number,
  PERIGEE_ERR_MAP(XX)
#undef XX
} perigee_err;

#define PERIGEE_ERR_RANKS_MAX 32

/**
 * What went wrong, as a plain value: it may be copied and outlives what it speaks of.
 * Fields that do not apply are 0, "" or -1 as noted.
 */
typedef struct perigee_error {
  int code;                         /* perigee_err or -errno */
  int rank;                         /* who reports: rank in the group, -1 unknown */
  int op;                           /* perigee_op, -1 none */
  int origin;                       /* rank that saw the first cause, -1 unknown or self */
  int nranks;                       /* culprits in ranks[]: missing, dead, different */
  int ranks[PERIGEE_ERR_RANKS_MAX]; /* ascending, ranks in the group */
  uint64_t seq;                     /* the operation's number on its group, 0 none */
  char group[64];                   /* group name */
  char message[512];                /* one line, without op, seq and group */
  char traceback[2048];             /* Lua traceback where a script raised */
} perigee_error;

/** "EINVAL" for PERIGEE_EINVAL, libuv's name for its codes, "EUNKNOWN" otherwise. Static memory. */
PERIGEE_API const char *perigee_err_name(int code);

/** Short text of a code. Static memory. */
PERIGEE_API const char *perigee_strerror(int code);

/**
 * The error of the last call that failed on this thread.
 * Owns: borrowed until the next failing call on this thread. Never NULL; code is 0 before any failure.
 */
PERIGEE_API const perigee_error *perigee_last_error(void);

/**
 * One line: "allreduce #42 on world: timed out after 5.0 s, missing ranks 1,3 (rank 0)".
 * Writes at most size bytes with the terminator and returns the length that would have been written.
 */
PERIGEE_API size_t perigee_error_format(const perigee_error *error, char *buf, size_t size);

/* ---- for who implements backends, reduce functions and futures -------------------------------------- */

/** Fill this thread's last error with code and message (one line; other fields cleared) and return code:
 *  `return perigee_error_fail(PERIGEE_ENOTSUP, "no GPU %d", n);` */
PERIGEE_API int perigee_error_fail(int code, const char *fmt, ...) PERIGEE_PRINTF(2, 3);
/** Fill *error with code and message; the other fields become "unknown". For ops->run and perigee_future_set_error. Returns code. */
PERIGEE_API int perigee_error_set(perigee_error *error, int code, const char *fmt, ...)
    PERIGEE_PRINTF(3, 4);

#endif
