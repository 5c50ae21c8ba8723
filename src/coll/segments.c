#include "coll/segments.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/list.h"
#include "base/thread.h"
#include "transport/memfd.h"

/* LARGE: from here on huge pages are worth asking for. */
enum {
  PAGE = 4096,
  LARGE = 4 << 20
};

struct perigee__segments {
  _Atomic uint32_t refs;
  _Atomic uint32_t
      count; /* relaxed: 0 spares the lock; who asks about a segment holds it, so its own is counted */
  perigee_mutex mutex; /* list */
  perigee__node list;
};

struct perigee__segment {
  perigee__node node;
  perigee__segments *segments;
  char *base, *own;
  size_t bytes, stride, total;
  uint32_t id;
};

perigee__segments *perigee__segments_create(void) {
  perigee__segments *list = perigee__calloc(1, sizeof(*list));
  if (list == NULL)
    return NULL;
  atomic_init(&list->refs, 1);
  perigee__mutex_init(&list->mutex, PERIGEE_LOCK_LEAF, "segments");
  perigee__list_init(&list->list);
  return list;
}

void perigee__segments_unref(perigee__segments *list) {
  if (list == NULL || atomic_fetch_sub_explicit(&list->refs, 1, memory_order_acq_rel) != 1)
    return;
  perigee__mutex_fini(&list->mutex);
  free(list);
}

size_t perigee__segment_total(int n, size_t bytes, size_t *stride_p) {
  if (bytes > ((size_t)PTRDIFF_MAX - PAGE) / (size_t)n)
    return 0;
  *stride_p = bytes > 0 ? (bytes + PAGE - 1) / PAGE * PAGE : PAGE;
  return *stride_p <= (size_t)PTRDIFF_MAX / (size_t)n ? *stride_p * (size_t)n : 0;
}

int perigee__segment_create(perigee__segments *list, int fd, int me, int n, size_t bytes,
                            uint32_t id, perigee__segment **segment_p) {
  perigee__segment *s = perigee__calloc(1, sizeof(*s));
  if (s == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for a segment");
  s->total = perigee__segment_total(n, bytes, &s->stride);
  void *base = NULL;
  int rc = perigee__memfd_map(fd, s->total, &base);
  if (rc < 0) {
    free(s);
    return rc;
  }
  if (s->total >= LARGE)
    (void)madvise(base, s->total, MADV_HUGEPAGE); /* refused by most kernels for shared memory */
  s->base = base;
  s->own = s->base + (size_t)me * s->stride;
  s->bytes = s->stride;
  s->id = id;
  s->segments = list;
  atomic_fetch_add_explicit(&list->refs, 1, memory_order_relaxed);
  perigee__lock(&list->mutex);
  perigee__list_append(&list->list, &s->node);
  atomic_fetch_add_explicit(&list->count, 1, memory_order_relaxed);
  perigee__unlock(&list->mutex);
  *segment_p = s;
  return 0;
}

void *perigee__segment_own(const perigee__segment *segment) { return segment->own; }

void perigee__segment_drop(perigee__segment *segment) {
  perigee__segments *list = segment->segments;
  perigee__lock(&list->mutex);
  perigee__list_remove(&segment->node);
  atomic_fetch_sub_explicit(&list->count, 1, memory_order_relaxed);
  perigee__unlock(&list->mutex);
  perigee__memfd_unmap(segment->base, segment->total);
  free(segment);
  perigee__segments_unref(list);
}

bool perigee__segments_find(perigee__segments *list, const void *ptr, size_t bytes,
                            perigee__place *place_p) {
  if (PERIGEE_LIKELY(atomic_load_explicit(&list->count, memory_order_relaxed) == 0) || bytes == 0)
    return false;
  uintptr_t at = (uintptr_t)ptr;
  bool found = false;
  perigee__lock(&list->mutex);
  PERIGEE_LIST_EACH(it, &list->list) {
    const perigee__segment *s = PERIGEE_CONTAINER_OF(it, perigee__segment, node);
    uintptr_t own = (uintptr_t)s->own;
    if (at < own || at - own >= s->bytes || bytes > s->bytes - (at - own))
      continue;
    *place_p = (perigee__place){s->id, (size_t)(at - own), s->base, s->stride};
    found = true;
    break;
  }
  perigee__unlock(&list->mutex);
  return found;
}
