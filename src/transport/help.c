/*
 * Large messages between ranks of one host, moved by both at once: the receiver reads them from the front (pull.c), the sender, should it
 * be waiting, writes them from the back. One copy each, on two cores: nearly twice as fast as one of them.
 *
 * The message is cut into parts. `claim` of the ring's perigee__help is, while a message is open,
 *   id << 32 | parts the receiver has taken << 16 | parts the sender has taken
 * and whoever adds one to its own count, while there are parts left, moves that part: nobody waits for who does not come. `done` says how
 * many of the sender's have been written. The message is over when none is left and these are all done.
 *
 * Taking the memory back. A receiver that gives up (cancel, deadline, failure) may not let its caller have the buffer while the sender
 * writes. Closing (claim = 0) ends the claims; a part that is under way is waited for: it takes microseconds. But its writer may have been
 * stopped. A stopped thread is in no system call; if it was about to begin one, that finds `to` empty, because it is read by the kernel from the
 * ring when the call begins, and the receiver has emptied it before it looked whether the thread is stopped. So then the wait is over, too.
 *   sender: fill `to`, claim, system call on `to`, done         receiver: close, empty `to`, look at done and at the thread
 * Memory order: claim and done are seq_cst; `to` and dest are ordered by claim.
 */
#include <errno.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/futex.h"
#include "base/log.h"
#include "transport/mesh_impl.h"

enum {
  PART_MAX = 256 << 10,
  PARTS_MAX = UINT16_MAX,
  SPLIT =
      2, /* of what is too small for parts of PART_MAX: more calls cost more than they even out */
  HELP_BYTES = 1 << 20, /* written while others wait for the lock */
  LOOKS = 64            /* at the sender's progress for one at the clock */
};
/* Waited for the sender's last part with the lock held: as long as that takes on a core of its own. */
#define STATE_NS (30 * PERIGEE_NS_PER_US)
/* A writer that neither ends nor stops. Nothing that a process does by itself takes so long. */
#define CLOSE_NS (10 * PERIGEE_NS_PER_SEC)

static size_t part_bytes(size_t size) {
  size_t part = size / SPLIT;
  part = part < PERIGEE_HELP_PART ? PERIGEE_HELP_PART : part;
  return part < PART_MAX ? part : PART_MAX;
}

static uint64_t parts_of(size_t size) {
  size_t part = part_bytes(size);
  return (size + part - 1) / part;
}

size_t perigee__help_part(size_t size, uint64_t number, size_t *bytes_p) {
  size_t part = part_bytes(size), at = (size_t)number * part;
  *bytes_p = size - at < part ? size - at : part;
  return at;
}

static uint32_t id_of(uint64_t word) { return (uint32_t)(word >> 32); }
static uint64_t front_of(uint64_t claim) { return claim >> 16 & UINT16_MAX; }
static uint64_t back_of(uint64_t claim) { return claim & UINT16_MAX; }

/* ---- the receiver ------------------------------------------------------------------------------ */

void perigee__help_open(perigee__peer *peer, perigee__xfer *xfer) {
  perigee__help *help = &peer->ring.in->help;
  uint32_t id = (uint32_t)xfer->id;
  uint64_t parts = parts_of(xfer->received);
  /* A sender without a core of its own is better left asleep. */
  if (!peer->mesh->spins_at_all || xfer->received < PERIGEE_HELP_MIN ||
      xfer->received > xfer->size || parts > PARTS_MAX || id == 0 ||
      atomic_load(&help->unable) != 0)
    return;
  xfer->parts = (uint32_t)parts;
  help->dest = (uint64_t)(uintptr_t)xfer->buf;
  atomic_store(&help->done, (uint64_t)id << 32);
  atomic_store(&help->claim, (uint64_t)id << 32); /* acquired in claim_back */
}

int64_t perigee__help_claim(perigee__peer *peer, const perigee__xfer *xfer) {
  _Atomic uint64_t *word = &peer->ring.in->help.claim;
  uint64_t seen = atomic_load(word);
  do {
    if (id_of(seen) != (uint32_t)xfer->id || front_of(seen) + back_of(seen) >= xfer->parts)
      return -1;
  } while (!atomic_compare_exchange_weak(word, &seen, seen + (1 << 16)));
  return (int64_t)front_of(seen);
}

int perigee__help_state(perigee__peer *peer, const perigee__xfer *xfer) {
  perigee__help *help = &peer->ring.in->help;
  uint64_t claim = atomic_load(&help->claim);
  if (id_of(claim) != (uint32_t)xfer->id || front_of(claim) + back_of(claim) < xfer->parts)
    return -EIO; /* no honest peer: another way is tried */
  int64_t until = 0;
  for (int i = 1;; i++) {
    uint64_t done = atomic_load(&help->done);
    if (atomic_load(&help->unable) != 0 || id_of(done) != (uint32_t)xfer->id)
      return -EIO;
    if (back_of(done) == back_of(claim))
      return 1;
    if (i % LOOKS == 0) {
      int64_t now = perigee__now_ns();
      if (until == 0)
        until = now + STATE_NS;
      else if (now >= until)
        return 0;
    }
    perigee__cpu_relax();
  }
}

void perigee__help_close(perigee__peer *peer, perigee__xfer *xfer) {
  perigee__help *help = &peer->ring.in->help;
  uint64_t claim = atomic_exchange(&help->claim, 0);
  uint64_t all_done = (uint64_t)(uint32_t)xfer->id << 32 | back_of(claim);
  xfer->parts = 0;
  if (claim == 0 || back_of(claim) == 0 || atomic_load(&help->done) == all_done)
    return;
  __atomic_store_n(&help->to.iov_len, 0, __ATOMIC_SEQ_CST);
  int64_t deadline = perigee__deadline_in(CLOSE_NS);
  while (atomic_load(&help->done) != all_done &&
         !perigee__vm_thread_stands(peer->ring.in->face.pid, atomic_load(&help->tid))) {
    if (perigee__passed(deadline)) {
      perigee__log(PERIGEE_LOG_ERROR, "rank %d does not end writing to a message", peer->rank);
      return;
    }
    perigee__sleep_ns(20 * PERIGEE_NS_PER_US);
  }
}

/* ---- the sender -------------------------------------------------------------------------------- */

static const perigee__xfer *lent(const perigee__peer *peer, uint32_t id) {
  PERIGEE_LIST_EACH(it, &peer->chan.rts_sent) {
    const perigee__xfer *xfer = PERIGEE_CONTAINER_OF(it, perigee__xfer, node);
    if ((uint32_t)xfer->id == id)
      return xfer;
  }
  return NULL;
}

/* Claim a part of a message: where it stands there, and its bytes. False: there is none. */
static bool claim_back(perigee__help *help, const perigee__xfer *xfer, size_t *at_p,
                       size_t *bytes_p) {
  uint64_t seen = atomic_load(&help->claim), parts = parts_of(xfer->size);
  do {
    if (id_of(seen) != (uint32_t)xfer->id || front_of(seen) + back_of(seen) >= parts)
      return false;
    *at_p = perigee__help_part(xfer->size, parts - 1 - back_of(seen), bytes_p);
    help->to.iov_base = (void *)(uintptr_t)(help->dest + *at_p);
    __atomic_store_n(&help->to.iov_len, *bytes_p, __ATOMIC_RELAXED);
  } while (!atomic_compare_exchange_weak(&help->claim, &seen, seen + 1));
  return true;
}

static bool help(perigee__peer *peer) {
  perigee__help *help = &peer->ring.out->help;
  uint32_t id = id_of(atomic_load(&help->claim));
  const perigee__xfer *xfer = id != 0 ? lent(peer, id) : NULL;
  if (xfer == NULL || xfer->size < PERIGEE_HELP_MIN)
    return false;
  size_t at, bytes, all = 0;
  atomic_store(&help->tid, (int32_t)gettid());
  while (all < HELP_BYTES && claim_back(help, xfer, &at, &bytes)) {
    int rc =
        perigee__vm_write(peer->ring.in->face.pid, &help->to, (const char *)xfer->buf + at, bytes);
    if (rc < 0 && id_of(atomic_load(&help->claim)) == id) /* else the receiver has stopped it */
      atomic_store(&help->unable, 1);
    uint64_t done = atomic_load(&help->done);
    while (id_of(done) == id && !atomic_compare_exchange_weak(&help->done, &done, done + 1)) {
    }
    all += bytes;
    if (rc < 0)
      break;
  }
  if (all > 0) {
    peer->ring.untold++; /* the receiver may have gone to sleep over it */
    perigee__ring_wake(&peer->ring);
  }
  return all > 0;
}

bool perigee__help_some(perigee__mesh *mesh) {
  bool moved = false;
  for (int r = 0; mesh->lent > 0 && r < mesh->nranks; r++) {
    perigee__peer *peer = &mesh->peers[r];
    if (r != mesh->rank && peer->ring.base != NULL && !perigee__list_empty(&peer->chan.rts_sent))
      moved |= help(peer);
  }
  return moved;
}
