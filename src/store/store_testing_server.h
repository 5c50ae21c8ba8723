/* A server per test and raw connections to it. */
#ifndef PERIGEE_STORE_STORE_TESTING_SERVER_H
#define PERIGEE_STORE_STORE_TESTING_SERVER_H

#include "store/store_testing.h"

#define W(_text)                                                                                   \
  { _text, sizeof(_text) - 1 }

typedef struct fixture {
  perigee_store_server *server;
  int port;
  leak_mark leaks;
} fixture;

__attribute__((unused)) static int setup(void **state) {
  fixture *f = calloc(1, sizeof(*f));
  f->leaks = leaks_begin();
  OK(perigee_store_server_create(NULL, 0, &f->server));
  f->port = perigee_store_server_port(f->server);
  *state = f;
  return 0;
}

__attribute__((unused)) static int teardown(void **state) {
  fixture *f = *state;
  int64_t began = perigee__now_ns();
  perigee_store_server_destroy(&f->server);
  assert_true(perigee__now_ns() - began < SEC);
  assert_null(f->server);
  leaks_end(f->leaks);
  free(f);
  return 0;
}

__attribute__((unused)) static int port_of(void **state) { return ((fixture *)*state)->port; }

/* A connection whose earlier requests have all been carried out. */
__attribute__((unused)) static void sync_with(int fd) {
  SEND(fd, "\x0D\x01\x02\x03\x04");
  EXPECT(fd, "\x01\x02\x03\x04");
}

__attribute__((unused)) static uint64_t next_random(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

#endif
