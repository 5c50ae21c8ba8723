/* Messages and memory of one call: posted, waited for, taken back and freed in one place. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "coll/net_call.h"

/* Of spare scratch: the pieces in which the algorithms work fit, whatever the vector. */
#define SPARE_MAX ((size_t)2 << 20)

static size_t aligned(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

void perigee__net_init(perigee__net *net, perigee__mesh *mesh, perigee__fate *fate,
                       const perigee__tuning *tuning, const perigee__coll_call *call,
                       perigee_error *error) {
  net->mesh = mesh;
  net->fate = fate;
  net->call = call;
  net->tuning = tuning;
  net->error = error;
  net->me = fate->me;
  net->n = fate->n;
  net->asked = net->comparing = false;
  net->live = net->inline_live;
  net->nlive = net->reserved = 0;
  net->live_room = PERIGEE_NET_INLINE_LIVE;
  memset(&net->roll, 0, sizeof(net->roll));
  net->spare = NULL;
  net->spare_used = net->blocks_bytes = 0;
  net->blocks = NULL;
  net->free_at = net->inline_scratch;
  net->free_bytes = sizeof(net->inline_scratch);
}

/* Next time what this call had from malloc is there. Without memory there is just none to spare. */
static void grow_spare(perigee__net *net) {
  perigee__net_spare *spare = net->spare;
  size_t need = net->spare_used + net->blocks_bytes;
  if (spare == NULL || net->blocks_bytes == 0 || need > SPARE_MAX)
    return;
  free(spare->block);
  spare->block = aligned_alloc(64, need);
  spare->bytes = spare->block != NULL ? need : 0;
}

void perigee__net_fini(perigee__net *net) {
  while (net->nlive > 0)
    perigee__mesh_cancel(net->mesh, net->live[--net->nlive]);
  grow_spare(net);
  while (net->blocks != NULL) {
    perigee__net_block *next = net->blocks->next;
    free(net->blocks);
    net->blocks = next;
  }
}

void *perigee__net_buffer(perigee__net *net, size_t count, size_t size) {
  size_t bytes;
  if (__builtin_mul_overflow(count, size, &bytes) || bytes > SIZE_MAX / 2) {
    perigee__net_blame_memory(net, SIZE_MAX);
    return NULL;
  }
  bytes = aligned(bytes > 0 ? bytes : 1);
  if (bytes <= net->free_bytes) {
    void *at = net->free_at;
    net->free_at += bytes;
    net->free_bytes -= bytes;
    return at;
  }
  if (net->spare != NULL && bytes <= net->spare->bytes - net->spare_used) {
    void *at = net->spare->block + net->spare_used;
    net->spare_used += bytes;
    return at;
  }
  perigee__net_block *block = aligned_alloc(64, 64 + bytes);
  if (block == NULL) {
    perigee__net_blame_memory(net, bytes);
    return NULL;
  }
  block->next = net->blocks;
  net->blocks = block;
  net->blocks_bytes += bytes;
  return (unsigned char *)block + 64;
}

void *perigee__net_alloc(perigee__net *net, size_t count, size_t size) {
  void *at = perigee__net_buffer(net, count, size);
  if (at != NULL)
    memset(at, 0, count * size);
  return at;
}

perigee__msg *perigee__net_msgs(perigee__net *net, size_t count) {
  size_t need = (size_t)net->reserved + count;
  if (need > (size_t)net->live_room) {
    size_t room = need > 2 * (size_t)net->live_room ? need : 2 * (size_t)net->live_room;
    perigee__xfer **live = perigee__net_buffer(net, room, sizeof(*live));
    if (live == NULL)
      return NULL;
    memcpy(live, net->live, (size_t)net->nlive * sizeof(*live));
    net->live = live;
    net->live_room = (int)room;
  }
  perigee__msg *msgs = perigee__net_alloc(net, count, sizeof(*msgs));
  if (msgs != NULL)
    net->reserved += (int)count;
  return msgs;
}

static perigee__key key_of(const perigee__net *net, int step) {
  PERIGEE_ASSERT(step >= 0 && step <= PERIGEE_NET_STEP_MAX);
  return (perigee__key){.group = net->fate->group,
                        .tag = net->call->seq << 16 | (uint64_t)step,
                        .kind = PERIGEE_KEY_COLL};
}

static perigee__msg *msg_of(perigee__xfer *xfer) {
  return PERIGEE_CONTAINER_OF(xfer, perigee__msg, xfer);
}

static void add_live(perigee__net *net, perigee__msg *msg) {
  PERIGEE_ASSERT(net->nlive < net->reserved && msg->live == 0);
  net->live[net->nlive] = &msg->xfer;
  msg->live = ++net->nlive;
}

static void remove_live(perigee__net *net, perigee__msg *msg) {
  perigee__xfer *last = net->live[--net->nlive];
  net->live[msg->live - 1] = last;
  msg_of(last)->live = msg->live;
  msg->live = 0;
}

/* A message that is done already and well needs no more attention. */
static void keep(perigee__net *net, perigee__msg *msg) {
  if (!perigee__net_idle(msg) || msg->xfer.status != 0)
    add_live(net, msg);
}

void perigee__net_send(perigee__net *net, perigee__msg *msg, int peer, int step, const void *buf,
                       size_t bytes) {
  perigee__mesh_send(net->mesh, net->fate, net->fate->members[peer], key_of(net, step), buf, bytes,
                     net->call->fp, &msg->xfer);
  keep(net, msg);
}

void perigee__net_recv(perigee__net *net, perigee__msg *msg, int peer, int step, void *buf,
                       size_t room) {
  perigee__mesh_recv(net->mesh, net->fate, net->fate->members[peer], key_of(net, step), buf, room,
                     net->call->fp, &msg->xfer);
  keep(net, msg);
}

/* A block longer than its room, before all ranks have compared sizes: what they find is the error of all. */
static bool overtook(const perigee__net *net, const perigee__xfer *xfer) {
  return net->comparing && !xfer->is_send && xfer->status == PERIGEE_ETRUNC &&
         xfer->peer_fp == net->call->fp && (xfer->key.tag & 0xffff) >= PERIGEE_NET_STEP_DATA;
}

/* A message that is done: out of the live ones, and its error if it has one. */
static int settle(perigee__net *net, perigee__msg *msg) {
  if (msg->live > 0)
    remove_live(net, msg);
  if (msg->xfer.status == 0 || overtook(net, &msg->xfer))
    return 0;
  return perigee__net_blame_msg(net, msg);
}

static int sweep(perigee__net *net) {
  for (int i = 0; i < net->nlive;) {
    perigee__msg *msg = msg_of(net->live[i]);
    if (perigee__net_idle(msg))
      PERIGEE_TRY(settle(net, msg));
    else
      i++;
  }
  return 0;
}

int perigee__net_progress(perigee__net *net) {
  PERIGEE_CHECK(net->nlive > 0); /* otherwise there is nothing that could happen */
  int rc =
      perigee__mesh_wait_any(net->mesh, net->live, net->nlive, net->fate, net->call->deadline_ns);
  if (rc == PERIGEE_ETIMEDOUT)
    return perigee__net_blame_timeout(net);
  if (rc != 0) /* EABORTED: the fate has failed */
    return perigee__net_blame_fate(net);
  PERIGEE_TRY(sweep(net));
  return perigee__roll_advance(net);
}

int perigee__net_wait(perigee__net *net, perigee__msg *msg) {
  while (!perigee__net_idle(msg))
    PERIGEE_TRY(perigee__net_progress(net));
  return settle(net, msg);
}

int perigee__net_wait_all(perigee__net *net, perigee__msg *msgs, size_t count) {
  for (size_t i = 0; i < count; i++)
    PERIGEE_TRY(perigee__net_wait(net, &msgs[i]));
  return 0;
}

int perigee__net_finish(perigee__net *net) {
  PERIGEE_TRY(perigee__roll_advance(net));
  while (net->nlive > 0)
    PERIGEE_TRY(perigee__net_progress(net));
  return 0;
}

int perigee__window_send(perigee__net *net, perigee__window *w, int peer, int step, const void *buf,
                         size_t bytes) {
  perigee__msg *msg = &w->msgs[w->next++ % w->size];
  PERIGEE_TRY(perigee__net_wait(net, msg));
  perigee__net_send(net, msg, peer, step, buf, bytes);
  return 0;
}
