/* What one machine can do at all: parts of bench_machine. Every measurement adds one sample to its row and is run once per round. */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
  HUGE_PAGE = 2 << 20
};

typedef enum unit {
  GBPS,
  US,
  NS
} unit; /* GBPS: 1e9 bytes/s, larger is better */

/** One sample. name: printf of a row's name; bytes 0: the row has no size. */
void sample(unit u, double value, size_t bytes, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
double now_us(void);
/** Run on this core from now on; core < 0: anywhere. */
void pin(int core);
int cores(void);
/** Zeroed memory, aligned to a huge page; shared with children when shared. huge: ask for huge pages. Ends the program when there is none. */
void *area(size_t bytes, int shared, int huge);
void area_free(void *p, size_t bytes);
_Noreturn void die(const char *what);
/** Fork a child that runs f(arg) and ends. It dies with its parent. */
pid_t child(void (*f)(void *arg), void *arg);
/** Wait for children; ends the program when one failed. */
void reap(pid_t pid);

long futex_wait(_Atomic uint32_t *word, uint32_t value);
long futex_wake(_Atomic uint32_t *word, int n);
/** One round of spinning: a hint to the core where there is one. */
void relax(void);

/* Vectorised, for the widest vectors that the machine has. */
#if defined(__x86_64__) && defined(__clang__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default")))
#elif defined(__x86_64__)
#define WIDE __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#else
#define WIDE
#endif

/* The groups; names as in the command line. */
void group_memory(void); /* copies, sums, first touch */
void group_line(void);   /* a cache line between cores, PAUSE */
void group_wake(void);   /* system calls, yields, wake-ups */
void group_vm(void);     /* process_vm_readv */
void group_tcp(void);    /* loopback */
void group_proto(void);  /* bare collectives */

#endif
