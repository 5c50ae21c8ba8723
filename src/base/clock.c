#include "base/clock.h"

#include <errno.h>
#include <time.h>

/* More than what the coarse clock is behind, even when ticks come late. */
enum {
  LAG_NS = 20000000
};

int64_t perigee__now_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return (int64_t)ts.tv_sec * PERIGEE_NS_PER_SEC + ts.tv_nsec;
}

int64_t perigee__now_about(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
  return (int64_t)ts.tv_sec * PERIGEE_NS_PER_SEC + ts.tv_nsec;
}

int64_t perigee__deadline_in(int64_t timeout_ns) {
  if (timeout_ns < 0)
    return PERIGEE_NEVER;
  int64_t now = perigee__now_ns();
  return timeout_ns >= PERIGEE_NEVER - now ? PERIGEE_NEVER : now + timeout_ns;
}

int64_t perigee__deadline_about_from(int64_t about_ns, int64_t timeout_ns) {
  if (timeout_ns < PERIGEE_NS_PER_SEC || timeout_ns >= PERIGEE_NEVER / 2)
    return perigee__deadline_in(timeout_ns);
  return about_ns + timeout_ns + LAG_NS;
}

int64_t perigee__deadline_about(int64_t timeout_ns) {
  return perigee__deadline_about_from(perigee__now_about(), timeout_ns);
}

int64_t perigee__time_left(int64_t deadline_ns) {
  if (deadline_ns == PERIGEE_NEVER)
    return PERIGEE_NEVER;
  int64_t left = deadline_ns - perigee__now_ns();
  return left > 0 ? left : 0;
}

int perigee__poll_ms(int64_t deadline_ns, int cap_ms) {
  int64_t left = perigee__time_left(deadline_ns);
  if (left >= (int64_t)cap_ms * PERIGEE_NS_PER_MS)
    return cap_ms;
  return (int)((left + PERIGEE_NS_PER_MS - 1) / PERIGEE_NS_PER_MS);
}

void perigee__sleep_ns(int64_t ns) {
  struct timespec ts = {.tv_sec = ns / PERIGEE_NS_PER_SEC, .tv_nsec = ns % PERIGEE_NS_PER_SEC};
  while (nanosleep(&ts, &ts) != 0 && errno == EINTR) {
  }
}
