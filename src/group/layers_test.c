/* Defends: what a layer is told, what it may call, and what it gives its subgroups. */
#include "group/testing.h"

#include "group/group.h"
#include "group/work.h"

/* A layer that takes allreduce by itself: it runs it below, then doubles the result. */
typedef struct doubler {
  perigee_layer *layer;
  const int *owner; /* the backend's own value */
  int splits;       /* how often it has been handed on */
  int rank, nranks;
  int got[3];
  perigee_group *inner; /* of the layers below alone */
} doubler;

static perigee_layer_info told; /* of the last open; pointers are dead */
static char told_name[64];
static int told_member;
static _Atomic int closes;

static int doubler_make(const int *owner, const perigee_layer_info *info, int splits,
                        void **self_p) {
  doubler *self = calloc(1, sizeof(*self));
  REQUIRE(self != NULL);
  *self = (doubler){.layer = info->layer,
                    .owner = owner,
                    .splits = splits,
                    .rank = info->rank,
                    .nranks = info->nranks};
  *self_p = self;
  return 0;
}
static int doubler_open(void *backend, const perigee_layer_info *info, void **self_p) {
  if (info->nranks == 1) { /* otherwise ranks open at once */
    told = *info;
    snprintf(told_name, sizeof(told_name), "%s", info->group_name);
    told_member = info->members[info->rank];
  }
  return doubler_make(backend, info, 0, self_p);
}
static int doubler_split(void *arg, const perigee_layer_info *info, void **self_p) {
  const doubler *parent = arg;
  return doubler_make(parent->owner, info, parent->splits + 1, self_p);
}
static void doubler_close(void *arg) {
  atomic_fetch_add(&closes, 1);
  free(arg);
}
static bool doubler_handles(void *arg, int op) {
  (void)arg;
  return op == PERIGEE_OP_ALLREDUCE || op == PERIGEE_OP_BARRIER;
}
static int doubler_run(void *arg, const perigee_request *req, perigee_error *error) {
  doubler *self = arg;
  int rc = perigee_layer_run(self->layer, req);
  for (uint32_t i = 0; rc == 0 && i < req->in.n; i++)
    rc = perigee_tensor_binary(PERIGEE_ADD, req->in.v[i], req->in.v[i]);
  if (rc < 0)
    *error = *perigee_last_error();
  return rc;
}
static int doubler_submit(void *arg, const perigee_request *req, perigee_work **work_p) {
  perigee_error error;
  int rc = doubler_run(arg, req, &error);
  if (rc < 0)
    return perigee__fail_with(&error);
  *work_p = perigee_work_done();
  return 0;
}
static _Atomic int64_t told_timeout;
static void doubler_set_timeout(void *arg, int64_t timeout_ns) {
  (void)arg;
  atomic_store(&told_timeout, timeout_ns);
}

static const perigee_backend_ops_v1 doubler_ops = {.size = sizeof(perigee_backend_ops_v1),
                                                   .abi = 1,
                                                   .open = doubler_open,
                                                   .close = doubler_close,
                                                   .handles = doubler_handles,
                                                   .submit = doubler_submit,
                                                   .run = doubler_run,
                                                   .set_timeout = doubler_set_timeout,
                                                   .split = doubler_split};

static int owner_value = 5;

static int register_doubler(void **state) {
  (void)state;
  atomic_store(&closes, 0);
  return perigee_backend_register("doubler", "native", &doubler_ops, &owner_value);
}

/* ---- what it is told ---------------------------------------------------------------------------- */

typedef struct counted {
  perigee_shared shared;
  _Atomic int refs;
} counted;
static void counted_ref(perigee_shared *self) {
  atomic_fetch_add(&PERIGEE_CONTAINER_OF(self, counted, shared)->refs, 1);
}
static void counted_unref(perigee_shared *self) {
  atomic_fetch_sub(&PERIGEE_CONTAINER_OF(self, counted, shared)->refs, 1);
}

static void test_information(void **state) {
  (void)state;
  counted options = {.shared = {counted_ref, counted_unref}};
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = "doubler";
  opts.rank = 0;
  opts.nranks = 1;
  opts.name = "w";
  opts.timeout_ns = 7 * PERIGEE_NS_PER_SEC;
  opts.layer_options = &options.shared;
  perigee_group *group, *child;
  assert_int_equal(perigee_init(&opts, &group), 0);
  assert_string_equal(told_name, "w");
  assert_int_equal(told.rank, 0);
  assert_int_equal(told.nranks, 1);
  assert_int_equal(told_member, 0);
  assert_int_equal(told.timeout_ns, 7 * PERIGEE_NS_PER_SEC);
  assert_ptr_equal(told.options, &options.shared);
  assert_int_equal(perigee_group_set_timeout(group, PERIGEE_NS_PER_SEC), 0);
  assert_int_equal(atomic_load(&told_timeout), PERIGEE_NS_PER_SEC);
  assert_int_equal(perigee_group_split(group, 0, 0, NULL, &child), 0);
  assert_int_equal(perigee_group_timeout(child), PERIGEE_NS_PER_SEC);
  drop_group(group);
  assert_int_equal(atomic_load(&options.refs), 1); /* the child's */
  drop_group(child);
  assert_int_equal(atomic_load(&options.refs), 0);
  assert_int_equal(atomic_load(&closes), 2);
  /* A maker that does not know the field gives none. */
  opts.size = (uint32_t)offsetof(perigee_init_options, layer_options);
  assert_int_equal(perigee_init(&opts, &group), 0);
  assert_null(told.options);
  drop_group(group);
}

/* ---- running below ------------------------------------------------------------------------------ */

static void doubled(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  CHECK(!perigee_group_is_direct(group, PERIGEE_OP_ALLREDUCE));
  CHECK(perigee_group_is_direct(group, PERIGEE_OP_BROADCAST));
  perigee_tensor *t = f32_of(3, 1);
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
  CHECK(f32_is(t, (float)(2 * n)));
  CHECK(perigee_broadcast(group, t, 0) == 0);
  perigee_request req = request_inplace(PERIGEE_OP_ALLREDUCE, &t, 1);
  perigee_work *work;
  CHECK(perigee_group_submit(group, &req, &work) == 0);
  CHECK(perigee_work_wait(work, 0) == 0);
  perigee_work_unref(work);
  CHECK(f32_is(t, (float)(4 * n * n)));
  /* below, a wrong request is refused too, and errors come up as they are */
  req.redop.kind = PERIGEE_REDOP_BAND;
  CHECK(perigee_group_run(group, &req) == PERIGEE_EDTYPE);
  perigee_group *child = NULL;
  CHECK(perigee_group_split(group, me % 2, 0, NULL, &child) == 0);
  CHECK(strcmp(perigee_group_backend(child), "doubler(native)") == 0);
  const doubler *layer = ((struct perigee_group *)child)->layers[0].self;
  CHECK(layer->splits == 1 && layer->owner == &owner_value);
  CHECK(layer->nranks == perigee_group_size(child) && layer->rank == perigee_group_rank(child));
  CHECK(perigee_allreduce(child, t, PERIGEE_REDOP_AVG) == 0);
  CHECK(f32_is(t, (float)(8 * n * n)));
  drop_group(child);
  /* a failure below comes up with its own words */
  if (me == 0)
    CHECK(perigee_group_abort(group, "no doubling today") == 0);
  int rc = perigee_allreduce(group, t, PERIGEE_REDOP_SUM);
  CHECK(rc == PERIGEE_EABORTED && last_error_has("no doubling today"));
  CHECK(perigee_last_error()->op == PERIGEE_OP_ALLREDUCE);
  perigee_tensor_unref(t);
}

static void test_running_below(void **state) {
  (void)state;
  perigee_group *groups[RANKS_MAX];
  open_local(3, "doubler(doubler(native))", groups);
  for (int r = 0; r < 3; r++)
    drop_group(groups[r]);
  open_local(3, "doubler", groups);
  on_ranks(3, groups, doubled, NULL);
  close_local(3, groups);
  assert_no_failures();
}

static void test_stack_of_two(void **state) {
  (void)state;
  perigee_group *group = open_alone("doubler(doubler)", 0, 1);
  perigee_tensor *t = f32_of(2, 1);
  assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), 0);
  assert_true(f32_is(t, 4));
  drop_group(group);
  perigee_tensor_unref(t);
}

/* ---- groups of the layers below ------------------------------------------------------------------ */

static void below_alone(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), reversed[] = {2, 1, 0};
  doubler *layer = ((struct perigee_group *)group)->layers[0].self;
  CHECK(perigee_layer_subgroup(layer->layer, reversed, 3, "below", &layer->inner) == 0);
  CHECK(strcmp(perigee_group_backend(layer->inner), "native") == 0);
  CHECK(perigee_group_rank(layer->inner) == 2 - me);
  perigee_tensor *t = f32_of(1, 1);
  CHECK(perigee_allreduce(layer->inner, t, PERIGEE_REDOP_SUM) == 0);
  CHECK(f32_is(t, 3)); /* not doubled */
  drop_group(layer->inner);
  perigee_tensor_unref(t);
  perigee_layer *bottom = &((struct perigee_group *)group)->layers[1];
  perigee_group *none = NULL;
  CHECK(perigee_layer_subgroup(bottom, reversed, 3, NULL, &none) == PERIGEE_ENOTSUP);
  CHECK(last_error_has("there is no layer below 'native'"));
}

static void test_group_of_the_layers_below(void **state) {
  (void)state;
  perigee_group *groups[RANKS_MAX];
  open_local(3, "doubler", groups);
  on_ranks(3, groups, below_alone, NULL);
  close_local(3, groups);
  assert_no_failures();
}

/* ---- where waiting is refused -------------------------------------------------------------------- */

static void run_in_callback(perigee_work *work, void *arg) {
  doubler *self = arg;
  (void)work;
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  perigee_group *none = NULL;
  perigee_work *below = NULL;
  self->got[0] = perigee_layer_run(self->layer, &req);
  self->got[1] = perigee_layer_subgroup(self->layer, (int[]){0}, 1, NULL, &none);
  self->got[2] = perigee_layer_submit(self->layer, &req, &below); /* does not wait */
  perigee_work_unref(below);
}

static void test_no_waiting_in_callbacks(void **state) {
  (void)state;
  perigee_group *group = open_alone("doubler(fake)", 0, 1);
  doubler *layer = ((struct perigee_group *)group)->layers[0].self;
  assert_int_equal(perigee_work_on_done(perigee_work_done(), run_in_callback, layer), 0);
  assert_int_equal(layer->got[0], PERIGEE_EDEADLK);
  assert_int_equal(layer->got[1], PERIGEE_EDEADLK);
  assert_int_equal(layer->got[2], 0);
  drop_group(group);
}

int main(void) {
  program_deadline(60);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_information, register_doubler),
      cmocka_unit_test_setup(test_running_below, register_doubler),
      cmocka_unit_test_setup(test_stack_of_two, register_doubler),
      cmocka_unit_test_setup(test_group_of_the_layers_below, register_doubler),
      cmocka_unit_test_setup(test_no_waiting_in_callbacks, register_doubler),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
