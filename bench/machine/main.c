/*
 * What this machine can do at all, and what bare collectives in plain C take on it: the floors for Perigee's own figures.
 *
 *   bench_machine [--json FILE] [--rounds N] [memory line wake vm tcp proto]
 *
 * Rounds over everything are the outermost loop, so that a disturbance of the machine touches one sample of a row. best: the largest
 * bandwidth, the least time. GB/s = 1e9 bytes of payload per second: a copy of n bytes is n, a[i] += b[i] over n bytes of a is n.
 * On one core the measurements between cores are left out.
 */
#include "machine.h"

#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
  ROWS_MAX = 256,
  ROUNDS_MAX = 64
};

typedef struct row {
  char name[64];
  size_t bytes;
  unit unit;
  double v[ROUNDS_MAX];
  int n;
} row;

static row rows[ROWS_MAX];
static int nrows;

void die(const char *what) {
  perror(what);
  exit(1);
}

void sample(unit u, double value, size_t bytes, const char *fmt, ...) {
  char name[sizeof(rows[0].name)];
  va_list args;
  va_start(args, fmt);
  vsnprintf(name, sizeof(name), fmt, args);
  va_end(args);
  row *r = rows;
  while (r < rows + nrows && (r->bytes != bytes || strcmp(r->name, name) != 0))
    r++;
  if (r == rows + ROWS_MAX || r->n == ROUNDS_MAX)
    die("too many rows");
  if (r == rows + nrows) {
    *r = (row){.bytes = bytes, .unit = u};
    memcpy(r->name, name, sizeof(name));
    nrows++;
  }
  r->v[r->n++] = value;
}

double now_us(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec * 1e6 + (double)ts.tv_nsec * 1e-3;
}

/* ---- cores, memory, processes ----------------------------------------------------------------------- */

static cpu_set_t allowed;

int cores(void) { return CPU_COUNT(&allowed); }

void pin(int core) {
  cpu_set_t set = allowed;
  if (core >= 0) {
    CPU_ZERO(&set);
    int seen = 0;
    for (int c = 0; c < CPU_SETSIZE; c++)
      if (CPU_ISSET(c, &allowed) && seen++ == core)
        CPU_SET(c, &set);
  }
  if (sched_setaffinity(0, sizeof(set), &set) != 0)
    die("sched_setaffinity");
}

void *area(size_t bytes, int shared, int huge) {
  size_t size = bytes + HUGE_PAGE;
  char *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                 MAP_ANONYMOUS | (shared ? MAP_SHARED : MAP_PRIVATE), -1, 0);
  if (p == MAP_FAILED)
    die("mmap");
  /* The aligned part alone is kept. */
  size_t skip = (size_t)(-(uintptr_t)p % HUGE_PAGE);
  if (skip > 0)
    munmap(p, skip);
  size_t keep = (bytes + 4095) / 4096 * 4096;
  if (skip + keep < size)
    munmap(p + skip + keep, size - skip - keep);
  if (huge)
    madvise(p + skip, bytes, MADV_HUGEPAGE);
  return p + skip;
}

void area_free(void *p, size_t bytes) { munmap(p, bytes); }

pid_t child(void (*f)(void *arg), void *arg) {
  fflush(stdout);
  pid_t pid = fork();
  if (pid < 0)
    die("fork");
  if (pid > 0)
    return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  f(arg);
  _exit(0);
}

void reap(pid_t pid) {
  int status;
  if (waitpid(pid, &status, 0) != pid || status != 0) {
    fprintf(stderr, "bench_machine: a child failed\n");
    exit(1);
  }
}

long futex_wait(_Atomic uint32_t *word, uint32_t value) {
  return syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}
long futex_wake(_Atomic uint32_t *word, int n) {
  return syscall(SYS_futex, word, FUTEX_WAKE, n, NULL, NULL, 0);
}

void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

/* ---- results ---------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static const char *const unit_names[] = {"GB/s", "us", "ns"};
static double best(const row *r) { return r->unit == GBPS ? r->v[r->n - 1] : r->v[0]; }

static void print_table(void) {
  printf("%-44s %10s %5s %10s %10s\n", "what", "bytes", "unit", "best", "median");
  for (const row *r = rows; r < rows + nrows; r++) {
    char bytes[24] = "";
    if (r->bytes > 0)
      snprintf(bytes, sizeof(bytes), "%zu", r->bytes);
    printf("%-44s %10s %5s %10.4g %10.4g\n", r->name, bytes, unit_names[r->unit], best(r),
           r->v[r->n / 2]);
  }
}

static void write_json(const char *path) {
  FILE *f = fopen(path, "w");
  if (f == NULL)
    die(path);
  fprintf(f, "{\"cores\": %d, \"rows\": [", cores());
  for (const row *r = rows; r < rows + nrows; r++)
    fprintf(f,
            "%s\n  {\"what\": \"%s\", \"bytes\": %zu, \"unit\": \"%s\", \"best\": %.6g, "
            "\"median\": %.6g}",
            r == rows ? "" : ",", r->name, r->bytes, unit_names[r->unit], best(r), r->v[r->n / 2]);
  fprintf(f, "\n]}\n");
  if (fclose(f) != 0)
    die(path);
}

static const struct {
  const char *name;
  void (*run)(void);
} groups[] = {{"memory", group_memory}, {"line", group_line}, {"wake", group_wake},
              {"vm", group_vm},         {"tcp", group_tcp},   {"proto", group_proto}};
enum {
  GROUPS = sizeof(groups) / sizeof(groups[0])
};

static int usage(void) {
  fprintf(stderr,
          "Usage: bench_machine [--json FILE] [--rounds N] [memory line wake vm tcp proto]\n");
  return 2;
}

int main(int argc, char **argv) {
  const char *json = NULL;
  int rounds = 5, on[GROUPS] = {0}, any = 0;
  for (int i = 1; i < argc; i++) {
    int known = 0;
    if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
      json = argv[++i], known = 1;
    else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
      rounds = atoi(argv[++i]), known = rounds >= 1 && rounds <= ROUNDS_MAX;
    else
      for (int g = 0; g < GROUPS; g++)
        if (strcmp(argv[i], groups[g].name) == 0)
          on[g] = any = known = 1;
    if (!known)
      return usage();
  }
  signal(SIGPIPE, SIG_IGN);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
    die("sched_getaffinity");
  for (int round = 1; round <= rounds; round++)
    for (int g = 0; g < GROUPS; g++)
      if (!any || on[g]) {
        fprintf(stderr, "round %d of %d: %s\n", round, rounds, groups[g].name);
        groups[g].run();
      }
  for (row *r = rows; r < rows + nrows; r++)
    qsort(r->v, (size_t)r->n, sizeof(r->v[0]), by_value);
  print_table();
  if (json != NULL)
    write_json(json);
  return 0;
}
