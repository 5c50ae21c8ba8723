/*
 * What the transport's tests share: worlds of ranks as threads or as processes, checks that may be used in any of them, messages
 * whose bytes say where they belong, and a look at what is left behind.
 *
 * cmocka can only leave the main thread of the main process: everywhere else a failed check ends the process.
 */
#ifndef PERIGEE_TRANSPORT_MESH_TESTING_H
#define PERIGEE_TRANSPORT_MESH_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above */
#include <cmocka.h>

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/loop.h"
#include "transport/frame.h"
#include "transport/mesh.h"

#define MS PERIGEE_NS_PER_MS
#define SEC PERIGEE_NS_PER_SEC

enum {
  RANKS_MAX = 8,
  PATIENCE_S = 20,
  EAGER = PERIGEE_EAGER_MAX,
  LARGE =
      16 *
      EAGER, /* 1 MiB; sizes follow the buffers, so that the build with tiny ones takes the same paths */
  LARGEST = 128 * EAGER /* 8 MiB */
};

/* How much longer things may take in a checked build. */
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SLOWNESS 10
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define SLOWNESS 10
#endif
#endif
#ifndef SLOWNESS
#define SLOWNESS 1
#endif
/* How much later than on an idle machine news may come on one that others load. */
#define LATENESS (20 * SLOWNESS)

/* End the process, from any thread. */
#define CHECKF(_cond, ...)                                                                         \
  do {                                                                                             \
    if (!(_cond)) {                                                                                \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #_cond);                                  \
      fprintf(stderr, __VA_ARGS__);                                                                \
      fprintf(stderr, "\n");                                                                       \
      abort();                                                                                     \
    }                                                                                              \
  } while (0)
#define CHECK(_cond) CHECKF(_cond, "failed")
#define CHECK_CODE(_call, _code)                                                                   \
  do {                                                                                             \
    int _rc_check = (_call);                                                                       \
    CHECKF(_rc_check == (_code), "got %s (%s), expected %s", perigee_err_name(_rc_check),          \
           perigee_last_error()->message, perigee_err_name(_code));                                \
  } while (0)
#define CHECK_OK(_call) CHECK_CODE(_call, 0)

/* ---- what is left ------------------------------------------------------------------------------ */

static inline int count_entries(const char *folder) {
  int n = 0;
  DIR *dir = opendir(folder);
  CHECK(dir != NULL);
  for (struct dirent *e; (e = readdir(dir)) != NULL;)
    n += e->d_name[0] != '.';
  closedir(dir);
  return n;
}

typedef struct leak_mark {
  int fds, threads;
} leak_mark;

static inline leak_mark leak_begin(void) {
  return (leak_mark){count_entries("/proc/self/fd"), count_entries("/proc/self/task")};
}

static inline void leak_check(leak_mark mark) {
  /* A joined thread may show in /proc for a moment: also one that was there when the mark was made. */
  for (int i = 0; i < 200 && count_entries("/proc/self/task") > mark.threads; i++)
    perigee__sleep_ns(5 * MS);
  CHECKF(count_entries("/proc/self/task") <= mark.threads, "threads left");
  CHECKF(count_entries("/proc/self/fd") == mark.fds, "%d descriptors, %d before",
         count_entries("/proc/self/fd"), mark.fds);
}

/* ---- ranks as threads -------------------------------------------------------------------------- */

typedef struct member {
  int me, n;
  perigee__mesh *mesh;
  perigee__fate fate; /* of the group of all ranks, attached */
  void *arg;
  pthread_t thread;
  void (*fn)(struct member *m);
} member;

typedef void (*member_fn)(member *m);

enum {
  GROUP_ALL = 0x4711
};
static const int all_ranks[RANKS_MAX] = {0, 1, 2, 3, 4, 5, 6, 7};

typedef struct world {
  int n;
  perigee__mesh *mesh[RANKS_MAX];
  member member[RANKS_MAX];
} world;

static inline void world_open(world *w, int n, perigee__transport transport) {
  memset(w, 0, sizeof(*w));
  w->n = n;
  CHECK_OK(perigee__mesh_create_local(n, transport, w->mesh));
  for (int r = 0; r < n; r++) {
    member *m = &w->member[r];
    m->me = r;
    m->n = n;
    m->mesh = w->mesh[r];
    CHECK_OK(perigee__fate_init(&m->fate, GROUP_ALL, "all", r, n, all_ranks));
    CHECK_OK(perigee__mesh_attach(m->mesh, &m->fate));
  }
}

static inline void *member_main(void *arg) {
  member *m = arg;
  m->fn(m);
  return NULL;
}

/* fn on every rank at once, each on its own thread, until all have returned. */
static inline void world_run(world *w, member_fn fn, void *arg) {
  for (int r = 0; r < w->n; r++) {
    w->member[r].fn = fn;
    w->member[r].arg = arg;
    CHECK(pthread_create(&w->member[r].thread, NULL, member_main, &w->member[r]) == 0);
  }
  for (int r = 0; r < w->n; r++)
    CHECK(pthread_join(w->member[r].thread, NULL) == 0);
}

static inline void member_leave(member *m) {
  perigee__mesh_detach(m->mesh, &m->fate);
  perigee__mesh_destroy(&m->mesh, perigee__deadline_in(5 * SEC));
  perigee__fate_fini(&m->fate);
}

static inline void world_close(world *w) { world_run(w, member_leave, NULL); }

/* A world made, run and closed, which leaves nothing behind. */
static inline void world_of(int n, perigee__transport transport, member_fn fn, void *arg) {
  leak_mark mark = leak_begin();
  world w;
  world_open(&w, n, transport);
  world_run(&w, fn, arg);
  world_close(&w);
  leak_check(mark);
}

/* ---- messages ---------------------------------------------------------------------------------- */

static inline perigee__key key_of_tag(uint64_t tag) {
  return (perigee__key){.group = GROUP_ALL, .tag = tag, .kind = PERIGEE_KEY_P2P};
}

/* Bytes that differ by message and position. */
static inline void fill(uint8_t *buf, size_t size, uint64_t what) {
  uint64_t x = what * UINT64_C(0x9e3779b97f4a7c15) + 1;
  for (size_t i = 0; i < size; i++) {
    if (i % 8 == 0)
      x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    buf[i] = (uint8_t)(x >> (8 * (i % 8)));
  }
}

static inline bool is_filled(const uint8_t *buf, size_t size, uint64_t what) {
  uint64_t x = what * UINT64_C(0x9e3779b97f4a7c15) + 1;
  for (size_t i = 0; i < size; i++) {
    if (i % 8 == 0)
      x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    if (buf[i] != (uint8_t)(x >> (8 * (i % 8))))
      return false;
  }
  return true;
}

/* Memory of exactly that size, so that a sanitizer sees what is written beside it. */
static inline uint8_t *bytes_new(size_t size) {
  uint8_t *buf = malloc(size > 0 ? size : 1);
  CHECK(buf != NULL);
  memset(buf, 0xee, size > 0 ? size : 1);
  return buf;
}

static inline int64_t patience(void) { return perigee__deadline_in(PATIENCE_S * SEC); }

static inline int wait_one(member *m, perigee__xfer *x, int64_t deadline_ns) {
  return perigee__mesh_wait(m->mesh, &x, 1, &m->fate, deadline_ns);
}

/* Send and wait. */
static inline void send_to(member *m, int peer, uint64_t tag, const void *buf, size_t size) {
  perigee__xfer x = {0};
  perigee__mesh_send(m->mesh, &m->fate, peer, key_of_tag(tag), buf, size, 0, &x);
  CHECK_OK(wait_one(m, &x, patience()));
  CHECKF(x.status == 0, "send to %d: %s", peer, perigee_err_name(x.status));
}

/* Receive and wait; returns the source. */
static inline int recv_from(member *m, int peer, uint64_t tag, void *buf, size_t size) {
  perigee__xfer x = {0};
  perigee__mesh_recv(m->mesh, &m->fate, peer, key_of_tag(tag), buf, size, 0, &x);
  CHECK_OK(wait_one(m, &x, patience()));
  CHECKF(x.status == 0, "receive from %d: %s", peer, perigee_err_name(x.status));
  CHECKF(x.received == size, "%zu bytes, expected %zu", x.received, size);
  return x.peer;
}

static inline void send_filled(member *m, int peer, uint64_t tag, size_t size) {
  uint8_t *buf = bytes_new(size);
  fill(buf, size, tag * 64 + (uint64_t)m->me);
  send_to(m, peer, tag, buf, size);
  free(buf);
}

static inline int recv_filled(member *m, int peer, uint64_t tag, size_t size) {
  uint8_t *buf = bytes_new(size);
  int source = recv_from(m, peer, tag, buf, size);
  CHECKF(is_filled(buf, size, tag * 64 + (uint64_t)source),
         "wrong bytes from %d, tag %llu, size %zu", source, (unsigned long long)tag, size);
  free(buf);
  return source;
}

/* The first n ranks have come here. */
static inline void meet_first(member *m, int n, uint64_t tag) {
  for (int step = 1; step < n; step *= 2) {
    perigee__xfer out = {0}, in = {0}, *both[2] = {&in, &out};
    const perigee__key key = key_of_tag(UINT64_C(0xbabe000000000000) + tag * 16 + (uint64_t)step);
    perigee__mesh_recv(m->mesh, &m->fate, (m->me + n - step) % n, key, NULL, 0, 0, &in);
    perigee__mesh_send(m->mesh, &m->fate, (m->me + step) % n, key, NULL, 0, 0, &out);
    CHECK_OK(perigee__mesh_wait(m->mesh, both, 2, &m->fate, patience()));
    CHECK(in.status == 0 && out.status == 0);
  }
}

/* All ranks have come here. */
static inline void meet(member *m, uint64_t tag) { meet_first(m, m->n, tag); }

/*
 * All others have come here when rank `who` returns, and do not use the group any more: it may fail it. Without the group, whose failing would
 * end this too.
 */
static inline void gather_at(member *m, int who) {
  perigee__xfer x = {0}, *list = &x;
  for (int r = 0; r < m->n; r++) {
    if (m->me == who && r != who)
      perigee__mesh_recv(m->mesh, NULL, r, key_of_tag(UINT64_C(0xdada)), NULL, 0, 0, &x);
    else if (m->me != who && r == who)
      perigee__mesh_send(m->mesh, NULL, who, key_of_tag(UINT64_C(0xdada)), NULL, 0, 0, &x);
    else
      continue;
    CHECK_OK(perigee__mesh_wait(m->mesh, &list, 1, NULL, patience()));
    CHECK(x.status == 0);
  }
}

/* ---- the program ------------------------------------------------------------------------------- */

static inline int begin_test(void **state) {
  (void)state;
  alarm(100 * SLOWNESS); /* a hang ends here */
  return 0;
}

static inline int run_all(const char *name, const struct CMUnitTest *tests, size_t n) {
  /* What libuv and the sanitizers make once in a process is no leak. */
  perigee__loop *loop;
  CHECK_OK(perigee__loop_create("warm-up", &loop));
  perigee__loop_destroy(&loop);
  struct CMUnitTest *with_alarm = malloc(n * sizeof(*tests));
  CHECK(with_alarm != NULL);
  memcpy(with_alarm, tests, n * sizeof(*tests));
  for (size_t i = 0; i < n; i++)
    with_alarm[i].setup_func = begin_test;
  if (getenv("PERIGEE_TEST") != NULL) /* only those that match, '*' and '?' stand for any */
    cmocka_set_test_filter(getenv("PERIGEE_TEST"));
  int failed = _cmocka_run_group_tests(name, with_alarm, n, NULL, NULL);
  free(with_alarm);
  return failed;
}

#endif
