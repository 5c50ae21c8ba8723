/* A backend that fails without a word: at open when PERIGEE_TEST_SILENT is "open", else in its operations. */
#include <stdlib.h>
#include <string.h>

#include <perigee/perigee.h>

static int silent_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)info;
  const char *when = getenv("PERIGEE_TEST_SILENT");
  *self_p = backend;
  return when != NULL && strcmp(when, "open") == 0 ? PERIGEE_ENOMEM : 0;
}

static void silent_close(void *self) { (void)self; }

static int silent_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  (void)self;
  (void)req;
  (void)work_p;
  return PERIGEE_ERANGE;
}

static int silent_run(void *self, const perigee_request *req, perigee_error *error_p) {
  (void)self;
  (void)req;
  (void)error_p;
  return PERIGEE_ELIMIT;
}

static int state;

static const perigee_backend_ops_v1 ops = {
    .size = sizeof(ops),
    .abi = PERIGEE_BACKEND_ABI,
    .open = silent_open,
    .close = silent_close,
    .submit = silent_submit,
    .run = silent_run,
};

PERIGEE_PLUGIN(.ops = &ops, .backend = &state);
