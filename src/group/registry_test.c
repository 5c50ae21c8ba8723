/* Defends: a stack string means one thing or is refused with the place; who handles an operation is found once. */
#include "group/testing.h"

#include <sys/stat.h>

#include "group/closing.h"
#include "group/group.h"
#include "group/plugin.h"
#include "group/registry.h"
#include "group/work.h"

/* ---- a layer for tests -------------------------------------------------------------------------- */

/* One kind of test backend. The counters are shared by all its layers. */
typedef struct kind {
  const char *name;
  uint32_t takes;  /* bit per operation */
  int open_fails;  /* code */
  bool never_ends; /* its works stay pending */
  int opened, closed, dropped, asked[PERIGEE_OP_COUNT], submits, aborts;
  uint64_t last_seq;
  perigee_work *pending;
  char below[128];
} kind;

static char journal[512]; /* "+a +b -a -b": layers opened and closed, in order */

static void note(const char *sign, const kind *k) {
  size_t used = strlen(journal);
  snprintf(journal + used, sizeof(journal) - used, "%s%s%s", used > 0 ? " " : "", sign, k->name);
}

typedef struct layer_state {
  kind *k;
  perigee_layer *layer;
} layer_state;

static int test_open(void *backend, const perigee_layer_info *info, void **self_p) {
  kind *k = backend;
  if (k->open_fails < 0)
    return perigee__fail(k->open_fails, "%s does not open", k->name);
  layer_state *self = calloc(1, sizeof(*self));
  REQUIRE(self != NULL);
  *self = (layer_state){k, info->layer};
  snprintf(k->below, sizeof(k->below), "%s", perigee_layer_below(info->layer));
  k->opened++;
  note("+", k);
  *self_p = self;
  return 0;
}
static void test_close(void *arg) {
  layer_state *self = arg;
  self->k->closed++;
  note("-", self->k);
  free(self);
}
static bool test_handles(void *arg, int op) {
  layer_state *self = arg;
  self->k->asked[op]++;
  return self->k->takes >> op & 1;
}
static int test_submit(void *arg, const perigee_request *req, perigee_work **work_p) {
  layer_state *self = arg;
  self->k->submits++;
  self->k->last_seq = req->seq;
  if (self->k->never_ends) {
    PERIGEE_TRY(perigee_future_create(NULL, req, PERIGEE_NEVER, work_p));
    self->k->pending = perigee_work_ref(*work_p);
    return 0;
  }
  return perigee_layer_submit(self->layer, req, work_p);
}
static void test_abort(void *arg, const perigee_error *reason) {
  layer_state *self = arg;
  (void)reason;
  self->k->aborts++;
}
static void test_drop(void *backend) { ((kind *)backend)->dropped++; }

static const perigee_backend_ops_v1 layer_ops = {.size = sizeof(perigee_backend_ops_v1),
                                                 .abi = 1,
                                                 .open = test_open,
                                                 .close = test_close,
                                                 .handles = test_handles,
                                                 .submit = test_submit,
                                                 .abort = test_abort,
                                                 .drop = test_drop};

static void add(kind *k, const char *name, const char *inner, uint32_t takes) {
  memset(k, 0, sizeof(*k));
  k->name = name;
  k->takes = takes;
  assert_int_equal(perigee_backend_register(name, inner, &layer_ops, k), 0);
}

#define BIT(_OP) (UINT32_C(1) << PERIGEE_OP_##_OP)
#define ALL UINT32_MAX

/* ---- stack strings ----------------------------------------------------------------------------- */

static void expect_stack(const char *text, const char *want) {
  perigee__backend *layers[PERIGEE_LAYERS_MAX];
  int n = 0;
  char got[256] = "";
  assert_int_equal(perigee__stack_parse(text, layers, &n), 0);
  for (int i = 0; i < n; i++) {
    size_t used = strlen(got);
    snprintf(got + used, sizeof(got) - used, "%s%s", i > 0 ? " " : "", layers[i]->name);
    perigee__backend_unref(layers[i]);
  }
  assert_string_equal(got, want);
}

static void expect_refused(const char *text, int code, const char *why) {
  perigee__backend *layers[PERIGEE_LAYERS_MAX];
  int n = -7;
  assert_int_equal(perigee__stack_parse(text, layers, &n), code);
  if (!last_error_has(why))
    fail_msg("'%s': '%s' is not in '%s'", text, why, perigee_last_error()->message);
  assert_int_equal(n, -7);
}

static void test_good_stacks(void **state) {
  (void)state;
  static kind a, b, over_fake, two;
  add(&a, "a", "native", ALL);
  add(&b, "b-2", "native", ALL);
  add(&over_fake, "over_fake", "fake", ALL);
  add(&two, "two", "a(over_fake)", ALL);
  expect_stack("native", "native");
  expect_stack("fake", "fake");
  expect_stack("a(native)", "a native");
  expect_stack("a(b-2(native))", "a b-2 native");
  expect_stack(" a ( b-2 ( native ) ) ", "a b-2 native");
  expect_stack("a", "a native");
  expect_stack("a(b-2)", "a b-2 native");
  expect_stack("b-2(a(fake))", "b-2 a fake");
  expect_stack("over_fake", "over_fake fake");
  expect_stack("over_fake(native)", "over_fake native");
  expect_stack("two", "two a over_fake fake");
  expect_stack("a(two)", "a two a over_fake fake");
  expect_stack("a(a(a(native)))", "a a a native");
}

static void test_bad_stacks(void **state) {
  (void)state;
  static kind a, loop;
  add(&a, "a", "native", ALL);
  add(&loop, "loop", "a(loop)", ALL);
  expect_refused("", PERIGEE_EINVAL, "name is expected");
  expect_refused("(", PERIGEE_EINVAL, "name is expected at '('");
  expect_refused("()", PERIGEE_EINVAL, "name is expected");
  expect_refused("a(", PERIGEE_EINVAL, "name is expected at ''");
  expect_refused("a()", PERIGEE_EINVAL, "name is expected at ')'");
  expect_refused("a(native", PERIGEE_EINVAL, "a ')' is missing");
  expect_refused("a(native))", PERIGEE_EINVAL, "behind the last ')'");
  expect_refused("a native", PERIGEE_EINVAL, "behind the last ')'");
  expect_refused("a(native)x", PERIGEE_EINVAL, "behind the last ')'");
  expect_refused("a)", PERIGEE_EINVAL, "behind the last ')'");
  expect_refused("a,native", PERIGEE_EINVAL, "name is expected at 'a,native'");
  expect_refused("../a", PERIGEE_EINVAL, "name is expected");
  expect_refused("nobody", PERIGEE_ENOENT, "there is no backend 'nobody'");
  expect_refused("a(nobody)", PERIGEE_ENOENT, "there is no backend 'nobody'");
  expect_refused("native(fake)", PERIGEE_EINVAL, "nothing can stand below 'native'");
  expect_refused("a(fake(native))", PERIGEE_EINVAL, "nothing can stand below 'fake'");
  expect_refused("loop", PERIGEE_ELIMIT, "more than 32 layers");
  char deep[256] = "";
  for (int i = 0; i < PERIGEE_LAYERS_MAX; i++)
    strcat(deep, "a(");
  strcat(deep, "native");
  expect_refused(deep, PERIGEE_ELIMIT, "more than 32 layers");
  char name[PERIGEE_NAME_MAX + 2];
  memset(name, 'x', sizeof(name) - 1);
  name[sizeof(name) - 1] = '\0';
  expect_refused(name, PERIGEE_EINVAL, "name is expected");
  /* What was found before the error has been given back. */
  assert_int_equal(perigee_backend_register("a", NULL, &layer_ops, &a), 0);
  assert_int_equal(a.dropped, 1);
}

static void test_register_refuses(void **state) {
  (void)state;
  perigee_backend_ops_v1 ops = layer_ops;
  static kind k;
  static const char *const bad[] = {"", "a b", "a(", "a.b", "\xc3\xa4", NULL};
  for (size_t i = 0; i < PERIGEE_COUNT(bad); i++) {
    assert_int_equal(perigee_backend_register(bad[i], NULL, &ops, &k), PERIGEE_EINVAL);
    assert_true(last_error_has("backend name"));
  }
  assert_int_equal(perigee_backend_register("x", NULL, NULL, &k), PERIGEE_EINVAL);
  ops.abi = 2;
  assert_int_equal(perigee_backend_register("x", NULL, &ops, &k), PERIGEE_EINVAL);
  ops.abi = 1;
  ops.submit = NULL;
  assert_int_equal(perigee_backend_register("x", NULL, &ops, &k), PERIGEE_EINVAL);
  assert_false(perigee_backend_exists("x"));
  assert_true(perigee_backend_exists("native"));
  assert_true(perigee_backend_exists("fake"));
}

static void test_an_older_maker_has_fewer_slots(void **state) {
  (void)state;
  static kind k;
  memset(&k, 0, sizeof(k));
  k.name = "older";
  perigee_backend_ops_v1 ops = layer_ops;
  ops.size = (uint32_t)offsetof(perigee_backend_ops_v1, drop);
  assert_int_equal(perigee_backend_register("older", NULL, &ops, &k), 0);
  assert_int_equal(perigee_backend_register("older", NULL, &layer_ops, &k), 0);
  assert_int_equal(k.dropped, 0); /* it did not know that there is a drop */
}

/* ---- layers of a group ------------------------------------------------------------------------- */

static void test_replacing_keeps_open_groups(void **state) {
  (void)state;
  static kind old, new;
  add(&old, "swap", "fake", ALL);
  perigee_group *group = open_alone("swap", 0, 1);
  add(&new, "swap", "fake", ALL);
  assert_int_equal(old.dropped, 0);
  assert_int_equal(perigee_barrier(group), 0);
  assert_int_equal(old.submits, 1);
  /* A subgroup has its parent's layers, not what the names mean by now. */
  perigee_group *child = NULL;
  assert_int_equal(perigee_group_split(group, 0, 0, NULL, &child), 0);
  assert_int_equal(old.opened, 2);
  perigee_group *later = open_alone("swap", 0, 1);
  assert_int_equal(perigee_barrier(later), 0);
  assert_int_equal(new.submits, 1);
  assert_int_equal(old.submits, 1);
  drop_group(later);
  drop_group(group);
  assert_int_equal(old.dropped, 0);
  drop_group(child);
  assert_int_equal(old.dropped, 1);
  assert_int_equal(old.closed, 2);
  assert_int_equal(new.dropped, 0);
}

static void test_routes_are_found_once(void **state) {
  (void)state;
  static kind top, middle;
  add(&top, "top", "native", BIT(ALLREDUCE) | BIT(BARRIER));
  add(&middle, "middle", "native", BIT(ALLREDUCE) | BIT(BROADCAST));
  journal[0] = '\0';
  perigee_group *group = open_alone("top(middle)", 0, 1);
  assert_string_equal(perigee_group_backend(group), "top(middle(native))");
  assert_string_equal(top.below, "middle(native)");
  assert_string_equal(middle.below, "native");
  perigee_tensor *t = f32_of(4, 2);
  for (int i = 0; i < 3; i++) {
    assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), 0);
    assert_int_equal(perigee_broadcast(group, t, 0), 0);
    assert_int_equal(perigee_barrier(group), 0);
    assert_int_equal(perigee_reduce(group, t, 0, PERIGEE_REDOP_SUM), 0);
  }
  assert_true(f32_is(t, 2));
  assert_int_equal(top.submits, 6);
  assert_int_equal(middle.submits, 6);
  assert_int_equal(middle.last_seq,
                   10); /* the third broadcast; what top passes on keeps its number */
  for (int op = 0; op < PERIGEE_OP_COUNT; op++) {
    assert_int_equal(top.asked[op], 1);
    assert_int_equal(middle.asked[op], 1);
    bool direct =
        op != PERIGEE_OP_ALLREDUCE && op != PERIGEE_OP_BROADCAST && op != PERIGEE_OP_BARRIER;
    assert_int_equal(perigee_group_is_direct(group, op), direct);
  }
  assert_false(perigee_group_is_direct(group, -1));
  assert_false(perigee_group_is_direct(group, PERIGEE_OP_COUNT));
  assert_int_equal(perigee_group_seq(group), 12);
  assert_string_equal(perigee_group_transport(group), "self");
  drop_group(group);
  assert_string_equal(journal, "+middle +top -top -middle");
  perigee_tensor_unref(t);
}

static void test_open_failure_closes_what_was_opened(void **state) {
  (void)state;
  static kind one, two, three;
  add(&one, "one", NULL, ALL);
  add(&two, "two", "fake", ALL);
  add(&three, "three", "fake", ALL);
  add(&one, "one", "fake", ALL);
  one.open_fails = PERIGEE_ESTATE;
  journal[0] = '\0';
  perigee_init_options opts;
  perigee_init_options_init(&opts);
  opts.backend = "one(two(three))";
  opts.rank = 0;
  opts.nranks = 1;
  perigee_group *group = NULL;
  assert_int_equal(perigee_init(&opts, &group), PERIGEE_ESTATE);
  assert_true(last_error_has("one does not open"));
  assert_null(group);
  assert_string_equal(journal, "+three +two -two -three");
}

static void test_nobody_takes_it(void **state) {
  (void)state;
  static kind bottom, upper;
  add(&bottom, "bottom", NULL, BIT(BARRIER));
  add(&upper, "upper", "bottom", BIT(ALLREDUCE));
  bottom.never_ends = true;
  perigee_group *group = open_alone("upper", 0, 1);
  perigee_tensor *t = f32_of(1, 1);
  assert_int_equal(perigee_broadcast(group, t, 0), PERIGEE_ENOTSUP);
  assert_true(last_error_has("broadcast: no layer of 'upper(bottom)' takes it"));
  assert_int_equal(perigee_allreduce(group, t, PERIGEE_REDOP_SUM), PERIGEE_ENOTSUP);
  assert_true(last_error_has("allreduce: no layer of 'bottom' takes it"));
  assert_int_equal(perigee_last_error()->op, PERIGEE_OP_ALLREDUCE);
  assert_string_equal(perigee_group_transport(group), "");
  drop_group(group);
  perigee_tensor_unref(t);
}

/* ---- works of layers ---------------------------------------------------------------------------- */

static void test_pending_work_ends_with_the_operations_time(void **state) {
  (void)state;
  static kind slow;
  add(&slow, "slow", "fake", ALL);
  slow.never_ends = true;
  perigee_group *group = open_alone("slow", 0, 1);
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  req.timeout_ns = 50 * MS;
  perigee_work *work;
  assert_int_equal(perigee_group_submit(group, &req, &work), 0);
  int64_t start = perigee__now_ns();
  assert_int_equal(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE), PERIGEE_ETIMEDOUT);
  assert_in_range((int)ms_since(start), 30, 50 + LATE_MS);
  perigee_work_unref(slow.pending);
  perigee_work_unref(work);
  start = perigee__now_ns();
  assert_int_equal(perigee_group_run(group, &req), PERIGEE_ETIMEDOUT);
  assert_in_range((int)ms_since(start), 50, 70 + LATE_MS);
  assert_true(last_error_has("timed out after 0.1 s: nobody completed it"));
  assert_int_equal(perigee_last_error()->seq, 2);
  assert_false(perigee_future_set_result(slow.pending));
  perigee_work_unref(slow.pending);
  drop_group(group);
}

static void test_abort_and_close_end_pending_works(void **state) {
  (void)state;
  static kind slow;
  add(&slow, "slow", "fake", ALL);
  slow.never_ends = true;
  perigee_group *group = open_alone("slow", 0, 1);
  perigee_request req;
  perigee_request_init(&req, PERIGEE_OP_BARRIER);
  perigee_work *aborted, *closed;
  assert_int_equal(perigee_group_submit(group, &req, &aborted), 0);
  perigee_work_unref(slow.pending);
  assert_int_equal(perigee_group_abort(group, "no more"), 0);
  assert_int_equal(perigee_work_wait(aborted, 0), PERIGEE_EABORTED);
  assert_true(last_error_has("aborted by rank 0: no more"));
  assert_int_equal(slow.aborts, 1);
  assert_int_equal(perigee_group_submit(group, &req, &closed), 0);
  perigee_work_unref(slow.pending);
  drop_group(group);
  assert_int_equal(perigee_work_get_status(closed), PERIGEE_WORK_ABORTED);
  assert_int_equal(perigee_work_error(closed)->code, PERIGEE_ECLOSED);
  perigee_work_unref(aborted);
  perigee_work_unref(closed);
}

static void close_in_callback(perigee_work *work, void *arg) {
  (void)work;
  CHECK(perigee_group_close(arg) == 0);
}

static void test_layers_go_when_the_group_is_dropped(void **state) {
  (void)state;
  static kind k;
  add(&k, "dropped", "fake", ALL);
  perigee_group_unref(open_alone("dropped", 0, 1));
  assert_true(perigee__closing_wait(perigee__deadline_in(3 * PERIGEE_NS_PER_SEC)));
  assert_int_equal(k.closed, 1);
  perigee_group *group = open_alone("dropped", 0, 1);
  assert_int_equal(perigee_work_on_done(perigee_work_done(), close_in_callback, group), 0);
  assert_true(perigee__closing_wait(perigee__deadline_in(3 * PERIGEE_NS_PER_SEC)));
  assert_int_equal(k.closed, 2);
  assert_int_equal(perigee_barrier(group), PERIGEE_ECLOSED);
  drop_group(group);
  assert_no_failures();
}

/* ---- plug-ins ---------------------------------------------------------------------------------- */

static void test_plugin_path(void **state) {
  (void)state;
  char folder[] = "/tmp/perigee-plugins-XXXXXX", path[64], value[128];
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof(path), "%s/perigee_broken.so", folder);
  FILE *file = fopen(path, "w");
  assert_non_null(file);
  fputs("no library", file);
  fclose(file);
  snprintf(value, sizeof(value), ":/nowhere:%s:", folder);
  setenv("PERIGEE_BACKEND_PATH", value, 1);
  expect_refused("broken", PERIGEE_EINVAL, "backend 'broken' cannot be loaded: ");
  expect_refused("absent", PERIGEE_ENOENT,
                 "there is no backend 'absent' (nor a perigee_absent.so in ");
  expect_refused("absent", PERIGEE_ENOENT, folder);
  /* A name is never a path, and a path is taken at its word. */
  assert_int_equal(perigee_backend_load("absent"), PERIGEE_ENOENT);
  assert_int_equal(perigee_backend_load("perigee_broken.so"), PERIGEE_EINVAL);
  assert_int_equal(perigee_backend_load("native"), 0);
  assert_int_equal(perigee_backend_load(path), PERIGEE_EINVAL);
  assert_int_equal(perigee_backend_load("/nowhere/perigee_broken.so"), PERIGEE_ENOENT);
  assert_int_equal(perigee_backend_load("/nowhere/libbroken.so"), PERIGEE_EINVAL);
  assert_int_equal(perigee_backend_load(""), PERIGEE_EINVAL);
  unsetenv("PERIGEE_BACKEND_PATH");
  expect_refused("broken", PERIGEE_ENOENT, "there is no backend 'broken'");
  unlink(path);
  rmdir(folder);
}

int main(void) {
  program_deadline(60);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_good_stacks),
      cmocka_unit_test(test_bad_stacks),
      cmocka_unit_test(test_register_refuses),
      cmocka_unit_test(test_an_older_maker_has_fewer_slots),
      cmocka_unit_test(test_replacing_keeps_open_groups),
      cmocka_unit_test(test_routes_are_found_once),
      cmocka_unit_test(test_open_failure_closes_what_was_opened),
      cmocka_unit_test(test_nobody_takes_it),
      cmocka_unit_test(test_pending_work_ends_with_the_operations_time),
      cmocka_unit_test(test_abort_and_close_end_pending_works),
      cmocka_unit_test(test_layers_go_when_the_group_is_dropped),
      cmocka_unit_test(test_plugin_path),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
