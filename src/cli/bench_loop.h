/* The measured loops of `perigee bench`, as a Lua module that only the command has. */
#ifndef PERIGEE_CLI_BENCH_LOOP_H
#define PERIGEE_CLI_BENCH_LOOP_H

#include <lua.h>

/**
 * Module "perigee.bench.loop"; perigee.core must be loaded. Its functions make loops; a loop is called with a group and the arguments
 * of one call, gives the interpreter up, and returns microseconds: mean, min, p50, p99 of this rank's calls.
 *   calls(op, iters)            time each call; an untimed barrier follows it
 *   back_to_back(op, iters)     the whole loop / iters; the four values are equal
 *   overlap(op, iters, units)   submit, compute(units), wait; a barrier follows
 *   idle(iters)                 only the barriers of the others' calls
 *   pingpong(iters)             (group, out, in): ranks 0 and 1, half a round trip
 *   window(iters, n)            (group, message, answer): n messages from 0 to 1 in flight, per message
 * and compute(units): works that long on one core, returns microseconds.
 */
int perigee__bench_loop_open(lua_State *L);

#endif
