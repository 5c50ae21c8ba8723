/*
 * A C program whose eight threads share one group that is scripted in Lua: the interpreter lets one in at a time, and gives it up
 * while an operation waits. Calls are asynchronous; a callback in C hears of their ends. A script that does not come back is stopped.
 *
 *   cc embed_threads.c -pthread $(pkg-config --cflags --libs perigee lua5.4) -o embed_threads
 *   perigee run -n 2 ./embed_threads
 *
 * Collectives of one group must be issued in the same order on all ranks. Threads that race for the order would not; here every
 * thread has a group of its own for them (a subgroup of all ranks), all with the same scripted backend.
 */
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <perigee/lua.h>
#include <perigee/perigee.h>

enum {
  THREADS = 8,
  CALLS = 100
};

static const char script[] = "local Twice = {}\n"
                             "function Twice:allreduce(tensors, opts)\n"
                             "  local work = self.inner:allreduce(tensors, opts)\n"
                             "  return work:map(function() tensors[1]:mul_(2) end)\n"
                             "end\n"
                             "function Twice:barrier() while true do local endless = {} end end\n"
                             "return Twice\n";

static sem_t callbacks;

static void check(int rc, const char *what) {
  if (rc >= 0)
    return;
  char text[600];
  perigee_error_format(perigee_last_error(), text, sizeof(text));
  fprintf(stderr, "%s: %s\n", what, text);
  exit(1);
}

/* On the thread that ends the work, with no lock held. It must not wait; it could start another operation. */
static void on_done(perigee_work *work, void *arg) {
  (void)arg;
  if (perigee_work_get_status(work) == PERIGEE_WORK_DONE)
    sem_post(&callbacks);
}

/* CALLS allreduces of the value 1. Returns the last result. */
static void *thread_main(void *arg) {
  perigee_group *group = arg;
  static _Thread_local float value;
  const int64_t shape[1] = {1};
  perigee_tensor *tensor;
  check(perigee_tensor_wrap(PERIGEE_F32, 1, shape, &value, NULL, NULL, &tensor), "tensor");
  for (int i = 0; i < CALLS; i++) {
    value = 1;
    perigee_request request;
    perigee_request_init(&request, PERIGEE_OP_ALLREDUCE);
    request.in = (perigee_tensors){.v = &tensor, .n = 1};
    perigee_work *work;
    check(perigee_group_submit(group, &request, &work), "allreduce");
    check(perigee_work_on_done(work, on_done, NULL), "on_done");
    check(perigee_work_wait(work, PERIGEE_TIMEOUT_NONE), "wait");
    perigee_work_unref(work);
  }
  perigee_tensor_unref(tensor);
  return (void *)(intptr_t)value;
}

int main(void) {
  sem_init(&callbacks, 0, 0);
  perigee_interp *interp;
  check(perigee_interp_create(NULL, &interp), "interpreter");
  check(perigee_interp_load_backend_string(interp, script, "twice"), "script");

  perigee_init_options options;
  perigee_init_options_init(&options);
  options.backend = "twice(native)";
  perigee_group *world, *groups[THREADS];
  check(perigee_init(&options, &world), "init");
  for (int i = 0; i < THREADS; i++)
    check(perigee_group_split(world, 0, perigee_group_rank(world), NULL, &groups[i]), "split");

  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], NULL, thread_main, groups[i]) != 0)
      return 1;
  intptr_t expected = 2 * perigee_group_size(world);
  for (int i = 0; i < THREADS; i++) {
    void *value;
    pthread_join(threads[i], &value);
    if ((intptr_t)value != expected)
      return 2;
  }
  /* A wait may return before the callbacks of its work have run on the thread that ended it. */
  for (int i = 0; i < THREADS * CALLS; i++)
    sem_wait(&callbacks);
  printf("rank %d: %d threads, %d calls, %d callbacks, each value %d\n", perigee_group_rank(world),
         THREADS, THREADS * CALLS, THREADS * CALLS, (int)expected);

  /* The barrier of this script never ends. Its caller gets an error that says where it was. */
  check(perigee_interp_set_time_limit(interp, 200 * 1000000LL), "limit");
  int rc = perigee_barrier(world);
  char text[600];
  perigee_error_format(perigee_last_error(), text, sizeof(text));
  printf("rank %d: stopped: %s\n", perigee_group_rank(world), text);

  for (int i = 0; i < THREADS; i++) {
    perigee_group_close(groups[i]);
    perigee_group_unref(groups[i]);
  }
  perigee_group_close(world);
  perigee_group_unref(world);
  perigee_interp_destroy(&interp);
  return rc == PERIGEE_ETIMEDOUT ? 0 : 3;
}
