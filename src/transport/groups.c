/*
 * Groups on the mesh: they come into being and end at different times on different ranks.
 *
 * What comes about a group that is not attached yet is noted until it is (NOTES_MAX of them, the oldest make room). The groups detached last
 * are remembered: what comes for them is dropped, and members that were not connected then are told when they are.
 */

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/mesh_impl.h"

perigee__fate *perigee__fate_find(perigee__mesh *mesh, uint64_t group) {
  PERIGEE_LIST_EACH(it, &mesh->fates) {
    perigee__fate *fate = PERIGEE_CONTAINER_OF(it, perigee__fate, node);
    if (fate->group == group)
      return fate;
  }
  return NULL;
}

/* ---- groups that are not attached -------------------------------------------------------------- */

bool perigee__group_is_past(const perigee__mesh *mesh, uint64_t group) {
  for (int i = 0; i < PERIGEE_PAST_GROUPS; i++)
    if (mesh->past[i].members != NULL && mesh->past[i].group == group)
      return true;
  return false;
}

static void forget_past(perigee__past_group *past) {
  free(past->members);
  past->members = NULL;
}

static void remember_past(perigee__mesh *mesh, const perigee__fate *fate) {
  perigee__past_group *past = &mesh->past[mesh->n_past++ % PERIGEE_PAST_GROUPS];
  forget_past(past);
  past->members = perigee__calloc((size_t)mesh->nranks, 1);
  if (past->members == NULL)
    return;

  past->group = fate->group;
  for (int r = 0; r < fate->n; r++)
    past->members[fate->members[r]] = 1;
}

void perigee__tell_past(perigee__peer *peer) {
  const perigee__mesh *mesh = peer->mesh;
  perigee__frame left = {.type = PERIGEE_FRAME_GROUP_CLOSED};
  for (int i = 0; i < PERIGEE_PAST_GROUPS; i++)
    if (mesh->past[i].members != NULL && mesh->past[i].members[peer->rank]) {
      left.group = mesh->past[i].group;
      perigee__channel_queue(peer, &left, NULL, 0, NULL, NULL);
    }
}

void perigee__groups_free(perigee__mesh *mesh) {
  for (int i = 0; i < PERIGEE_PAST_GROUPS; i++)
    forget_past(&mesh->past[i]);
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->notes)
  free(PERIGEE_CONTAINER_OF(it, perigee__group_note, node));
}

static void note_free(perigee__mesh *mesh, perigee__group_note *note) {
  perigee__list_remove(&note->node);
  mesh->n_notes--;
  free(note);
}

/* NULL when the group is past, or without memory: then the ranks learn it later from each other. */
static perigee__group_note *note_new(perigee__mesh *mesh, uint64_t group) {
  if (perigee__group_is_past(mesh, group))
    return NULL;
  if (mesh->n_notes == PERIGEE_NOTES_MAX)
    note_free(mesh, PERIGEE_CONTAINER_OF(mesh->notes.next, perigee__group_note, node));
  perigee__group_note *note = perigee__calloc(1, sizeof(*note));
  if (note == NULL)
    return NULL;
  note->group = group;
  mesh->n_notes++;
  perigee__list_append(&mesh->notes, &note->node);
  return note;
}

static void member_left(perigee__mesh *mesh, perigee__fate *fate, int world_rank) {
  int rank = perigee__fate_rank_of(fate, world_rank);
  if (rank < 0 || fate->left[rank])
    return;
  fate->left[rank] = 1;
  fate->some_left = true;
  perigee__end_xfers(mesh, fate, world_rank, PERIGEE_EPEERCLOSED);
}

void perigee__note_abort(perigee__mesh *mesh, uint64_t group, const uint8_t *record) {
  perigee__group_note *note = note_new(mesh, group);
  if (note == NULL)
    return;
  note->left = -1;
  memcpy(note->record, record, sizeof(note->record));
}

void perigee__group_closed_by(perigee__peer *peer, uint64_t group) {
  perigee__fate *fate = perigee__fate_find(peer->mesh, group);
  if (fate != NULL) {
    member_left(peer->mesh, fate, peer->rank);
    return;
  }
  perigee__group_note *note = note_new(peer->mesh, group);
  if (note != NULL)
    note->left = peer->rank;
}

/* ---- attach, detach ---------------------------------------------------------------------------- */

static void wake_mesh(void *arg) { perigee__mesh_kick(arg); }

/* What was noted before the group was attached. */
static void apply_notes(perigee__mesh *mesh, perigee__fate *fate) {
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->notes) {
    perigee__group_note *note = PERIGEE_CONTAINER_OF(it, perigee__group_note, node);
    if (note->group != fate->group)
      continue;
    if (note->left >= 0)
      member_left(mesh, fate, note->left);
    else
      perigee__fail_by_record(mesh, fate, note->record);
    note_free(mesh, note);
  }
}

int perigee__mesh_attach(perigee__mesh *mesh, perigee__fate *fate) {
  PERIGEE_TRY(perigee__fate_listen(fate, wake_mesh, mesh));
  perigee__loop_lock(mesh->loop);
  fate->mesh = mesh;
  fate->told = false;
  for (int i = 0; i < PERIGEE_PAST_GROUPS; i++)
    if (mesh->past[i].group == fate->group)
      forget_past(&mesh->past[i]);
  perigee__list_append(&mesh->fates, &fate->node);
  for (int r = 0; r < fate->n; r++) {
    perigee__peer *peer = &mesh->peers[fate->members[r]];
    if (r != fate->me && peer->dead)
      perigee__fail_by_death(peer, fate, "before the group was made");
  }
  apply_notes(mesh, fate);
  perigee__loop_unlock(mesh->loop);
  return 0;
}

bool perigee__mesh_member_gone(perigee__mesh *mesh, perigee__fate *fate, int rank) {
  perigee__loop_lock(mesh->loop);
  const perigee__peer *peer = &mesh->peers[fate->members[rank]];
  bool gone = rank != fate->me && (peer->dead || peer->closed || fate->left[rank]);
  perigee__loop_unlock(mesh->loop);
  return gone;
}

static void drop_early_of(perigee__mesh *mesh, uint64_t group) {
  PERIGEE_LIST_EACH_SAFE(it, next, &mesh->match.arrivals) {
    perigee__early *early = PERIGEE_CONTAINER_OF(it, perigee__early, arrival);
    if (early->key.group == group) {
      perigee__match_drop(early);
      perigee__channel_free_early(mesh, early);
    }
  }
}

void perigee__mesh_detach(perigee__mesh *mesh, perigee__fate *fate) {
  const perigee__frame frame = {.type = PERIGEE_FRAME_GROUP_CLOSED, .group = fate->group};
  perigee__fate_unlisten(fate, wake_mesh, mesh);
  perigee__loop_lock(mesh->loop);
  perigee__end_xfers(mesh, fate, -1, PERIGEE_ECLOSED);
  drop_early_of(mesh, fate->group);
  remember_past(mesh, fate);
  for (int r = 0; r < fate->n; r++) {
    perigee__peer *peer = &mesh->peers[fate->members[r]];
    /* Nothing of ours is on its way to who is not connected; it is told when it is. */
    if (r != fate->me && peer->chan.stream != NULL && !peer->dead && !peer->closed)
      perigee__channel_queue(peer, &frame, NULL, 0, NULL, NULL);
  }
  perigee__list_remove(&fate->node);
  fate->mesh = NULL;
  perigee__loop_unlock(mesh->loop);
}
