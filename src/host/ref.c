/* References from C into the Lua registry: counted, and droppable where nobody may enter the interpreter. */
#include <stdlib.h>

#include "host/interp.h"

#include "base/assert.h"

int perigee__ref(perigee_interp *interp, lua_State *L) {
  int ref = luaL_ref(L, LUA_REGISTRYINDEX);
  atomic_fetch_add_explicit(&interp->live_refs, 1, memory_order_relaxed);
  return ref;
}

void perigee__unref(perigee_interp *interp, int ref) {
  if (ref == LUA_NOREF || ref == LUA_REFNIL || interp->main == NULL)
    return;
  /* luaL_unref writes slots that exist: it neither allocates nor raises. */
  luaL_unref(interp->service, LUA_REGISTRYINDEX, ref);
  atomic_fetch_sub_explicit(&interp->live_refs, 1, memory_order_relaxed);
}

perigee__luaref *perigee__luaref_create(perigee_interp *interp, lua_State *L) {
  int ref = perigee__ref(interp, L);
  perigee__luaref *r = malloc(sizeof(*r));
  if (r == NULL) {
    perigee__unref(interp, ref);
    luaL_error(L, "not enough memory");
  }
  perigee__interp_ref(interp);
  *r = (perigee__luaref){.interp = interp, .ref = ref};
  return r;
}

void perigee__luaref_drop(void *luaref) {
  perigee__luaref *r = luaref;
  if (r == NULL)
    return;
  perigee_interp *interp = r->interp;
  perigee__lock(&interp->ready_lock);
  bool open = atomic_load_explicit(&interp->state, memory_order_relaxed) != PERIGEE_INTERP_CLOSED;
  if (open) {
    r->next = interp->garbage;
    interp->garbage = r;
    atomic_store_explicit(&interp->has_garbage, 1, memory_order_relaxed);
  }
  perigee__unlock(&interp->ready_lock);
  if (!open) {
    free(r);
    perigee__interp_unref(interp);
  }
}

void perigee__garbage_free(perigee_interp *interp) {
  perigee__lock(&interp->ready_lock);
  perigee__luaref *r = interp->garbage;
  interp->garbage = NULL;
  atomic_store_explicit(&interp->has_garbage, 0, memory_order_relaxed);
  perigee__unlock(&interp->ready_lock);
  while (r != NULL) {
    perigee__luaref *next = r->next;
    perigee__unref(interp, r->ref);
    free(r);
    perigee__interp_unref(interp); /* never the last: the caller holds one */
    r = next;
  }
}
