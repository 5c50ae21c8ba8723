/* Intrusive doubly linked list. A list head is a node that points to itself when the list is empty. */
#ifndef PERIGEE_BASE_LIST_H
#define PERIGEE_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/attr.h"

typedef struct perigee__node {
  struct perigee__node *next, *prev;
} perigee__node;

static inline void perigee__list_init(perigee__node *head) { head->next = head->prev = head; }
static inline bool perigee__list_empty(const perigee__node *head) { return head->next == head; }
static inline void perigee__list_append(perigee__node *head, perigee__node *n) {
  n->prev = head->prev;
  n->next = head;
  head->prev->next = n;
  head->prev = n;
}
/** Unlink; the node then is an empty list of its own, so that removing twice does no harm. */
static inline void perigee__list_remove(perigee__node *n) {
  n->prev->next = n->next;
  n->next->prev = n->prev;
  n->next = n->prev = n;
}
#define PERIGEE_LIST_EACH(_it, _head)                                                              \
  for (perigee__node *_it = (_head)->next; _it != (_head); _it = _it->next)
#define PERIGEE_LIST_EACH_SAFE(_it, _tmp, _head)                                                   \
  for (perigee__node *_it = (_head)->next, *_tmp = _it->next; _it != (_head);                      \
       _it = _tmp, _tmp = _it->next)

#endif
