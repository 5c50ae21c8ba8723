/* Reading another process's memory (CMA) beside copying out of shared memory. */
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "machine.h"

typedef struct peer {
  char *data; /* private to the peer, at the same address in both */
  size_t bytes;
  _Atomic uint32_t *word; /* 0: starting, 1: there, 2: may go */
} peer;

static void be_there(void *arg) {
  peer *p = arg;
  pin(cores() > 1 ? 1 : 0);
  memset(p->data, 1, p->bytes); /* copies of its own of all pages */
  atomic_store(p->word, 1);
  futex_wake(p->word, 1);
  while (atomic_load(p->word) == 1)
    futex_wait(p->word, 1);
}

static void measure(size_t bytes, int huge) {
  peer p = {.data = area(bytes, 0, huge), .bytes = bytes, .word = area(4096, 1, 0)};
  char *d = area(bytes, 0, huge);
  memset(p.data, 0, bytes);
  memset(d, 0, bytes);
  pid_t pid = child(be_there, &p);
  pin(0);
  while (atomic_load(p.word) == 0)
    futex_wait(p.word, 0);
  struct iovec to = {d, bytes}, from = {p.data, bytes};
  int calls = bytes <= 65536 ? 500 : bytes <= (1 << 20) ? 50 : 4;
  double us = 0;
  ssize_t got = 0;
  for (int i = -1; i < calls && got >= 0; i++) {
    double started = now_us();
    got = process_vm_readv(pid, &to, 1, &from, 1, 0);
    us = i < 0 ? 0 : us + now_us() - started;
  }
  if (got == (ssize_t)bytes)
    sample(GBPS, (double)bytes * calls / us * 1e-3, bytes, "process_vm_readv%s",
           huge ? ", huge pages" : "");
  else /* not allowed here */
    sample(GBPS, 0, bytes, "process_vm_readv%s", huge ? ", huge pages" : "");
  if (bytes == 4096 && !huge && got >= 0)
    sample(US, us / calls, bytes, "process_vm_readv, one call");
  atomic_store(p.word, 2);
  futex_wake(p.word, 1);
  reap(pid);
  pin(-1);
  area_free(d, bytes);
  area_free(p.data, bytes);
  area_free(p.word, 4096);
}

void group_vm(void) {
  static const size_t sizes[] = {4096, 16384, 65536, 262144, 1 << 20, 16 << 20};
  for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
    measure(sizes[i], 0);
    if (sizes[i] >= 262144)
      measure(sizes[i], 1);
  }
}
