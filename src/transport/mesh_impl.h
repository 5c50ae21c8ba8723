/*
 * What the files of the mesh share.
 *
 *   bootstrap.c   addresses through the store, UNIX sockets and rings to the ranks of this host
 *   local.c       UNIX sockets once they are up: kicks, descriptors, death
 *   link.c        TCP: listener, dialling, handshake, the stream
 *   channel.c     frames: what comes in        channel_out.c  what goes out
 *   message.c     send, recv, cancel           wait.c      who drives, who sleeps
 *   fail.c        death, abort                 groups.c    attach, leave, what comes too early or late
 *   pull.c        large messages read from the sender's memory     help.c  ... while the sender writes its part
 *   query.c       who has come how far         mesh.c      life
 *
 * Lock: everything here under the lock of mesh->loop (rank MESH), unless said otherwise.
 *
 * No recursion: what handles a frame, an event or a call of the owner never writes to a stream (a slot of a ring apart, which cannot
 * fail) and never declares a death by itself. It queues frames (perigee__channel_queue) and marks peers as lost (perigee__peer_lost); both put the peer in mesh->dirty, and
 * perigee__settle works that list off, one peer after the other, from the hooks of the loop: on each pass, before sleeping and
 * before the lock is given up. So lists of transfers do not change under whoever walks over them.
 */
#ifndef PERIGEE_TRANSPORT_MESH_IMPL_H
#define PERIGEE_TRANSPORT_MESH_IMPL_H

#include <sys/types.h>
#include <uv.h>

#include "base/loop.h"
#include "transport/frame.h"
#include "transport/match.h"
#include "transport/mesh.h"
#include "transport/ring.h"
#include "transport/stream.h"

/* perigee__xfer.phase */
enum {
  PERIGEE_XFER_POSTED = 1, /* receive in match */
  PERIGEE_XFER_TAKING,     /* receive that took an early message whose bytes still come */
  PERIGEE_XFER_LANDING,    /* receive whose payload is being read */
  PERIGEE_XFER_PULLING,    /* receive in chan->pulls: this rank reads the sender's memory */
  PERIGEE_XFER_CTS_SENT,   /* receive in chan->cts_sent, waits for DATA */
  PERIGEE_XFER_QUEUED,     /* send in chan->out */
  PERIGEE_XFER_RTS_SENT,   /* send in chan->rts_sent, waits for CTS */
  PERIGEE_XFER_DONE
};

/** One frame on its way out. */
typedef struct perigee__out {
  perigee__node node; /* in chan->out */
  perigee__frame frame;
  uint8_t header[PERIGEE_FRAME_SIZE];
  const uint8_t *payload;
  size_t length;       /* of payload */
  size_t sent;         /* DATA: payload bytes of frames that are written */
  size_t done;         /* bytes of the present frame written, header and payload */
  bool encoded;        /* the present frame's header; it keeps its place in the list */
  perigee__xfer *xfer; /* ends when all is written; NULL: none */
  uint8_t *owned;      /* payload to free, or NULL */
} perigee__out;

enum {
  PERIGEE_STAGE_BYTES = 64 << 10,
  /* Written to one socket before what has come is read: the kernel's buffers that were just emptied are still in cache. */
  PERIGEE_TURN_BYTES = 512 << 10,
  PERIGEE_END_MS = 50,   /* from the end of a process to that of its TCP stream ... */
  PERIGEE_LEAVE_MS = 500 /* ... when it has said goodbye */
};

/** The framing towards one peer. */
typedef struct perigee__channel {
  perigee__stream *stream;                 /* NULL until there is a link */
  perigee__node out;                       /* perigee__out */
  perigee__node rts_sent, cts_sent, pulls; /* perigee__xfer.node */
  uint64_t next_id;
  uint32_t canceled;    /* RTS_CANCELED that came */
  uint64_t credit;      /* eager bytes we may still send */
  uint64_t owed;        /* eager bytes of the peer that are off its account and not told yet */
  uint64_t early_bytes; /* eager bytes of the peer that we keep */
  bool bye;             /* our GOODBYE is queued: nothing may follow it */
  bool silent;          /* the system has given the peer's host up */
  /* sends that are not waited for (message.c) */
  int64_t sent_ns; /* the last of them was queued, or written */
  unsigned burst;  /* those before it that came close behind each other */
  uint32_t held;   /* bytes queued since the last write */
  /* reading */
  uint8_t header[PERIGEE_FRAME_SIZE];
  size_t header_have;
  bool in_payload;
  perigee__frame in;
  uint64_t at;   /* payload bytes read */
  uint8_t *dest; /* where payload goes; NULL: nowhere */
  uint64_t room; /* bytes of dest */
  perigee__xfer *in_xfer;
  perigee__early *in_early;
  uint8_t *stage; /* PERIGEE_STAGE_BYTES for staged streams */
  size_t stage_at, stage_end;
  bool
      dry; /* the last read gave less than there was room for, or a turn's bytes: enough in this pump */
  uint8_t abort_record[PERIGEE_ABORT_SIZE];
} perigee__channel;

typedef struct perigee__peer {
  perigee__mesh *mesh;
  int rank;
  pid_t pid;  /* 0 unknown */
  bool local; /* same host: uds is connected */
  bool near;  /* same machine, but perhaps another network namespace: nothing is lost between us */
  bool dead;  /* died, or broke the protocol */
  bool leaving; /* said goodbye over its UNIX socket: its end is no death */
  bool closed;  /* GOODBYE came, or orderly end: nothing more comes from it */
  bool lost;    /* its stream is gone; perigee__settle makes it dead or closed */
  char lost_how[96];
  int64_t
      ended_ns; /* its process has ended, at this time, and its TCP stream is still to end; 0: no */
  bool redial;  /* dial again on the next sweep */
  int redials;
  perigee__node dirty; /* in mesh->dirty: frames to write, or lost */
  perigee__channel chan;
  perigee__ring_stream ring; /* base NULL: no ring */
  int uds;                   /* -1: none */
  uv_poll_t uds_poll;
  bool uds_polled;
  struct perigee__link *link; /* TCP link that is up or being dialled */
  int host_of;                /* lowest rank on its host; the own entry as well */
  char host[64];              /* where it listens */
  int port;
  uint64_t nonce; /* of its listener */
} perigee__peer;

typedef struct perigee__passed_fd {
  perigee__node node; /* in mesh->passed */
  int peer, fd;
  uint64_t key;
} perigee__passed_fd;

/** What came about a group that is not attached (yet). */
typedef struct perigee__group_note {
  perigee__node node; /* in mesh->notes */
  uint64_t group;
  int left; /* world rank that has left it; -1: record is an ABORT */
  uint8_t record[PERIGEE_ABORT_SIZE];
} perigee__group_note;

enum {
  PERIGEE_NOTES_MAX = 256,
  PERIGEE_PAST_GROUPS = 64,
  PERIGEE_SPARE_OUTS = 64
};

/** A group that was detached. */
typedef struct perigee__past_group {
  uint64_t group;
  uint8_t *members; /* flag by world rank; NULL: none here */
} perigee__past_group;

typedef struct perigee__query_state {
  uint64_t id;
  perigee__fate *fate;
  uint64_t *entered;
  uint8_t *answered; /* by rank of the group */
  int waiting;       /* members that have not answered */
} perigee__query_state;

struct perigee__mesh {
  perigee__loop *loop;
  int rank, nranks, local_ranks;
  perigee__transport transport;
  perigee__peer *peers; /* nranks; the own entry is unused */
  perigee__match match;
  perigee__node fates;     /* attached */
  perigee__node completed; /* perigee__xfer.node of ended xfers with on_done */
  perigee__node passed;    /* descriptors that came before they were asked for */
  perigee__node notes;     /* perigee__group_note, oldest first */
  int n_notes;
  perigee__past_group past[PERIGEE_PAST_GROUPS]; /* detached last */
  unsigned n_past;                               /* so far; the next one's place */
  perigee__node dirty;                           /* perigee__peer.dirty */
  perigee__node later; /* the same, of peers that had their turn; empty outside perigee__settle */
  perigee__node spare; /* perigee__out that are not in use */
  int n_spare;
  size_t lent; /* bytes announced over rings that their receivers may be reading */
  int n_pulls; /* receives in all chan->pulls */
  perigee__query_state *query;
  uint64_t next_query;
  uint64_t nonce;   /* of our listener */
  int uds_listener; /* only during bootstrap */
  int tcp_listener; /* -1 none */
  uv_poll_t listener_poll;
  bool listener_polled;
  perigee__node strangers; /* links that have not said who they are */
  int n_strangers;
  int n_links;          /* links of peers */
  bool listener_paused; /* no descriptors left: until the next sweep */
  uv_timer_t
      sweep; /* drops strangers that take too long, dials again, ends those whose stream does not end */
  bool sweep_inited;
  uv_timer_t late; /* runs at late_ns */
  int64_t late_ns; /* no xfer's deadline_ns is before; PERIGEE_NEVER: none has one */
  bool armed;      /* the rings ask for kicks */
  bool
      ended; /* a xfer without on_done has ended since the lock was taken: its waiter may be standing by */
  bool hold; /* the lock is given up without writing what is queued (message.c) */
  bool closing;
  perigee__peer *posting_to; /* whoever posts to it does perigee__ring_wake behind the unlock */
  bool spins_at_all;         /* ranks do not outnumber cores; set before mesh is shared */
  int64_t spin_ns;           /* how long a waiting thread polls before it sleeps (spin.c) */
  unsigned spins;            /* times a thread has begun to */
  int company;               /* 0: yields meet nobody (spin.c) */
  int64_t no_yield_until;    /* a yield took too long (spin.c) */
  _Atomic uint32_t
      events; /* changes when the lock has been given up; futex word of threads that wait while another drives */
  _Atomic uint32_t waiters;      /* such threads; seq_cst with events */
  _Atomic uint32_t word_waiters; /* threads inside perigee__mesh_wait_word */
};

/* mesh.c */
int perigee__mesh_alloc(int rank, int nranks, perigee__transport transport, perigee__mesh **mesh_p);
void perigee__mesh_free(perigee__mesh *mesh);
/** Listen for TCP links and answer them from now on. mesh->nonce is set. */
int perigee__mesh_listen(perigee__mesh *mesh, const char *addr, int *port_p);
/** Set up the connected UNIX socket and (when fd >= 0) the ring of a peer. Takes both descriptors, also on failure. */
int perigee__peer_local_up(perigee__peer *peer, int uds, int ring_fd);

/* bootstrap.c */
int perigee__bootstrap(perigee__mesh *mesh, const perigee__mesh_params *params);

/* local.c */
int perigee__local_watch(perigee__peer *peer);
void perigee__local_kick(void *peer);
/** Take what the peer has said over its UNIX socket: before the end of its stream, which may be seen earlier, is judged. */
void perigee__local_look(perigee__peer *peer);
void perigee__local_goodbye(perigee__peer *peer);
int perigee__uds_send_fd(int uds, char type, uint64_t key, int fd);

/* link.c */
int perigee__link_listen(const char *addr, int *fd_p, int *port_p);
int perigee__link_watch_listener(perigee__mesh *mesh);
/** Start to dial a peer unless there is a link already. */
void perigee__link_dial(perigee__peer *peer);
/** End of a link: shut down writing, or close it. */
void perigee__link_shutdown(perigee__peer *peer);
void perigee__link_drop(perigee__peer *peer);
bool perigee__link_is_up(const perigee__peer *peer);
/** The peer is on this machine. Under the loop's lock. */
void perigee__link_near(perigee__peer *peer);
/** Whether the peer's host has acknowledged all that was written. */
bool perigee__link_is_drained(const perigee__peer *peer);
void perigee__link_drop_strangers(perigee__mesh *mesh);
/** Have the next sweep in so many ms at the latest. */
void perigee__link_sweep_in(perigee__mesh *mesh, uint64_t ms);

/* channel.c, channel_out.c */
void perigee__channel_init(perigee__channel *chan);
void perigee__channel_fini(perigee__channel *chan);
/** The stream is there: send what waits. */
void perigee__channel_up(perigee__peer *peer, perigee__stream *stream);
/** Whether this -errno of a stream says that the other end's host has not been heard of for too long. */
bool perigee__channel_is_silence(ssize_t error);
/** Read and handle what has come. Returns true when there was something. */
bool perigee__channel_pump(perigee__peer *peer);
/** The same for a ring, until this receive has what it needs of it: what comes behind stays there. perigee__ring_wake is the caller's. */
bool perigee__channel_pump_for(perigee__peer *peer, const perigee__xfer *xfer);
/** Read until nothing is there or the stream has ended. For a peer that has ended: it adds nothing. */
void perigee__channel_drain(perigee__peer *peer);
/** Have perigee__settle look at the peer. */
void perigee__peer_mark(perigee__peer *peer);
/** Work off mesh->dirty: write what can be written, declare ends. Returns true when something moved. turn: at most a turn's bytes to each
 *  socket; the driver reads before it calls again. */
bool perigee__settle(perigee__mesh *mesh, bool turn);
/** Queue a frame; payload is borrowed (xfer) or owned (freed when written). Dials when there is no link. */
void perigee__channel_queue(perigee__peer *peer, const perigee__frame *frame, const void *payload,
                            size_t length, perigee__xfer *xfer, uint8_t *owned);
/** Start a send that has a connection: EAGER or RTS. */
void perigee__channel_send(perigee__peer *peer, perigee__xfer *xfer);
/** A receive took this early message. Frees it, or leaves it to the connection whose bytes still come. */
void perigee__channel_take_early(perigee__mesh *mesh, perigee__early *early, perigee__xfer *xfer);
void perigee__channel_free_early(perigee__mesh *mesh, perigee__early *early);
/** Ask for the data of a message that was announced; xfer NULL: nobody wants it, it is swallowed. */
void perigee__channel_clear_to_send(perigee__peer *peer, perigee__xfer *xfer, uint64_t id);
/** Take a xfer off whatever the connection does with it; its stream stays in order. */
void perigee__channel_forget(perigee__peer *peer, perigee__xfer *xfer);
bool perigee__channel_idle(const perigee__channel *chan);
/** The peer has ended: drop what waits to go out, its xfers end with status ... */
void perigee__channel_purge(perigee__peer *peer, int status);
/** ... and what came only in part, or was only announced. */
void perigee__channel_drop_unfinished(perigee__peer *peer);

/* message.c */
/** Set up mesh->late. */
void perigee__xfer_timer_init(perigee__mesh *mesh);
void perigee__xfer_end(perigee__mesh *mesh, perigee__xfer *xfer, int status);

/* fail.c */
/** The stream to the peer is gone or must not be used any more; perigee__peer_ends follows. */
void perigee__peer_lost(perigee__peer *peer, const char *how);
/** A lost peer is dead, or closed when it has said so. From perigee__settle. */
void perigee__peer_ends(perigee__peer *peer);
/** The peer said goodbye, or ended in order. */
void perigee__peer_closed(perigee__peer *peer);

void perigee__abort_came(perigee__peer *peer, uint64_t group, const uint8_t *record);
/** Fail a fate and its xfers and tell the members. */
void perigee__fail_locked(perigee__mesh *mesh, perigee__fate *fate, const perigee_error *error);
/** ... because of an ABORT's record, a peer's death. */
void perigee__fail_by_record(perigee__mesh *mesh, perigee__fate *fate,
                             const uint8_t record[PERIGEE_ABORT_SIZE]);
void perigee__fail_by_death(perigee__peer *peer, perigee__fate *fate, const char *how);
/** End those whose deadline has come with ETIMEDOUT. Returns the earliest of the others, PERIGEE_NEVER when there is none. */
int64_t perigee__end_late(perigee__mesh *mesh, int64_t now_ns);
/** End the xfers of a fate (NULL: whichever) with a peer (-1: whichever). */
void perigee__end_xfers(perigee__mesh *mesh, const perigee__fate *fate, int peer, int status);

/* query.c */
void perigee__status_asked(perigee__peer *peer, const perigee__frame *frame);
void perigee__status_came(perigee__peer *peer, const perigee__frame *frame);
void perigee__query_gone(perigee__peer *peer);

/* groups.c */
void perigee__group_closed_by(perigee__peer *peer, uint64_t group);
perigee__fate *perigee__fate_find(perigee__mesh *mesh, uint64_t group);
/** Whether the group has been left by this rank. */
bool perigee__group_is_past(const perigee__mesh *mesh, uint64_t group);
/** Tell a peer that is connected now of the groups that we have left. */
void perigee__tell_past(perigee__peer *peer);
void perigee__note_abort(perigee__mesh *mesh, uint64_t group, const uint8_t *record);
void perigee__groups_free(perigee__mesh *mesh);

/* wait.c */
bool perigee__rings_poll(perigee__mesh *mesh);
bool perigee__mesh_prepare(void *arg, bool sleep);
void *perigee__mesh_collect(void *arg);
void perigee__mesh_deliver(void *arg, void *collected);
/** Called with and without the lock: it reads atomics only. */
typedef bool (*perigee__wait_fn)(perigee__mesh *mesh, void *arg);
/** What a thread waits for. */
typedef struct perigee__wait {
  perigee__wait_fn done;
  void *arg;
  perigee__xfer *const *xfers; /* whose ends it is about, or n 0: something else */
  int n;
  const perigee__fate *fate; /* its failure ends the wait as well; may be NULL */
  int64_t deadline_ns;
} perigee__wait;
bool perigee__wait_is_over(perigee__mesh *mesh, const perigee__wait *wait);
/** With the lock: whether something has ended that another thread may be waiting for. */
bool perigee__others_wait(perigee__mesh *mesh);
/** Drive until done or the deadline, with the lock held, given up in between, and held again on return; done is called with it. */
int perigee__mesh_wait_locked(perigee__mesh *mesh, perigee__wait_fn done, void *arg,
                              int64_t deadline_ns);

/* spin.c */
/** Before mesh is shared, when local_ranks is known. */
void perigee__spin_init(perigee__mesh *mesh);
/** With the lock: poll until something has happened (true) or it is time to sleep. */
bool perigee__spin(perigee__mesh *mesh, const perigee__wait *wait);

/* pull.c */
/** Read a message from its sender's memory, from address `at` on. False: that cannot be done here. */
bool perigee__pull_begin(perigee__peer *peer, perigee__xfer *xfer, uint64_t id, uint64_t at);
/** Go on with what is being read, a bounded piece of each peer's. Returns whether something moved. */
bool perigee__pull_some(perigee__mesh *mesh);
/** Take a receive that is being read out of the list: nobody writes to its memory any more. The sender is not told. */
void perigee__pull_forget(perigee__peer *peer, perigee__xfer *xfer);
/** Tell the sender of a message that was announced that it is over. */
void perigee__pull_tell(perigee__peer *peer, uint64_t id);
/** The receiver's side of a message that both move (help.c). open: from now on the sender may do parts of it. */
void perigee__help_open(perigee__peer *peer, perigee__xfer *xfer);
/** A part for this rank: its number; -1: all are somebody's. */
int64_t perigee__help_claim(perigee__peer *peer, const perigee__xfer *xfer);
/** Where a part begins, and its bytes. */
size_t perigee__help_part(size_t size, uint64_t number, size_t *bytes_p);
/** When no part is left: 1: the sender's have been written; 0: not yet, after a moment; -EIO: it could not. */
int perigee__help_state(perigee__peer *peer, const perigee__xfer *xfer);
/** When this has returned the sender does not write any more. */
void perigee__help_close(perigee__peer *peer, perigee__xfer *xfer);
/** The sender's side: do parts of what peers read from this rank. Returns whether there was something. */
bool perigee__help_some(perigee__mesh *mesh);
/** Before the memory of a message that this rank has announced to peer is given back. */
void perigee__pull_revoke(perigee__peer *peer);

#endif
