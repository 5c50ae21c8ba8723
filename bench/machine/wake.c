/* A cache line between two cores; system calls; what it costs to give a turn to somebody else. */
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "machine.h"

/* How a turn is given and waited for. */
typedef enum how {
  SPIN,
  SPIN_PAUSE,
  YIELD,
  FUTEX,
  EVENTFD,
  EVENTFD_EPOLL
} how;

/* Two turns on lines of their own, or (one_line) on the same. */
typedef struct table {
  _Atomic uint32_t a;
  char pad[124];
  _Atomic uint32_t b;
  char pad2[124];
} table;

typedef struct game {
  how how;
  int core[2], one_line, turns;
  table *t;
  int fd[2], epoll[2]; /* [who waits] */
} game;

static void give(const game *g, int to, _Atomic uint32_t *word, uint32_t value) {
  uint64_t one = 1;
  if (g->how == EVENTFD || g->how == EVENTFD_EPOLL) {
    if (write(g->fd[to], &one, 8) != 8)
      die("eventfd");
    return;
  }
  /* pairs with await's acquire */
  atomic_store_explicit(word, value, memory_order_release);
  if (g->how == FUTEX)
    futex_wake(word, 1);
}

static void await(const game *g, int me, _Atomic uint32_t *word, uint32_t value) {
  uint64_t count;
  struct epoll_event event;
  if (g->how == EVENTFD_EPOLL && epoll_wait(g->epoll[me], &event, 1, -1) != 1)
    die("epoll_wait");
  if (g->how == EVENTFD || g->how == EVENTFD_EPOLL) {
    if (read(g->fd[me], &count, 8) != 8)
      die("eventfd");
    return;
  }
  uint32_t seen;
  while ((seen = atomic_load_explicit(word, memory_order_acquire)) != value) {
    if (g->how == SPIN_PAUSE)
      relax();
    else if (g->how == YIELD)
      sched_yield();
    else if (g->how == FUTEX)
      futex_wait(word, seen);
  }
}

static void answer(void *arg) {
  game *g = arg;
  pin(g->core[1]);
  _Atomic uint32_t *back = g->one_line ? &g->t->a : &g->t->b;
  for (uint32_t i = 0; i < (uint32_t)g->turns; i++) {
    await(g, 1, &g->t->a, 2 * i + 1);
    give(g, 0, back, 2 * i + 2);
  }
}

/* Microseconds of a round trip. */
static double play(game *g) {
  g->t = area(sizeof(table), 1, 0);
  for (int i = 0; i < 2; i++) {
    g->fd[i] = eventfd(0, EFD_CLOEXEC);
    g->epoll[i] = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN};
    if (g->fd[i] < 0 || g->epoll[i] < 0 || epoll_ctl(g->epoll[i], EPOLL_CTL_ADD, g->fd[i], &event))
      die("eventfd");
  }
  pid_t other = child(answer, g);
  pin(g->core[0]);
  _Atomic uint32_t *back = g->one_line ? &g->t->a : &g->t->b;
  const uint32_t warm = (uint32_t)g->turns / 10;
  double started = 0;
  for (uint32_t i = 0; i < (uint32_t)g->turns; i++) {
    if (i == warm)
      started = now_us();
    give(g, 1, &g->t->a, 2 * i + 1);
    await(g, 0, back, 2 * i + 2);
  }
  double us = (now_us() - started) / (g->turns - (int)warm);
  reap(other);
  pin(-1);
  area_free(g->t, sizeof(table));
  for (int i = 0; i < 2; i++) {
    close(g->fd[i]);
    close(g->epoll[i]);
  }
  return us;
}

void group_line(void) {
  const int n = 200000;
  double started = now_us();
  for (int i = 0; i < n; i++)
    relax();
  sample(NS, (now_us() - started) * 1e3 / n, 0, "PAUSE");
  if (cores() < 2)
    return;
  game g = {.how = SPIN, .core = {0, 1}, .one_line = 1, .turns = 50000};
  sample(NS, play(&g) * 1e3, 0, "round trip of one cache line");
  g.one_line = 0;
  sample(NS, play(&g) * 1e3, 0, "round trip over two lines");
  g.how = SPIN_PAUSE;
  sample(NS, play(&g) * 1e3, 0, "round trip over two lines, PAUSE");
}

static void calls(void) {
  const int n = 50000;
  _Atomic uint32_t word = 0;
  double started = now_us();
  for (int i = 0; i < n; i++)
    syscall(SYS_getppid);
  sample(NS, (now_us() - started) * 1e3 / n, 0, "a system call");
  started = now_us();
  for (int i = 0; i < n; i++)
    sched_yield();
  sample(NS, (now_us() - started) * 1e3 / n, 0, "sched_yield, nobody else");
  started = now_us();
  for (int i = 0; i < n; i++)
    futex_wake(&word, 1);
  sample(NS, (now_us() - started) * 1e3 / n, 0, "futex wake of nobody");
  started = now_us();
  for (int i = 0; i < n; i++)
    (void)now_us();
  sample(NS, (now_us() - started) * 1e3 / n, 0, "reading the clock");
}

static void yield_forever(void *arg) {
  (void)arg;
  pin(0);
  for (;;)
    sched_yield();
}

/* n processes on one core that do nothing but yield: one switch. */
static void yields(int n) {
  pid_t others[8];
  for (int i = 0; i + 1 < n; i++)
    others[i] = child(yield_forever, NULL);
  pin(0);
  const int turns = 5000;
  for (int i = 0; i < 200; i++)
    sched_yield();
  double started = now_us();
  for (int i = 0; i < turns; i++)
    sched_yield();
  sample(US, (now_us() - started) / turns / n, 0, "sched_yield to another, %d on one core", n);
  for (int i = 0; i + 1 < n; i++) {
    kill(others[i], SIGKILL);
    waitpid(others[i], NULL, 0);
  }
  pin(-1);
}

void group_wake(void) {
  static const struct {
    const char *name;
    how how;
    int turns;
  } ways[] = {{"futex", FUTEX, 10000},
              {"eventfd, read", EVENTFD, 10000},
              {"eventfd, epoll", EVENTFD_EPOLL, 10000},
              {"yielding", YIELD, 20000}};
  calls();
  yields(2);
  yields(8);
  for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++)
    for (int other = 0; other < 2 && other < cores(); other++) {
      game g = {.how = ways[i].how, .core = {0, other}, .turns = ways[i].turns};
      sample(US, play(&g) / 2, 0, "wake-up by %s, %s", ways[i].name,
             other ? "two cores" : "same core");
    }
}
