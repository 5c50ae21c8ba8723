/* Environment variables that the library reads, in one table so that `perigee info` and the README can print it. */
#ifndef PERIGEE_BASE_ENV_H
#define PERIGEE_BASE_ENV_H

#include <stdbool.h>
#include <stdint.h>

/* XX(NAME, default as text, help) */
#define PERIGEE_ENV_MAP(XX)                                                                        \
  XX(PERIGEE_LOG, "warn", "log level: error, warn, info, debug")                                   \
  XX(PERIGEE_BACKEND, "native", "stack of a group that names none")                                \
  XX(PERIGEE_TRANSPORT, "auto", "auto, shm or tcp: force the path between ranks")                  \
  XX(PERIGEE_PATH, "auto",                                                                         \
     "force inline, oneshot, twoshot, cma, symmetric or tcp where it can be taken")                \
  XX(PERIGEE_WAIT, "adaptive", "adaptive, spin or park: how ranks wait in shared memory")          \
  XX(PERIGEE_TIMEOUT, "1800", "default timeout of operations in seconds")                          \
  XX(PERIGEE_INIT_TIMEOUT, "300", "timeout of init in seconds")                                    \
  XX(PERIGEE_BIND, "127.0.0.1", "address to listen on and to give to peers")                       \
  XX(PERIGEE_HOST_ID, "",                                                                          \
     "ranks with the same sit on one host (default: boot id, network namespace)")                  \
  XX(PERIGEE_DETERMINISTIC, "0", "1: sum in rank order on every path")                             \
  XX(PERIGEE_SHM_SLOT, "1048576", "bytes of shared memory per rank and group")                     \
  XX(PERIGEE_SEGMENT, "65536", "bytes of one message of a pipelined TCP collective")               \
  XX(PERIGEE_SELECT, "", "algorithms by size that go before the built-in: allreduce:32k-:ring")    \
  XX(PERIGEE_TUNING_FILE, "", "file of such rules, as `perigee tune` writes it")                   \
  XX(PERIGEE_BACKEND_PATH, "", "folders, separated by ':', searched for perigee_<name>.so")

typedef struct perigee__env_entry {
  const char *name, *fallback, *help;
} perigee__env_entry;

/** The table; ends with a NULL name. */
const perigee__env_entry *perigee__env_table(void);

/** Value of a variable of the table, or its default. Never NULL. */
const char *perigee__env(const char *name);
/** As a number; a value that is none is reported once and the default is used. */
int64_t perigee__env_int(const char *name, int64_t min, int64_t max);
/** Seconds (may be fractional) as nanoseconds. */
int64_t perigee__env_seconds(const char *name);

#endif
