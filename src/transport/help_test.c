/*
 * Defends: a large message that both ranks move has all its bytes; and while a sender that has taken a part may still write it, the receiver's
 * memory is not given back, unless that sender's thread stands. The sender is in the test's hands.
 */
#include "transport/mesh_raw_testing.h"

#include <unistd.h>

#ifdef PERIGEE_HOSTILE
enum {
  SIZE = 2 << 20
};
#else
enum {
  SIZE = 16 << 20 /* read in many turns, between which a part can be taken */
};
#endif

typedef struct scene {
  raw_peer *raw;
  perigee__help *help; /* as the sender sees it */
  perigee__xfer x;
  uint8_t *source, *dest;
  uint64_t id;
  size_t at, bytes; /* the part that was taken */
} scene;

static uint64_t all_done(const scene *s) { return s->id << 32 | 1; }

/* Take the last part, as help.c does. False: the message is not open, or no part is left. */
static bool take_part(scene *s) {
  uint64_t parts = 0, seen = atomic_load(&s->help->claim);
  for (size_t at = 0, bytes; at < SIZE; at += bytes)
    perigee__help_part(SIZE, parts++, &bytes);
  if (seen >> 32 != s->id || (seen >> 16 & UINT16_MAX) >= parts)
    return false;
  s->at = perigee__help_part(SIZE, parts - 1, &s->bytes);
  s->help->to = (struct iovec){(uint8_t *)(uintptr_t)s->help->dest + s->at, s->bytes};
  return atomic_compare_exchange_strong(&s->help->claim, &seen, seen + 1);
}

/* A receive of which the test has one part: as often as it takes to be quick enough. */
static void begin(scene *s, raw_peer *raw, int32_t tid) {
  int64_t until = patience();
  *s = (scene){.raw = raw, .help = &raw->ring.out->help, .source = bytes_new(SIZE)};
  fill(s->source, SIZE, 3);
  perigee__loop_lock(raw->m.mesh->loop);
  raw->m.mesh->spins_at_all = true;
  perigee__loop_unlock(raw->m.mesh->loop);
  atomic_store(&s->help->tid, tid);
  for (bool got = false; !got;) {
    CHECK(!perigee__passed(until));
    s->id++;
    s->dest = bytes_new(SIZE);
    perigee__frame rts = raw_message(PERIGEE_FRAME_RTS, s->id, SIZE, s->id);
    rts.at = (uint64_t)(uintptr_t)s->source;
    raw_send(raw, &rts);
    memset(&s->x, 0, sizeof(s->x));
    perigee__mesh_recv(raw->m.mesh, &raw->m.fate, 1, key_of_tag(s->id), s->dest, SIZE, 0, &s->x);
    while (!(got = take_part(s)) && !atomic_load(&s->x.done) && !perigee__passed(until)) {
    }
    if (got)
      return;
    CHECK_OK(wait_one(&raw->m, &s->x, until));
    CHECK(raw_expect(raw, PERIGEE_FRAME_PULLED).id == s->id);
    free(s->dest);
  }
}

static void end(scene *s) {
  raw_still_works(s->raw);
  free(s->source);
  free(s->dest);
}

/* The other parts are read; the one that is the sender's is waited for. */
static void sender_does_its_part(void **state) {
  (void)state;
  raw_peer raw;
  scene s;
  raw_open(&raw, PERIGEE_TRANSPORT_SHM);
  begin(&s, &raw, (int32_t)gettid());
  CHECK(wait_one(&raw.m, &s.x, perigee__deadline_in(100 * MS)) == PERIGEE_ETIMEDOUT);
  memcpy(s.dest + s.at, s.source + s.at, s.bytes);
  atomic_store(&s.help->done, all_done(&s));
  CHECK_OK(wait_one(&raw.m, &s.x, patience()));
  CHECK(s.x.status == 0 && is_filled(s.dest, SIZE, 3));
  CHECK(raw_expect(&raw, PERIGEE_FRAME_PULLED).id == s.id);
  CHECK(atomic_load(&s.help->claim) == 0);
  end(&s);
  raw_close(&raw);
}

/* It could not: another way is taken, for this message and those to come. */
static void sender_cannot(void **state) {
  (void)state;
  raw_peer raw;
  scene s;
  raw_open(&raw, PERIGEE_TRANSPORT_SHM);
  begin(&s, &raw, (int32_t)gettid());
  atomic_store(&s.help->unable, 1);
  atomic_store(&s.help->done, all_done(&s));
  CHECK(raw_expect(&raw, PERIGEE_FRAME_CTS).id == s.id);
  perigee__mesh_cancel(raw.m.mesh, &s.x);
  free(s.dest);
  s.dest = bytes_new(SIZE);
  perigee__frame rts = raw_message(PERIGEE_FRAME_RTS, s.id + 1, SIZE, s.id + 1);
  s.id++;
  rts.at = (uint64_t)(uintptr_t)s.source;
  raw_send(&raw, &rts);
  recv_from(&raw.m, 1, s.id, s.dest, SIZE);
  CHECK(is_filled(s.dest, SIZE, 3));
  CHECK(raw_expect(&raw, PERIGEE_FRAME_PULLED).id == s.id);
  end(&s);
  raw_close(&raw);
}

typedef struct canceler {
  scene *s;
  _Atomic bool back;
} canceler;

static void *cancel_main(void *arg) {
  canceler *c = arg;
  perigee__mesh_cancel(c->s->raw->m.mesh, &c->s->x);
  atomic_store(&c->back, true);
  return NULL;
}

/* A thread that may be writing is waited for ... */
static void cancel_waits_for_a_writer(void **state) {
  (void)state;
  raw_peer raw;
  scene s;
  pthread_t thread;
  raw_open(&raw, PERIGEE_TRANSPORT_SHM);
  begin(&s, &raw, (int32_t)gettid());
  canceler c = {.s = &s};
  CHECK(pthread_create(&thread, NULL, cancel_main, &c) == 0);
  perigee__sleep_ns(50 * MS);
  CHECK(!atomic_load(&c.back));
  atomic_store(&s.help->done, all_done(&s));
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(s.x.status == PERIGEE_ECANCELED);
  CHECK(raw_expect(&raw, PERIGEE_FRAME_PULLED).id == s.id);
  end(&s);
  raw_close(&raw);
}

/* ... but not one that stands: its system call, should it come, finds nothing to write. */
static void cancel_stops_who_stands(void **state) {
  (void)state;
  raw_peer raw;
  scene s;
  raw_open(&raw, PERIGEE_TRANSPORT_SHM);
  begin(&s, &raw, INT32_MAX); /* no such thread any more */
  int64_t start = perigee__now_ns();
  perigee__mesh_cancel(raw.m.mesh, &s.x);
  CHECK(perigee__now_ns() - start <
        5 * SEC); /* half of what it waits for one that does not stand */
  CHECK(s.x.status == PERIGEE_ECANCELED);
  CHECK(atomic_load(&s.help->claim) == 0 && s.help->to.iov_len == 0);
  CHECK(perigee__vm_write((int32_t)getpid(), &s.help->to, s.source, s.bytes) == -EFAULT);
  CHECK(!take_part(&s));
  CHECK(raw_expect(&raw, PERIGEE_FRAME_PULLED).id == s.id);
  end(&s);
  raw_close(&raw);
}

/* Both ranks drive: whoever moves what, it is all there. */
static void both_ways(member *m) {
  static const size_t sizes[] = {PERIGEE_HELP_MIN - 1, PERIGEE_HELP_MIN, PERIGEE_HELP_MIN + 1,
                                 5 * PERIGEE_HELP_PART + 7, SIZE / 2 + 3};
  for (int round = 0; round < 30; round++)
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
      uint64_t tag = (uint64_t)round * 10 + i;
      if ((m->me + round) % 2 == 0)
        send_filled(m, 1 - m->me, tag, sizes[i]);
      else
        recv_filled(m, 1 - m->me, tag, sizes[i]);
    }
}

static void moved_by_both(void **state) {
  (void)state;
  world_of(2, PERIGEE_TRANSPORT_SHM, both_ways, NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sender_does_its_part),
      cmocka_unit_test(sender_cannot),
      cmocka_unit_test(cancel_waits_for_a_writer),
      cmocka_unit_test(cancel_stops_who_stands),
      cmocka_unit_test(moved_by_both),
  };
  return run_all("help", tests, sizeof(tests) / sizeof(tests[0]));
}
