/* Monotonic time in nanoseconds, and deadlines as points of it. Wall time is only ever printed. */
#ifndef PERIGEE_BASE_CLOCK_H
#define PERIGEE_BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>

#define PERIGEE_NS_PER_SEC INT64_C(1000000000)
#define PERIGEE_NS_PER_US INT64_C(1000)
#define PERIGEE_NS_PER_MS INT64_C(1000000)
#define PERIGEE_NEVER INT64_MAX

/** CLOCK_MONOTONIC now. */
int64_t perigee__now_ns(void);
/** The time of the last tick, up to a few ms ago, for less money. */
int64_t perigee__now_about(void);
/** now + timeout, saturating; timeout >= PERIGEE_NEVER or negative gives PERIGEE_NEVER. */
int64_t perigee__deadline_in(int64_t timeout_ns);
/** The same for less money: up to a few ms later, when the timeout is a second or more. */
int64_t perigee__deadline_about(int64_t timeout_ns);
/** The same when perigee__now_about has been asked just now. */
int64_t perigee__deadline_about_from(int64_t about_ns, int64_t timeout_ns);
/** Time left, at least 0; PERIGEE_NEVER stays. */
int64_t perigee__time_left(int64_t deadline_ns);
/** Time left in whole milliseconds for poll(), rounded up, capped at cap_ms (-1 is never returned). */
int perigee__poll_ms(int64_t deadline_ns, int cap_ms);
void perigee__sleep_ns(int64_t ns);

static inline bool perigee__passed(int64_t deadline_ns) {
  return deadline_ns != PERIGEE_NEVER && perigee__now_ns() >= deadline_ns;
}

#endif
