/*
 * Members of a group agree on something before they go on: each has a value, member 0 hears them all and tells the verdict. Messages with
 * sequence number 0, which no collective has; several agreements of one group follow each other in order.
 */
#include "coll/arena_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

/* Steps under sequence number 0, which no collective has. */
enum {
  AGREE_UP = 0xa001,
  AGREE_DOWN = 0xa002
};

typedef struct agreement {
  perigee__xfer xfer;
  uint64_t value;
} agreement;

/* Post one message each way between member 0 and every other (or between this rank and member 0) and wait for all. */
static int agree_step(perigee__mesh *mesh, perigee__fate *fate, uint64_t step, bool sending,
                      int64_t deadline_ns, agreement *with, perigee__xfer **list) {
  int n = 0;
  perigee__key key = {.group = fate->group, .tag = step, .kind = PERIGEE_KEY_COLL};
  for (int r = fate->me == 0 ? 1 : 0; r < (fate->me == 0 ? fate->n : 1); r++) {
    memset(&with[r].xfer, 0, sizeof(with[r].xfer));
    if (sending)
      perigee__mesh_send(mesh, fate, fate->members[r], key, &with[r].value, sizeof(with[r].value),
                         0, &with[r].xfer);
    else
      perigee__mesh_recv(mesh, fate, fate->members[r], key, &with[r].value, sizeof(with[r].value),
                         0, &with[r].xfer);
    list[n++] = &with[r].xfer;
  }
  int rc = perigee__mesh_wait(mesh, list, n, fate, deadline_ns);
  for (int i = 0; i < n; i++) {
    if (rc < 0)
      perigee__mesh_cancel(mesh, list[i]);
    else if (list[i]->status < 0)
      rc = list[i]->status;
  }
  if (rc < 0)
    return perigee__fail(rc, "agreeing on the shared memory of group %s: %s", fate->name,
                         perigee_strerror(rc));
  return 0;
}

enum {
  NO,
  YES,
  DIFFERENT
};

static uint64_t judge(const agreement *with, int n) {
  uint64_t verdict = YES;
  for (int r = 0; r < n; r++) {
    if (with[r].value == 0)
      verdict = verdict == DIFFERENT ? DIFFERENT : NO;
    else if (with[0].value != 0 && with[r].value != with[0].value)
      verdict = DIFFERENT;
  }
  return verdict;
}

int perigee__arena_agree_on(perigee__mesh *mesh, perigee__fate *fate, int64_t deadline_ns,
                            uint64_t mine, bool *all_p) {
  agreement *with = perigee__calloc((size_t)fate->n, sizeof(*with));
  perigee__xfer **list = perigee__calloc((size_t)fate->n, sizeof(*list));
  int rc = 0;
  if (with == NULL || list == NULL) {
    rc = perigee__fail(PERIGEE_ENOMEM, "no memory to set up group %s", fate->name);
    goto out;
  }
  with[0].value = mine;
  PERIGEE_TRY_GOTO(agree_step(mesh, fate, AGREE_UP, fate->me != 0, deadline_ns, with, list), out);
  uint64_t verdict = fate->me == 0 ? judge(with, fate->n) : 0;
  for (int r = 0; fate->me == 0 && r < fate->n; r++)
    with[r].value = verdict;
  PERIGEE_TRY_GOTO(agree_step(mesh, fate, AGREE_DOWN, fate->me == 0, deadline_ns, with, list), out);
  if (with[0].value == DIFFERENT)
    rc = perigee__fail(PERIGEE_EMISMATCH, "the ranks of group %s asked for different things",
                       fate->name);
  else
    *all_p = with[0].value == YES;
out:
  free(list);
  free(with);
  return rc;
}

int perigee__arena_agree(perigee__mesh *mesh, perigee__fate *fate, int64_t deadline_ns, bool mine,
                         bool *all_p) {
  return perigee__arena_agree_on(mesh, fate, deadline_ns, mine ? 1 : 0, all_p);
}
