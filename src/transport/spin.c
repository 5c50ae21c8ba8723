/*
 * How long a thread that drives polls before it sleeps, and when it offers its core meanwhile.
 *
 * The budget (mesh->spin_ns) is learnt: the whole SPIN_NS when polling has brought something lately, half as long after each time in
 * vain, because then the peer is busy; now and then the whole time is tried again.
 *
 * Whether the core is shared is learnt as well, from what a yield takes, and not from where the ranks are: others of this world may run
 * on this machine as another "host" (a container, a network namespace), and so may quite another world.
 *   company     A yield has lately let somebody else run. Then whom we wait for may be waiting for our core: it is offered after every look
 *               that found nothing, because a yield costs much less than sleeping and being woken. The budget is larger, since it is
 *               mostly others that use it.
 *   no company  The first yield comes after SPIN_ALONE_NS: until then looks are quicker without.
 *   stranger    A yield that took STRANGER_NS met somebody who has much to compute. For DEAR_FACTOR times as long there are no more of
 *               them: polling is short then, because who is woken is put before who computes. Not while bulk is waited for: its
 *               pieces are better taken many at a time, and who computes is probably a rank that copies.
 */
#include <sched.h>

#include "base/clock.h"
#include "base/futex.h"
#include "transport/mesh_impl.h"

enum {
  BARE_RING_POLLS = 48, /* before the first look at the clock; they take some ns each */
  BARE_LINK_POLLS = 4,  /* the same of sockets: a system call each */
  LOOP_EVERY = 64,
  OTHERS_EVERY = 4, /* looks at those sockets that nobody waits for now */
  LINKS_POLLED = 3,
  PROBE_EVERY = 32,    /* waits */
  COMPANY_YIELDS = 64, /* that met nobody until the core is taken for our own */
  COMPANY_FACTOR = 20, /* the budget's, in company */
  DEAR_FACTOR = 16,
  BULK_BYTES = 64 << 10,
  LENT_BYTES_PER_NS =
      4 /* who has lent memory polls while it could be read: being woken takes as long as a MiB */
};
/* Several times a message's way when the peer has a core. */
#define SPIN_NS (50 * PERIGEE_NS_PER_US)
#define SPIN_MIN_NS (PERIGEE_NS_PER_US)
/* After this the peer may be waiting for our core: offer it. */
#define SPIN_ALONE_NS (5 * PERIGEE_NS_PER_US)
/* A yield that meets nobody takes less (0.3 to 1 us); two switches and a look at a socket take more (2 to 5 us). */
#define COMPANY_NS (3 * PERIGEE_NS_PER_US / 2)
/* Ranks that wait yield much sooner; the kernel's slices are longer. */
#define STRANGER_NS (PERIGEE_NS_PER_MS)

void perigee__spin_init(perigee__mesh *mesh) {
  mesh->spins_at_all = mesh->local_ranks <= perigee__usable_cores();
  mesh->company = mesh->spins_at_all ? 0 : COMPANY_YIELDS;
  mesh->spin_ns = SPIN_NS;
}

/* ---- looking ----------------------------------------------------------------------------------- */

static bool pump(perigee__peer *peer) {
  return perigee__link_is_up(peer) && perigee__channel_pump(peer);
}

/* The sockets by which what is waited for comes, without asking the kernel which of them is ready. Returns whether something came. */
static bool poll_awaited(perigee__mesh *mesh, const perigee__wait *wait) {
  bool moved = false;
  for (int i = 0; i < wait->n; i++) {
    const perigee__xfer *xfer = wait->xfers[i];
    if (xfer->phase != PERIGEE_XFER_DONE && xfer->peer != mesh->rank)
      moved |= pump(&mesh->peers[xfer->peer]);
  }
  return moved;
}

static bool poll_all(perigee__mesh *mesh) {
  bool moved = false;
  for (int r = 0; r < mesh->nranks; r++)
    moved |= pump(&mesh->peers[r]);
  return moved;
}

/* Whether it is worth it to look at what is waited for by itself. */
static bool is_named(const perigee__wait *wait) {
  for (int i = 0; i < wait->n; i++)
    if (i == LINKS_POLLED || wait->xfers[i]->peer < 0)
      return false;
  return wait->n > 0;
}

/* One look at everything, or in most passes at what is waited for. Returns whether something moved, as far as that is known. */
static bool poll_pass(perigee__mesh *mesh, const perigee__wait *wait, int pass) {
  bool few = mesh->nranks <= LINKS_POLLED + 1;
  bool all = mesh->n_links > 0 && (pass % OTHERS_EVERY == 0 || !is_named(wait));
  if (pass % LOOP_EVERY == 0 || (all && !few)) {
    perigee__loop_poll(mesh->loop);
    return false;
  }
  bool moved = false;
  if (mesh->n_links > 0)
    moved = all ? poll_all(mesh) : poll_awaited(mesh, wait);
  return perigee__rings_poll(mesh) || moved;
}

/* ---- yielding ---------------------------------------------------------------------------------- */

/* Offer the core, at a time that is `now`. Returns what it is afterwards. */
static int64_t offer_core(perigee__mesh *mesh, int64_t now) {
  sched_yield();
  int64_t then = perigee__now_ns(), took = then - now;
  if (took >= STRANGER_NS)
    mesh->no_yield_until = then + DEAR_FACTOR * took;
  if (took >= COMPANY_NS)
    mesh->company = COMPANY_YIELDS;
  else if (mesh->company > 0)
    mesh->company--;
  return then;
}

static bool is_bulk(const perigee__wait *wait) {
  size_t bytes = 0;
  for (int i = 0; i < wait->n && bytes < BULK_BYTES; i++)
    if (wait->xfers[i]->phase != PERIGEE_XFER_DONE)
      bytes += wait->xfers[i]->size;
  return bytes >= BULK_BYTES;
}

bool perigee__spin(perigee__mesh *mesh, const perigee__wait *wait) {
  bool whole = ++mesh->spins % PROBE_EVERY == 0;
  int bare = mesh->company > 0 ? 0 : mesh->n_links > 0 ? BARE_LINK_POLLS : BARE_RING_POLLS;
  int64_t until = 0, yield_at = 0, now;
  for (int i = 1;; i++) {
    bool moved = poll_pass(mesh, wait, i);
    if (perigee__wait_is_over(mesh, wait) || !perigee__list_empty(&mesh->completed) ||
        perigee__others_wait(mesh) || perigee__loop_wanted(mesh->loop)) {
      mesh->spin_ns = SPIN_NS;
      return true;
    }
    if (i <= bare)
      continue;
    now = perigee__now_ns();
    if (until == 0 || (moved && mesh->company == 0)) { /* a large message comes in many pieces */
      bool dear = now < mesh->no_yield_until && !is_bulk(wait);
      int64_t budget = until != 0 || whole ? SPIN_NS : mesh->spin_ns;
      if (dear)
        budget = budget < SPIN_ALONE_NS ? budget : SPIN_ALONE_NS;
      else if (mesh->company > 0)
        budget *= COMPANY_FACTOR;
      until = now + budget + (int64_t)(mesh->lent / LENT_BYTES_PER_NS);
      yield_at = dear ? PERIGEE_NEVER : mesh->company > 0 ? now : now + SPIN_ALONE_NS;
    }
    if (now >= until)
      break;
    if (now >= yield_at)
      now = offer_core(mesh, now);
    else
      perigee__cpu_relax();
  }
  if (mesh->spin_ns > SPIN_MIN_NS)
    mesh->spin_ns /= 2;
  return false;
}
