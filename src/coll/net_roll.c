#include "coll/net_roll.h"

#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "coll/net_call.h"

static size_t padded(size_t bytes) { return (bytes + 7) & ~(size_t)7; }

static int rounds_of(int n) {
  int rounds = 0;
  while ((1 << rounds) < n)
    rounds++;
  return rounds;
}

bool perigee__roll_reaches(int n, int from, int to) {
  int distance = (to - from + n) % n;
  return distance > 0 && (distance & (distance - 1)) == 0;
}

/* The notes that go out in a round: those that the receiver does not have yet. */
static int notes_in_round(int n, int round) {
  int all = 1 << round;
  return all < n - all ? all : n - all;
}

/* The message of a round that has mail in it is put together in a buffer of its own. */
static int post_with_mail(perigee__net *net, int to, size_t bytes, const void *mail,
                          size_t mail_bytes) {
  perigee__roll *roll = &net->roll;
  unsigned char *buf = perigee__net_buffer(net, 1, bytes + 8 + mail_bytes);
  uint64_t size = mail_bytes;
  if (buf == NULL)
    return net->error->code;
  memcpy(buf, roll->stage, bytes);
  memcpy(buf + bytes, &size, 8);
  memcpy(buf + bytes + 8, mail, mail_bytes);
  perigee__net_send(net, &roll->msgs[roll->round], to, roll->step + roll->round, buf,
                    bytes + 8 + mail_bytes);
  return 0;
}

static int post_round(perigee__net *net) {
  perigee__roll *roll = &net->roll;
  int distance = 1 << roll->round, step = roll->step + roll->round;
  int to = (net->me + distance) % net->n, from = (net->me - distance + net->n) % net->n;
  perigee__msg *send = &roll->msgs[roll->round], *recv = &roll->msgs[roll->rounds];
  if (!roll->notes) {
    bool first = roll->round == 0;
    perigee__net_recv(net, recv, from, step, first ? roll->link_recv : NULL,
                      first ? roll->link_recv_room : 0);
    perigee__net_send(net, send, to, step, first ? roll->link_send : NULL,
                      first ? roll->link_send_bytes : 0);
    return 0;
  }
  size_t held = roll->at[roll->known], mail_bytes = 0;
  size_t bytes = roll->at[notes_in_round(net->n, roll->round)];
  perigee__net_recv(net, recv, from, step, roll->stage + held, roll->stage_room - held);
  const void *mail = NULL;
  if (roll->mail != NULL)
    PERIGEE_TRY(roll->mail->pick(roll->mail->arg, to, &mail, &mail_bytes));
  if (mail_bytes > 0)
    return post_with_mail(net, to, bytes, mail, mail_bytes);
  perigee__net_send(net, send, to, step, roll->stage, bytes);
  return 0;
}

/* Take over what came in this round. Lengths are a peer's claim: each is checked against what has come. */
static int accept_notes(perigee__net *net, size_t bytes) {
  perigee__roll *roll = &net->roll;
  int from = (net->me - (1 << roll->round) + net->n) % net->n;
  size_t at = roll->at[roll->known], end = at + bytes;
  for (int i = 0; i < notes_in_round(net->n, roll->round); i++) {
    uint64_t size;
    if (end - at < 8)
      return perigee__net_blame_proto(net, from);
    memcpy(&size, roll->stage + at, 8);
    if (size > end - at - 8 || padded((size_t)size) > end - at - 8)
      return perigee__net_blame_proto(net, from);
    at += 8 + padded((size_t)size);
    roll->at[++roll->known] = at;
  }
  if (at == end)
    return 0;
  uint64_t size;
  if (roll->mail == NULL || end - at < 8)
    return perigee__net_blame_proto(net, from);
  memcpy(&size, roll->stage + at, 8);
  if (size != end - at - 8)
    return perigee__net_blame_proto(net, from);
  return roll->mail->deliver(roll->mail->arg, from, roll->stage + at + 8, (size_t)size);
}

int perigee__roll_advance(perigee__net *net) {
  perigee__roll *roll = &net->roll;
  while (roll->round < roll->rounds) {
    perigee__msg *recv = &roll->msgs[roll->rounds];
    if (!perigee__net_idle(recv))
      return 0;
    PERIGEE_TRY(perigee__net_wait(net, recv));
    if (roll->notes)
      PERIGEE_TRY(accept_notes(net, recv->xfer.received));
    roll->round++;
    if (roll->round < roll->rounds)
      PERIGEE_TRY(post_round(net));
  }
  return 0;
}

static int start(perigee__net *net, int rounds) {
  perigee__roll *roll = &net->roll;
  PERIGEE_ASSERT(roll->round == roll->rounds && roll->calls < 2);
  roll->step = PERIGEE_NET_STEP_ROUNDS * roll->calls++;
  roll->round = 0;
  roll->rounds = rounds;
  roll->msgs = perigee__net_msgs(net, (size_t)rounds + 1);
  if (roll->msgs == NULL) {
    roll->rounds = 0;
    return net->error->code;
  }
  PERIGEE_TRY(post_round(net));
  return perigee__roll_advance(net);
}

int perigee__roll_link(perigee__net *net, const void *send_buf, size_t send_bytes, void *recv_buf,
                       size_t recv_room) {
  perigee__roll *roll = &net->roll;
  roll->notes = false;
  roll->link_send = send_buf;
  roll->link_send_bytes = send_bytes;
  roll->link_recv = recv_buf;
  roll->link_recv_room = recv_room;
  return start(net, 1);
}

int perigee__roll_start(perigee__net *net) {
  perigee__roll *roll = &net->roll;
  roll->notes = false;
  roll->link_send = roll->link_recv = NULL;
  roll->link_send_bytes = roll->link_recv_room = 0;
  return start(net, rounds_of(net->n));
}

int perigee__roll_start_notes(perigee__net *net, const void *note, size_t bytes, size_t notes_room,
                              const perigee__mail *mail) {
  perigee__roll *roll = &net->roll;
  size_t n = (size_t)net->n, frame = 16 * n + 8; /* lengths and padding */
  if (mail != NULL)
    frame += mail->room;
  if (notes_room > SIZE_MAX / 2)
    return perigee__net_blame_memory(net, notes_room);
  roll->notes = true;
  roll->mail = mail;
  roll->stage_room = notes_room + frame;
  roll->at = perigee__net_alloc(net, n + 1, sizeof(*roll->at));
  roll->stage = perigee__net_buffer(net, 1, roll->stage_room);
  if (roll->at == NULL || roll->stage == NULL)
    return net->error->code;
  uint64_t size = bytes;
  PERIGEE_CHECK(padded(bytes) <= notes_room + 8);
  memcpy(roll->stage, &size, 8);
  memset(roll->stage + 8 + bytes, 0, padded(bytes) - bytes);
  if (bytes > 0)
    memcpy(roll->stage + 8, note, bytes);
  roll->at[1] = 8 + padded(bytes);
  roll->known = 1;
  return start(net, rounds_of(net->n));
}

int perigee__roll_wait(perigee__net *net) {
  while (net->roll.round < net->roll.rounds)
    PERIGEE_TRY(perigee__net_progress(net));
  return 0;
}

const void *perigee__roll_note(const perigee__net *net, int rank, size_t *bytes_p) {
  const perigee__roll *roll = &net->roll;
  const unsigned char *note = roll->stage + roll->at[(net->me - rank + net->n) % net->n];
  uint64_t size;
  memcpy(&size, note, 8);
  *bytes_p = (size_t)size;
  return note + 8;
}
