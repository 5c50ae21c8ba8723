/* Bandwidth: copies, sums of several inputs, what another core has just written, first touch. */
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
  INPUTS_MAX = 8,
  APART = 960 /* bytes that inputs are moved against each other */
};

/* d := f(s[0..n-1]) over so many bytes. */
typedef void kernel(char *d, char *const *s, size_t bytes);

static void copy_libc(char *d, char *const *s, size_t bytes) { memcpy(d, s[0], bytes); }

#if defined(__x86_64__)
static void copy_movsb(char *d, char *const *s, size_t bytes) {
  const char *from = s[0];
  __asm__ volatile("rep movsb" : "+D"(d), "+S"(from), "+c"(bytes) : : "memory");
}
/* Stores that go past the caches. */
static void copy_nt(char *d, char *const *s, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64)
    for (size_t k = 0; k < 64; k += 16)
      _mm_stream_si128((__m128i *)(void *)(d + i + k),
                       _mm_load_si128((const __m128i *)(const void *)(s[0] + i + k)));
  _mm_sfence();
}
#endif

WIDE static void read_all(char *d, char *const *s, size_t bytes) {
  const uint64_t *from = (const void *)s[0];
  uint64_t sum = 0;
  for (size_t i = 0; i < bytes / 8; i++)
    sum += from[i];
  *(volatile uint64_t *)(void *)d = sum;
}

WIDE static void add_floats(float *restrict a, const float *restrict b, size_t n) {
  for (size_t i = 0; i < n; i++)
    a[i] += b[i];
}
static void add(char *d, char *const *s, size_t bytes) {
  add_floats((void *)d, (const void *)s[0], bytes / 4);
}

WIDE static void sum2(float *restrict d, float *const *s, size_t n) {
  const float *restrict a = s[0], *restrict b = s[1];
  for (size_t i = 0; i < n; i++)
    d[i] = a[i] + b[i];
}
WIDE static void sum4(float *restrict d, float *const *s, size_t n) {
  const float *restrict a = s[0], *restrict b = s[1], *restrict c = s[2], *restrict e = s[3];
  for (size_t i = 0; i < n; i++)
    d[i] = a[i] + b[i] + c[i] + e[i];
}
WIDE static void sum8(float *restrict d, float *const *s, size_t n) {
  const float *restrict a = s[0], *restrict b = s[1], *restrict c = s[2], *restrict e = s[3];
  const float *restrict f = s[4], *restrict g = s[5], *restrict h = s[6], *restrict j = s[7];
  for (size_t i = 0; i < n; i++)
    d[i] = a[i] + b[i] + c[i] + e[i] + f[i] + g[i] + h[i] + j[i];
}
#define SUM(_n)                                                                                    \
  static void reduce##_n(char *d, char *const *s, size_t bytes) {                                  \
    float *in[INPUTS_MAX];                                                                         \
    for (int i = 0; i < _n; i++)                                                                   \
      in[i] = (void *)s[i];                                                                        \
    sum##_n((void *)d, in, bytes / 4);                                                             \
  }
SUM(2)
SUM(4)
SUM(8)

/* ---- one or two cores at once -------------------------------------------------------------------------- */

typedef struct job {
  kernel *f;
  size_t bytes;
  int core, inputs, huge;
  pthread_barrier_t *start;
  double gbps;
} job;

static void *job_main(void *arg) {
  job *j = arg;
  pin(j->core);
  size_t each = j->bytes + 8192;
  char *d = area(each, 0, j->huge), *s[INPUTS_MAX];
  memset(d, 0, each);
  for (int i = 0; i < j->inputs; i++) {
    char *p = area(each, 0, j->huge);
    memset(p, 0, each);
    s[i] = p + APART * (i + 1); /* not the same place in every page */
  }
  j->f(d, s, j->bytes);
  pthread_barrier_wait(j->start);
  double started = now_us(), us;
  size_t calls = 0;
  do {
    j->f(d, s, j->bytes);
    calls++;
    us = now_us() - started;
  } while (us < 20e3);
  j->gbps = (double)j->bytes * (double)calls / us * 1e-3;
  pthread_barrier_wait(j->start); /* nobody stops early */
  area_free(d, each);
  for (int i = 0; i < j->inputs; i++)
    area_free(s[i] - APART * (i + 1), each);
  return NULL;
}

static void measure(const char *name, kernel *f, size_t bytes, int ncores, int inputs, int huge) {
  if (ncores > cores())
    return;
  pthread_barrier_t start;
  pthread_barrier_init(&start, NULL, (unsigned)ncores);
  job jobs[2];
  pthread_t threads[2];
  for (int c = 0; c < ncores; c++) {
    jobs[c] = (job){f, bytes, c, inputs, huge, &start, 0};
    if (pthread_create(&threads[c], NULL, job_main, &jobs[c]) != 0)
      die("pthread_create");
  }
  double total = 0;
  for (int c = 0; c < ncores; c++) {
    pthread_join(threads[c], NULL);
    total += jobs[c].gbps;
  }
  pthread_barrier_destroy(&start);
  sample(GBPS, total, bytes, "%s, %s%s", name, ncores == 1 ? "one core" : "two cores together",
         huge ? ", huge pages" : "");
}

/* ---- what the other core has just written --------------------------------------------------------------- */

typedef struct fresh {
  _Atomic int turn; /* 0: to be written, 1: to be read */
  char *data;
  size_t bytes;
  int rounds;
} fresh;

static void *fresh_writer(void *arg) {
  fresh *x = arg;
  pin(0);
  for (int i = 0; i < x->rounds; i++) {
    while (atomic_load_explicit(&x->turn, memory_order_acquire) != 0)
      relax();
    memset(x->data, i, x->bytes);
    atomic_store_explicit(&x->turn, 1, memory_order_release);
  }
  return NULL;
}

static void measure_fresh(const char *name, kernel *f, size_t bytes) {
  char *d = area(bytes, 0, 0);
  fresh x = {.data = area(bytes, 0, 0), .bytes = bytes, .rounds = bytes <= 262144 ? 200 : 20};
  memset(d, 0, bytes);
  pthread_t writer;
  if (pthread_create(&writer, NULL, fresh_writer, &x) != 0)
    die("pthread_create");
  pin(1);
  double us = 0;
  for (int i = 0; i < x.rounds; i++) {
    while (atomic_load_explicit(&x.turn, memory_order_acquire) != 1)
      relax();
    double started = now_us();
    f(d, &x.data, bytes);
    us += now_us() - started;
    atomic_store_explicit(&x.turn, 0, memory_order_release);
  }
  pthread_join(writer, NULL);
  pin(-1);
  sample(GBPS, (double)bytes * x.rounds / us * 1e-3, bytes, "%s what another core has written",
         name);
  area_free(d, bytes);
  area_free(x.data, bytes);
}

/* ---- first touch ------------------------------------------------------------------------------------------ */

static void touch(const char *name, int shared, int huge) {
  size_t bytes = 32 << 20;
  char *p = area(bytes, shared, huge);
  double started = now_us();
  for (size_t i = 0; i < bytes; i += 4096)
    p[i] = 1;
  sample(NS, (now_us() - started) * 1e3 / (double)(bytes / 4096), 0, "first touch of a page, %s",
         name);
  area_free(p, bytes);
}

static void touch_memfd(void) {
  size_t bytes = 32 << 20;
  int fd = memfd_create("bench", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, (off_t)bytes) != 0)
    die("memfd_create");
  char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED)
    die("mmap");
  double started = now_us();
  for (size_t i = 0; i < bytes; i += 4096)
    p[i] = 1;
  sample(NS, (now_us() - started) * 1e3 / (double)(bytes / 4096), 0,
         "first touch of a page, memfd");
  munmap(p, bytes);
  close(fd);
}

void group_memory(void) {
  static const size_t sizes[] = {16384, 262144, 4 << 20, 64 << 20}; /* L1, L2, L3, DRAM */
  static const struct {
    const char *name;
    kernel *f;
    int inputs;
  } kernels[] = {
    {"read", read_all, 1},
    {"memcpy", copy_libc, 1},
#if defined(__x86_64__)
    {"copy, rep movsb", copy_movsb, 1},
    {"copy, non-temporal stores", copy_nt, 1},
#endif
    {"a += b", add, 1},
    {"sum of 2", reduce2, 2},
    {"sum of 4", reduce4, 4},
    {"sum of 8", reduce8, 8}
  };
  for (size_t k = 0; k < sizeof(kernels) / sizeof(kernels[0]); k++)
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++)
      for (int n = 1; n <= 2; n++)
        measure(kernels[k].name, kernels[k].f, sizes[s], n, kernels[k].inputs, 0);
  measure("memcpy", copy_libc, 64 << 20, 1, 1, 1);
  measure("a += b", add, 64 << 20, 1, 1, 1);
  if (cores() >= 2)
    for (size_t s = 1; s < sizeof(sizes) / sizeof(sizes[0]) - 1; s++) {
      measure_fresh("copy", copy_libc, sizes[s]);
      measure_fresh("add", add, sizes[s]);
    }
  touch("private", 0, 0);
  touch("private, huge pages", 0, 1);
  touch("shared", 1, 0);
  touch_memfd();
}
