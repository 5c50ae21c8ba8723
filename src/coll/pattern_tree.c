#include "coll/pattern_tree.h"

int perigee__tree_parent(int position) { return position == 0 ? -1 : position & (position - 1); }

int perigee__tree_child(int position, int i) { return position + (1 << i); }

int perigee__tree_children(int n, int position) {
  int i = 0;
  while (perigee__tree_child(position, i) < n && (position & (1 << i)) == 0)
    i++;
  return i;
}
