#include "host/lshared.h"

#include <stdlib.h>

typedef struct lshared {
  perigee_shared base; /* first: ref and unref get it */
  _Atomic uint32_t refs;
  perigee__luaref *value;
} lshared;

static void shared_ref(perigee_shared *self) {
  atomic_fetch_add_explicit(&((lshared *)self)->refs, 1, memory_order_relaxed);
}

static void shared_unref(perigee_shared *self) {
  lshared *s = (lshared *)self;
  /* acq_rel: the last owner sees what the others did with it */
  if (atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__luaref_drop(s->value);
  free(s);
}

perigee_shared *perigee__lshared_create(perigee_interp *interp, lua_State *L) {
  perigee__luaref *value = perigee__luaref_create(interp, L);
  lshared *s = malloc(sizeof(*s));
  if (s == NULL) {
    perigee__luaref_drop(value);
    luaL_error(L, "not enough memory");
  }
  *s = (lshared){.base = {shared_ref, shared_unref}, .value = value};
  atomic_init(&s->refs, 1);
  return &s->base;
}

bool perigee__lshared_push(perigee_interp *interp, lua_State *L, const perigee_shared *shared) {
  /* Who made it is told by its functions. */
  const lshared *s =
      shared != NULL && shared->unref == shared_unref ? (const lshared *)shared : NULL;
  if (s == NULL || s->value->interp != interp) {
    lua_pushnil(L);
    return false;
  }
  lua_rawgeti(L, LUA_REGISTRYINDEX, s->value->ref);
  return true;
}
