/*
 * A C program that embeds Perigee: loads a backend from a Lua file, opens a group with it and calls allreduce from C.
 *
 *   cc embed.c $(pkg-config --cflags --libs perigee lua5.4) -o embed
 *   perigee run -n 2 ./embed examples/backends/fp16.lua
 *   PERIGEE_BACKEND_PATH=build/plugins perigee run -n 2 ./embed examples/backends/fp16.lua 'count(fp16(native))'
 */
#include <stdio.h>

#include <perigee/lua.h>
#include <perigee/perigee.h>

static int failed(const char *what) {
  char text[600];
  perigee_error_format(perigee_last_error(), text, sizeof(text));
  fprintf(stderr, "%s: %s\n", what, text);
  return 1;
}

int main(int argc, char **argv) {
  const char *file = argc > 1 ? argv[1] : "examples/backends/fp16.lua";
  perigee_interp *interp;
  if (perigee_interp_create(NULL, &interp) < 0)
    return failed("interpreter");
  if (perigee_interp_load_backend(interp, file, "fp16") < 0)
    return failed(file);

  perigee_init_options options;
  perigee_init_options_init(&options);
  options.backend = argc > 2 ? argv[2] : "fp16(native)";
  perigee_group *world;
  if (perigee_init(&options, &world) < 0)
    return failed("init");

  float values[4] = {1, 2, 3, 4};
  const int64_t shape[1] = {4};
  perigee_tensor *tensor;
  if (perigee_tensor_wrap(PERIGEE_F32, 1, shape, values, NULL, NULL, &tensor) < 0)
    return failed("tensor");
  if (perigee_allreduce(world, tensor, PERIGEE_REDOP_SUM) < 0) /* runs the Lua override */
    return failed("allreduce");
  printf("rank %d of %d through %s: %g %g %g %g\n", perigee_group_rank(world),
         perigee_group_size(world), perigee_group_backend(world), (double)values[0],
         (double)values[1], (double)values[2], (double)values[3]);
  int wrong = values[3] != 4.0F * (float)perigee_group_size(world);

  perigee_tensor_unref(tensor);
  perigee_group_close(world);
  perigee_group_unref(world);
  perigee_interp_destroy(&interp);
  return wrong;
}
