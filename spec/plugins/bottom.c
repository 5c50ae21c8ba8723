/* A bottom backend: a barrier that is done at once. Its init registers a second name for it. */
#include <stdio.h>

#include <perigee/perigee.h>

static int bottom_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)info;
  *self_p = backend;
  return 0;
}

static void bottom_close(void *self) { (void)self; }

static bool bottom_handles(void *self, int op) {
  (void)self;
  return op == PERIGEE_OP_BARRIER;
}

static int bottom_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  (void)self;
  (void)req;
  *work_p = perigee_work_done();
  return 0;
}

static int state; /* of all layers: there is none */

static const perigee_backend_ops_v1 ops = {
    .size = sizeof(ops),
    .abi = PERIGEE_BACKEND_ABI,
    .open = bottom_open,
    .close = bottom_close,
    .handles = bottom_handles,
    .submit = bottom_submit,
};

static int init(const char *name) {
  char second[64];
  snprintf(second, sizeof(second), "%s-too", name);
  return perigee_backend_register(second, NULL, &ops, &state);
}

PERIGEE_PLUGIN(.ops = &ops, .backend = &state, .init = init);
