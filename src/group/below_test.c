/* Defends: what a layer is told when it opens (members, options) is right, also in subgroups; a layer's own subgroups consist of the
 * layers below it, from its open on. */
#include "group/testing.h"

#include "group/group.h"

/* Options of a world: counted, and freed once. */
typedef struct options {
  perigee_shared base;
  _Atomic int refs, most;
} options;

static void options_ref(perigee_shared *self) {
  options *o = (options *)self;
  int now = atomic_fetch_add(&o->refs, 1) + 1;
  if (now > atomic_load(&o->most))
    atomic_store(&o->most, now);
}
static void options_unref(perigee_shared *self) { atomic_fetch_sub(&((options *)self)->refs, 1); }

/* ---- a layer that makes a group of the even and one of the odd ranks, and reduces there --------------- */

typedef struct pairs {
  int rank;
  perigee_group *mine;
} pairs;

static options expected = {.base = {options_ref, options_unref}};

static int pairs_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)backend;
  pairs *p = calloc(1, sizeof(*p));
  REQUIRE(p != NULL);
  p->rank = info->rank;
  CHECK(info->size == sizeof(*info));
  CHECK(info->options == &expected.base);
  int ranks[RANKS_MAX], n = 0;
  for (int r = info->nranks - 1; r >= 0; r--)
    if (r % 2 == info->rank % 2)
      ranks[n++] = r;
  perigee_group *other = (perigee_group *)p;
  int not_me = (info->rank + 1) % info->nranks;
  if (info->nranks > 1) {
    CHECK(perigee_layer_subgroup(info->layer, &not_me, 1, NULL, &other) == 0);
    CHECK(other == NULL);
  }
  int outside = info->nranks;
  CHECK(perigee_layer_subgroup(info->layer, &outside, 1, NULL, &other) == PERIGEE_ERANGE);
  REQUIRE(perigee_layer_subgroup(info->layer, ranks, n, "pair", &p->mine) == 0);
  CHECK(perigee_group_size(p->mine) == n);
  CHECK(strcmp(perigee_group_backend(p->mine), perigee_layer_below(info->layer)) == 0);
  for (int i = 0; i < n; i++)
    CHECK(perigee_group_to_world(p->mine, i) == info->members[ranks[i]]);
  *self_p = p;
  return 0;
}
static void pairs_close(void *self) {
  pairs *p = self;
  drop_group(p->mine);
  free(p);
}
static bool pairs_handles(void *self, int op) {
  (void)self;
  return op == PERIGEE_OP_ALLREDUCE;
}
static int pairs_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  return perigee_group_submit(((pairs *)self)->mine, req, work_p);
}

static const perigee_backend_ops_v1 pairs_ops = {.size = sizeof(perigee_backend_ops_v1),
                                                 .abi = 1,
                                                 .open = pairs_open,
                                                 .close = pairs_close,
                                                 .handles = pairs_handles,
                                                 .submit = pairs_submit};

/* ---- a layer below that adds one -------------------------------------------------------------------- */

static int plus_open(void *backend, const perigee_layer_info *info, void **self_p) {
  (void)backend;
  CHECK(info->options == &expected.base);
  *self_p = info->layer;
  return 0;
}
static void plus_close(void *self) { (void)self; }
static int plus_submit(void *self, const perigee_request *req, perigee_work **work_p) {
  if (req->op == PERIGEE_OP_ALLREDUCE)
    ((float *)perigee_tensor_data(req->in.v[0]))[0] += 1;
  return perigee_layer_submit(self, req, work_p);
}

static const perigee_backend_ops_v1 plus_ops = {.size = sizeof(perigee_backend_ops_v1),
                                                .abi = 1,
                                                .open = plus_open,
                                                .close = plus_close,
                                                .submit = plus_submit};

/* ---- tests --------------------------------------------------------------------------------------------- */

static float sum_of(perigee_group *group, float value) {
  perigee_tensor *t = f32_of(1, value);
  CHECK(perigee_allreduce(group, t, PERIGEE_REDOP_SUM) == 0);
  float sum = f32_at(t, 0);
  perigee_tensor_unref(t);
  return sum;
}

static void use(perigee_group *group, void *arg) {
  (void)arg;
  int me = perigee_group_rank(group), n = perigee_group_size(group);
  int same = me % 2 ? n / 2 : (n + 1) / 2;
  CHECK((int)sum_of(group, 10) == same * 11); /* once below, and not in the other half */
  perigee_tensor *t = f32_of(1, (float)me);
  CHECK(perigee_broadcast(group, t, n - 1) == 0); /* not taken: the whole group */
  CHECK(f32_is(t, (float)(n - 1)));
  perigee_tensor_unref(t);
  perigee_group *child = NULL;
  CHECK(perigee_group_split(group, me < 2, 0, NULL, &child) == 0);
  CHECK(strcmp(perigee_group_backend(child), "pairs(plus(native))") == 0);
  int in_child = me < 2 ? (n < 2 ? n : 2) : n - 2, at = me < 2 ? me : me - 2;
  same = at % 2 ? in_child / 2 : (in_child + 1) / 2;
  CHECK((int)sum_of(child, 10) == same * 11);
  drop_group(child);
}

static void with_world(int n) {
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = "pairs(plus(native))";
  opts.layer_options = &expected.base;
  perigee_group *groups[RANKS_MAX];
  atomic_store(&expected.refs, 1);
  atomic_store(&expected.most, 0);
  assert_int_equal(perigee_init_local(n, &opts, groups), 0);
  assert_true(atomic_load(&expected.refs) >=
              1 + 2 * n); /* each group, and the one inside its layer */
  on_ranks(n, groups, use, NULL);
  for (int r = 0; r < n; r++)
    drop_group(groups[r]);
  assert_int_equal(atomic_load(&expected.refs), 1);
  assert_no_failures();
}

static void test_subgroups_of_the_layers_below(void **state) {
  (void)state;
  for (int n = 1; n <= 5; n += 2)
    with_world(n);
}

static void test_an_older_caller_has_no_options(void **state) {
  (void)state;
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.size = (uint32_t)offsetof(perigee_init_options, layer_options);
  opts.layer_options = (perigee_shared *)(uintptr_t)1; /* not looked at */
  opts.backend = "fake";
  opts.rank = 0;
  opts.nranks = 1;
  perigee_group *group;
  assert_int_equal(perigee_init(&opts, &group), 0);
  drop_group(group);
}

static int bottom_open(void *backend, const perigee_layer_info *info, void **self_p) {
  perigee_group *group = NULL;
  CHECK(perigee_layer_subgroup(info->layer, &(int){0}, 1, NULL, &group) == PERIGEE_ENOTSUP);
  CHECK(last_error_has("there is no layer below 'bottom'"));
  *self_p = backend;
  return 0;
}

static void test_a_bottom_has_none(void **state) {
  (void)state;
  static const perigee_backend_ops_v1 ops = {.size = sizeof(perigee_backend_ops_v1),
                                             .abi = 1,
                                             .open = bottom_open,
                                             .close = plus_close,
                                             .submit = plus_submit};
  assert_int_equal(perigee_backend_register("bottom", NULL, &ops, NULL), 0);
  drop_group(open_alone("bottom", 0, 1));
  assert_no_failures();
}

int main(void) {
  program_deadline(60);
  if (perigee_backend_register("pairs", "plus", &pairs_ops, NULL) < 0 ||
      perigee_backend_register("plus", "native", &plus_ops, NULL) < 0)
    return 1;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_subgroups_of_the_layers_below),
      cmocka_unit_test(test_an_older_caller_has_no_options),
      cmocka_unit_test(test_a_bottom_has_none),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
