/* What the bottom would do with an operation. */
#include "coll/explain.h"
#include "base/error.h"
#include "group/group.h"
#include "group/native.h"

static int explain(perigee_group *group, int op, uint64_t nbytes, bool symmetric,
                   perigee_choice *choice_p) {
  const char *name = perigee_op_name(op);
  if (choice_p->size != sizeof(*choice_p))
    return perigee__fail(PERIGEE_EINVAL, "perigee_choice.size is %u, expected %zu", choice_p->size,
                         sizeof(*choice_p));
  if (name == NULL)
    return perigee__fail(PERIGEE_EINVAL, "explain: %d is no operation", op);
  int kind = perigee__explain_kind(op);
  if (kind < 0)
    return perigee__fail(PERIGEE_EINVAL, "explain: the way of %s does not depend on its size",
                         name);
  if (!group->native)
    return perigee__fail(PERIGEE_ENOTSUP, "explain: the bottom of %s is not native", group->stack);
  return perigee__native_explain(group->layers[group->nlayers - 1].self, (perigee__coll_kind)kind,
                                 nbytes, symmetric, choice_p);
}

int perigee_group_explain(perigee_group *group, int op, uint64_t nbytes, bool symmetric,
                          perigee_choice *choice_p) {
  PERIGEE_TRY(perigee__group_enter(group));
  return perigee__group_leave(group, explain(group, op, nbytes, symmetric, choice_p));
}
