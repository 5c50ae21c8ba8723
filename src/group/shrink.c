/*
 * shrink: the ranks that are alive agree on a new group.
 *
 * Agreement is by the store, whose compare_set decides once for all. Keys under "shrink<k>.<round>/" of the group's store, k counting the
 * shrinks of the group, which all survivors make alike:
 *   here/<rank>   this rank takes part
 *   members       the first proposal, "0,2,3": made by any rank that has seen everybody here or knows him gone, or whose patience is over
 *   open/<rank>   this rank has opened the group of these members
 *   outcome       "commit" by a rank that sees all of them open, or "retry" by one that could not open it, sees a member gone, or has
 *                 no time left; the first word counts
 * Who reads "commit" returns the group, so all that return have the same members; a member that dies afterwards fails the new group, as
 * in any group. After "retry" the next round begins, without who has died meanwhile.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/error.h"
#include "coll/fingerprint.h"
#include "group/group.h"
#include "group/native.h"

#define PATIENCE_NS (60 * PERIGEE_NS_PER_SEC)
#define LOOK_EVERY_NS (2 * PERIGEE_NS_PER_MS)

typedef struct shrink {
  perigee_group *group;
  const char *name;
  unsigned k, round;
  int64_t started_ns, deadline_ns;
  bool *here;   /* by rank of the group */
  int *members; /* ranks of the group, ascending */
  int n, me;    /* of members; me: this rank's place */
  char *text;   /* room for a list of all ranks */
  size_t text_size;
} shrink;

/* ---- keys -------------------------------------------------------------------------------------- */

static const char *key_of(const shrink *s, const char *what, int rank, char key[64]) {
  if (rank >= 0)
    snprintf(key, 64, "shrink%u.%u/%s/%d", s->k, s->round, what, rank);
  else
    snprintf(key, 64, "shrink%u.%u/%s", s->k, s->round, what);
  return key;
}

static int tell(const shrink *s, const char *what) {
  char key[64];
  return perigee_store_set(s->group->store, key_of(s, what, s->group->rank, key), "1", 1);
}

static int is_there(const shrink *s, const char *what, int rank, bool *there_p) {
  char key[64];
  const char *keys[] = {key_of(s, what, rank, key)};
  return perigee_store_check(s->group->store, keys, 1, there_p);
}

/* Write value unless somebody was first; what counts is in text (text_size bytes of s). */
static int decide(const shrink *s, const char *what, const char *value) {
  char key[64];
  perigee_bytes bytes;
  PERIGEE_TRY(perigee_store_compare_set(s->group->store, key_of(s, what, -1, key), "", 0, value,
                                        strlen(value), &bytes));
  int len = snprintf(s->text, s->text_size, "%.*s", (int)bytes.size, bytes.data);
  perigee_bytes_free(&bytes);
  return len >= 0 && (size_t)len < s->text_size
             ? 0
             : perigee__fail(PERIGEE_EPROTO, "shrink: %s is too long", what);
}

/* ---- who is alive ------------------------------------------------------------------------------ */

static bool is_gone(const shrink *s, int rank) {
  perigee_group *group = s->group;
  return group->native && perigee__native_member_gone(group->layers[group->nlayers - 1].self, rank);
}

/* Half of what is left, so that the other half is there for what comes after. */
static int64_t half_of(const shrink *s) {
  int64_t now = perigee__now_ns();
  return s->deadline_ns > now ? now + (s->deadline_ns - now) / 2 : now;
}

/* Between two looks at the store; close of the group waits for this call to end. */
static int pause_a_little(const shrink *s) {
  if (perigee_group_is_closed(s->group))
    return perigee__fail(PERIGEE_ECLOSED, "shrink: the group was closed meanwhile");
  perigee__sleep_ns(LOOK_EVERY_NS);
  return 0;
}

static int late(const shrink *s) {
  perigee_error error;
  perigee__error_init(&error);
  for (int r = 0; r < s->group->nranks; r++)
    if (!s->here[r])
      perigee__error_add_rank(&error, r);
  char ranks[128];
  perigee__error_ranks_text(&error, ranks, sizeof(ranks));
  error.code = PERIGEE_ETIMEDOUT;
  snprintf(error.message, sizeof(error.message),
           "shrink: no agreement within %.1f s, missing ranks %s",
           (double)(s->deadline_ns - s->started_ns) / 1e9, error.nranks > 0 ? ranks : "none");
  error.rank = s->group->rank;
  snprintf(error.group, sizeof(error.group), "%s", s->group->name);
  return perigee__fail_with(&error);
}

/* Wait until everybody is here or known to be gone, patience is over, or somebody else has proposed. */
static int wait_for_all(shrink *s) {
  int n = s->group->nranks;
  int64_t patience = half_of(s);
  memset(s->here, 0, (size_t)n * sizeof(bool));
  s->here[s->group->rank] = true;
  for (bool decided = false;;) {
    int missing = 0;
    PERIGEE_TRY(is_there(s, "members", -1, &decided));
    for (int r = 0; r < n && !decided; r++) {
      if (!s->here[r])
        PERIGEE_TRY(is_there(s, "here", r, &s->here[r]));
      if (!s->here[r] && !is_gone(s, r))
        missing++;
    }
    if (decided || missing == 0 || perigee__passed(patience))
      return 0;
    PERIGEE_TRY(pause_a_little(s));
  }
}

/* Members from "0,2,3" in text. */
static int read_members(shrink *s) {
  s->n = 0;
  s->me = -1;
  for (const char *at = s->text; *at != '\0';) {
    char *end;
    long rank = strtol(at, &end, 10);
    if (end == at || rank < 0 || rank >= s->group->nranks || s->n == s->group->nranks ||
        (*end != ',' && *end != '\0'))
      return perigee__fail(PERIGEE_EPROTO, "shrink: members are '%.100s'", s->text);
    if (rank == s->group->rank)
      s->me = s->n;
    s->members[s->n++] = (int)rank;
    at = *end == ',' ? end + 1 : end;
  }
  return s->me >= 0
             ? 0
             : perigee__fail(PERIGEE_ESTATE,
                             "shrink: the others went on without this rank, as %.200s", s->text);
}

static int agree_on_members(shrink *s) {
  PERIGEE_TRY(tell(s, "here"));
  PERIGEE_TRY(wait_for_all(s));
  size_t used = 0;
  char *mine = perigee__calloc(s->text_size, 1);
  if (mine == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a list of ranks");
  for (int r = 0; r < s->group->nranks; r++)
    if (s->here[r] && !is_gone(s, r))
      used += (size_t)snprintf(mine + used, s->text_size - used, "%s%d", used > 0 ? "," : "", r);
  int rc = decide(s, "members", mine);
  free(mine);
  return rc < 0 ? rc : read_members(s);
}

/* ---- the group --------------------------------------------------------------------------------- */

static int open_group(const shrink *s, perigee_group **group_p) {
  const perigee_group *group = s->group;
  char name[64];
  snprintf(name, sizeof(name), "%.32s/%.12s%u.%u", group->name, s->name != NULL ? s->name : "alive",
           s->k, s->round);
  uint64_t id = perigee__hash_mix(perigee__hash_mix(group->id, ((uint64_t)s->k << 32) | s->round),
                                  UINT64_C(0x736872696e6b));
  return perigee__group_of_members(s->group, 0, name, id, s->members, s->n, s->me, half_of(s),
                                   group_p);
}

/* Whether the outcome is known, or what this rank says about it: "commit", "retry", or NULL for not yet. */
static int look_at_members(const shrink *s, const perigee_group *made, int64_t patience,
                           const char **word_p) {
  bool decided, all = true, gone = false;
  PERIGEE_TRY(is_there(s, "outcome", -1, &decided));
  for (int i = 0; i < s->n && !decided; i++) {
    bool open = true;
    if (i != s->me)
      PERIGEE_TRY(is_there(s, "open", s->members[i], &open));
    all = all && open;
    gone = gone || (!open && is_gone(s, s->members[i]));
  }
  if (decided ||
      (!all && (gone || perigee_group_failed(made, NULL) < 0 || perigee__passed(patience))))
    *word_p = "retry"; /* or what stands there already */
  else
    *word_p = all ? "commit" : NULL;
  return 0;
}

/* *committed_p: all members have the group. */
static int agree_on_outcome(const shrink *s, const perigee_group *made, bool *committed_p) {
  const char *word = made != NULL ? NULL : "retry";
  if (made != NULL)
    PERIGEE_TRY(tell(s, "open"));
  for (int64_t patience = half_of(s); word == NULL;) {
    PERIGEE_TRY(look_at_members(s, made, patience, &word));
    if (word == NULL)
      PERIGEE_TRY(pause_a_little(s));
  }
  PERIGEE_TRY(decide(s, "outcome", word));
  *committed_p = strcmp(s->text, "commit") == 0;
  return 0;
}

static int one_round(shrink *s, perigee_group **group_p) {
  PERIGEE_TRY(agree_on_members(s));
  perigee_group *made = NULL;
  perigee_error why;
  bool committed = false;
  if (open_group(s, &made) < 0)
    why = *perigee_last_error();
  int rc = agree_on_outcome(s, made, &committed);
  if (rc == 0 && committed) {
    *group_p = made;
    return 1;
  }
  if (made != NULL) {
    perigee_group_close(made);
    perigee_group_unref(made);
  } else if (rc == 0 && s->n == 1) {
    return perigee__fail_with(&why); /* nobody else's fault */
  }
  return rc;
}

static int run(shrink *s, perigee_group **group_p) {
  for (s->round = 1;; s->round++) {
    int rc = one_round(s, group_p);
    if (rc != 0)
      return rc < 0 ? rc : 0;
    if (perigee__passed(s->deadline_ns))
      return late(s);
  }
}

static int shrink_group(perigee_group *group, int64_t timeout_ns, const char *name,
                        perigee_group **group_p) {
  int64_t default_ns = atomic_load_explicit(&group->timeout_ns, memory_order_relaxed);
  if (timeout_ns <= 0)
    timeout_ns = default_ns < PATIENCE_NS ? default_ns : PATIENCE_NS;
  size_t n = (size_t)group->nranks;
  shrink s = {.group = group,
              .name = name,
              .started_ns = perigee__now_ns(),
              .deadline_ns = perigee__deadline_in(timeout_ns),
              .here = perigee__calloc(n, sizeof(bool)),
              .members = perigee__calloc(n, sizeof(int)),
              .text_size = n * 12 + 16};
  s.text = perigee__calloc(s.text_size, 1);
  perigee__lock(&group->mutex);
  s.k = ++group->shrinks;
  perigee__unlock(&group->mutex);
  int rc;
  if (s.here == NULL || s.members == NULL || s.text == NULL) {
    rc = perigee__fail(PERIGEE_ENOMEM, "no memory for a list of %d ranks", group->nranks);
  } else if (n == 1) {
    s.n = 1;
    rc = open_group(&s, group_p);
  } else if (group->store == NULL) {
    rc = perigee__fail(PERIGEE_ENOTSUP, "shrink: group %s has no store to agree on", group->name);
  } else {
    rc = run(&s, group_p);
  }
  free(s.here);
  free(s.members);
  free(s.text);
  return rc;
}

int perigee_group_shrink(perigee_group *group, int64_t timeout_ns, const char *name,
                         perigee_group **group_p) {
  PERIGEE_TRY(perigee__group_may_block());
  PERIGEE_TRY(perigee__group_enter(group));
  return perigee__group_leave(group, shrink_group(group, timeout_ns, name, group_p));
}
