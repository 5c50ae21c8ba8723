/*
 * Barrier. When it comes again and again before a collective in which the others wait for a root (broadcast, scatter), the root goes first:
 * it waits for all, lets them go and goes on, so that what they ask for next is there, or on its way, when they come to it. Otherwise all go at
 * once, and those that come to the next collective before the root wait for it a second time, with more ranks than cores by another
 * round of the scheduler. A barrier and a broadcast together take as long either way (measured): who waits does it once, in the barrier.
 * Before anything else going first would only cost the root's turn. Hence the habit: what has come after the last few barriers decides
 * about the next, and all ranks decide alike, because they call the same.
 */
#include "coll/shm_impl.h"

enum {
  OFTEN = 3 /* barriers in a row with the same root behind them */
};

static bool others_wait_for_root(perigee__coll_kind kind) {
  return kind == PERIGEE_COLL_BROADCAST || kind == PERIGEE_COLL_SCATTER;
}

void perigee__shm_learn(perigee__arena *a) {
  perigee__arena_habit *habit = &a->habit;
  if (habit->at_barrier) {
    int root = others_wait_for_root(a->call->kind) ? a->call->root : -1;
    habit->times = root != habit->root ? 1 : habit->times < OFTEN ? habit->times + 1 : OFTEN;
    habit->root = root;
  }
  habit->at_barrier = a->call->kind == PERIGEE_COLL_BARRIER;
}

int perigee__shm_barrier(perigee__arena *a) {
  const perigee__arena_habit *habit = &a->habit;
  return habit->times == OFTEN && habit->root >= 0 ? perigee__arena_meet_root(a, habit->root)
                                                   : perigee__arena_meet(a, NULL, NULL);
}
