#include "cli/output.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/attr.h"

#define ERASE_LINE "\033[K"

void perigee__lines_init(perigee__lines *lines, perigee__screen *screen, const char *prefix,
                         perigee__emit_fn emit, void *arg) {
  *lines = (perigee__lines){.screen = screen, .prefix = prefix, .emit = emit, .arg = arg};
}

/* Also called with what is new but not kept, so that a line that needs no buffer is not copied twice. */
static void emit_line(perigee__lines *l, const char *more, size_t more_size, const char *end) {
  if (l->screen->bar != NULL)
    l->emit(l->arg, ERASE_LINE, sizeof(ERASE_LINE) - 1);
  if (l->prefix[0] != '\0')
    l->emit(l->arg, l->prefix, strlen(l->prefix));
  if (l->size > 0)
    l->emit(l->arg, l->text, l->size);
  if (more_size > 0)
    l->emit(l->arg, more, more_size);
  l->emit(l->arg, end, 1);
}

static void draw_bar(perigee__lines *l) {
  emit_line(l, NULL, 0, "\r");
  l->screen->bar = l;
  l->drawn = true;
}

static void finish_line(perigee__lines *l, const char *more, size_t more_size) {
  emit_line(l, more, more_size, "\n");
  l->size = 0;
  l->redraws = l->cr = l->drawn = false;
  perigee__lines *bar = l->screen->bar;
  l->screen->bar = NULL;
  if (bar != NULL && bar != l)
    draw_bar(bar);
}

static void keep(perigee__lines *l, const char *data, size_t size) {
  while (size > 0) {
    size_t room = PERIGEE__LINE_MAX - l->size;
    size_t part = size < room ? size : room;
    if (l->size + part > l->capacity) {
      size_t capacity = l->capacity == 0 ? 256 : l->capacity;
      while (capacity < l->size + part)
        capacity *= 2;
      char *text = realloc(l->text, capacity);
      if (text == NULL) { /* without memory the line is cut here */
        finish_line(l, data, size);
        return;
      }
      l->text = text;
      l->capacity = capacity;
    }
    memcpy(l->text + l->size, data, part);
    l->size += part;
    l->drawn = false;
    data += part;
    size -= part;
    if (l->size == PERIGEE__LINE_MAX)
      finish_line(l, NULL, 0);
  }
}

void perigee__lines_feed(perigee__lines *l, const char *data, size_t size) {
  const char *end = data + size;
  while (data < end) {
    if (l->cr && *data != '\n') { /* the line starts again */
      l->cr = false;
      l->size = 0;
    }
    const char *stop = data;
    while (stop < end && *stop != '\n' && *stop != '\r')
      stop++;
    size_t part = (size_t)(stop - data);
    if (stop == end) {
      keep(l, data, part);
      break;
    }
    if (*stop == '\n') {
      if (l->size + part <= PERIGEE__LINE_MAX) {
        finish_line(l, data, part);
      } else {
        keep(l, data, part);
        finish_line(l, NULL, 0);
      }
    } else {
      keep(l, data, part);
      l->cr = l->redraws = true;
    }
    data = stop + 1;
  }
  if (l->screen->tty && l->redraws && l->size > 0 && !l->drawn)
    draw_bar(l);
}

void perigee__lines_flush(perigee__lines *l) {
  if (l->size > 0) {
    finish_line(l, NULL, 0);
  } else if (l->screen->bar == l) { /* the bar was wiped: so is its line */
    l->emit(l->arg, ERASE_LINE, sizeof(ERASE_LINE) - 1);
    l->screen->bar = NULL;
  }
}

void perigee__lines_fini(perigee__lines *l) {
  if (l->screen != NULL && l->screen->bar == l)
    l->screen->bar = NULL;
  free(l->text);
  l->text = NULL;
  l->size = l->capacity = 0;
}

const char *perigee__rank_prefix(int rank, bool colour, char *buf, size_t size) {
  /* red is left to errors */
  static const int colours[] = {36, 33, 32, 35, 34, 96, 93, 92, 95, 94};
  if (colour)
    snprintf(buf, size, "\033[%dm[%d]\033[0m ", colours[(size_t)rank % PERIGEE_COUNT(colours)],
             rank);
  else
    snprintf(buf, size, "[%d] ", rank);
  return buf;
}

bool perigee__wants_colour(bool tty) {
  const char *no = getenv("NO_COLOR");
  if (no != NULL && no[0] != '\0')
    return false;
  const char *force = getenv("CLICOLOR_FORCE");
  if (force != NULL && force[0] != '\0' && strcmp(force, "0") != 0)
    return true;
  const char *term = getenv("TERM");
  return tty && term != NULL && strcmp(term, "dumb") != 0;
}
