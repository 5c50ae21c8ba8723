/* A client that acts on a thread of its own while the test plays the server, or watches one. */
#ifndef PERIGEE_STORE_STORE_TESTING_PLAY_H
#define PERIGEE_STORE_STORE_TESTING_PLAY_H

#include "store/store_testing.h"

typedef struct play {
  int listener, port;
  pthread_t thread;
  perigee_store *store;
  int (*act)(struct play *p);
  int rc;
  int code; /* of the last error */
  char message[512];
  perigee_bytes value;
  int64_t number, took_ns;
  bool flag;
  leak_mark leaks;
} play;

__attribute__((unused)) static int play_setup(void **state) {
  play *p = calloc(1, sizeof(*p));
  p->leaks = leaks_begin();
  p->listener = raw_listen(&p->port);
  *state = p;
  return 0;
}

__attribute__((unused)) static int play_teardown(void **state) {
  play *p = *state;
  perigee_store_unref(p->store);
  perigee_bytes_free(&p->value);
  close(p->listener);
  leaks_end(p->leaks);
  free(p);
  return 0;
}

__attribute__((unused)) static void *play_run(void *arg) {
  play *p = arg;
  int64_t began = perigee__now_ns();
  p->rc = p->act(p);
  p->took_ns = perigee__now_ns() - began;
  p->code = perigee_last_error()->code;
  snprintf(p->message, sizeof(p->message), "%s", perigee_last_error()->message);
  return NULL;
}

__attribute__((unused)) static void act(play *p, int (*fn)(play *p)) {
  p->act = fn;
  assert_int_equal(pthread_create(&p->thread, NULL, play_run, p), 0);
}

__attribute__((unused)) static void acted(play *p, int rc, const char *text) {
  pthread_join(p->thread, NULL);
  if (p->rc != rc || (rc < 0 && strstr(p->message, text) == NULL))
    fail_msg("got %s: %s", perigee_err_name(p->rc), p->message);
}

/* The value that the client got. */
__attribute__((unused)) static void got(play *p, const char *text) {
  expect_text(p->value, text);
  p->value = (perigee_bytes){NULL, 0};
}

__attribute__((unused)) static int act_connect_world(play *p) {
  perigee_store_tcp_options o = {sizeof(o), "127.0.0.1", p->port, 5 * SEC, 2};
  return perigee_store_tcp_connect(&o, &p->store);
}
__attribute__((unused)) static int act_connect(play *p) {
  perigee_store_tcp_options o = {sizeof(o), "127.0.0.1", p->port, 5 * SEC, 0};
  return perigee_store_tcp_connect(&o, &p->store);
}

#endif
