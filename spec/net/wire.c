/*
 * A bad wire between two network namespaces: packets are late, and some are lost.
 *
 *   net_wire NAMESPACE NAMESPACE DELAY_MS LOSSES_PER_1000
 *
 * Makes a device `wire0` in each (a path as /run/netns/NAME), says "up" when both are there, and carries what enters one
 * to the other until SIGTERM; then says how many packets were carried and lost. The devices go with the process. What tc's
 * netem does, for kernels that do not have it. Losses come from a fixed seed: a run loses as many as the next one.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
  PACKET_MAX = 2048, /* more than the devices' 1500 */
  QUEUE_MAX = 4096   /* packets under way; beyond that they are lost, as on any wire */
};

typedef struct packet {
  int64_t due_ns;
  int to; /* descriptor */
  size_t size;
  uint8_t bytes[PACKET_MAX];
} packet;

/* The delay is the same for all: first in, first out. */
static packet queue[QUEUE_MAX];
static unsigned first, count;
static unsigned long carried, lost;
static volatile sig_atomic_t ended;

static void on_term(int signo) {
  (void)signo;
  ended = 1;
}

static _Noreturn void die(const char *what) {
  fprintf(stderr, "net_wire: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static uint32_t draw(void) { /* xorshift */
  static uint32_t x = 2463534242;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  return x;
}

static int device_in(const char *space) {
  int ns = open(space, O_RDONLY | O_CLOEXEC);
  if (ns < 0 || setns(ns, CLONE_NEWNET) != 0)
    die(space);
  close(ns);
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    die("/dev/net/tun");
  struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
  snprintf(request.ifr_name, sizeof(request.ifr_name), "wire0");
  if (ioctl(fd, TUNSETIFF, &request) != 0)
    die("TUNSETIFF");
  return fd;
}

static void take_in(int from, int to, int64_t delay_ns, unsigned losses) {
  for (;;) {
    packet spill;
    packet *p = count < QUEUE_MAX ? &queue[(first + count) % QUEUE_MAX] : &spill;
    ssize_t n = read(from, p->bytes, sizeof(p->bytes));
    if (n <= 0)
      return;
    if (p == &spill || draw() % 1000 < losses) {
      lost++;
      continue;
    }
    p->due_ns = now_ns() + delay_ns;
    p->to = to;
    p->size = (size_t)n;
    count++;
  }
}

static void give_out(void) {
  for (; count > 0 && queue[first].due_ns <= now_ns(); first = (first + 1) % QUEUE_MAX, count--) {
    /* a device that is down takes nothing: lost */
    if (write(queue[first].to, queue[first].bytes, queue[first].size) > 0)
      carried++;
    else
      lost++;
  }
}

int main(int argc, char **argv) {
  if (argc != 5) {
    fputs("Usage: net_wire NAMESPACE NAMESPACE DELAY_MS LOSSES_PER_1000\n", stderr);
    return 2;
  }
  int64_t delay_ns = atoll(argv[3]) * 1000000;
  unsigned losses = (unsigned)atoi(argv[4]);
  const struct sigaction action = {.sa_handler = on_term};
  sigset_t term, none;
  sigemptyset(&none);
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  sigprocmask(SIG_BLOCK, &term, NULL); /* it comes in ppoll, and nowhere else */
  sigaction(SIGTERM, &action, NULL);
  int a = device_in(argv[1]), b = device_in(argv[2]);
  puts("up");
  fflush(stdout);
  while (!ended) {
    struct pollfd fds[2] = {{.fd = a, .events = POLLIN}, {.fd = b, .events = POLLIN}};
    int64_t left = count > 0 ? queue[first].due_ns - now_ns() : 1000000000;
    left = left > 0 ? left : 0;
    struct timespec most = {.tv_sec = left / 1000000000, .tv_nsec = left % 1000000000};
    ppoll(fds, 2, &most, &none);
    take_in(a, b, delay_ns, losses);
    take_in(b, a, delay_ns, losses);
    give_out();
  }
  printf("carried %lu, lost %lu\n", carried, lost);
  return 0;
}
