#include "cli/console.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Ranks are not read while more than HIGH bytes wait, until less than LOW do. */
enum {
  HIGH = 1 << 20,
  LOW = 1 << 18
};

static size_t most_pending(const perigee__console *console) {
  size_t out = perigee__sink_pending(&console->out), err = perigee__sink_pending(&console->err);
  return out > err ? out : err;
}

static void look(perigee__console *console) {
  size_t pending = most_pending(console);
  bool congested = console->congested ? pending >= LOW : pending > HIGH;
  bool changed = congested != console->congested || console->out.broken != console->broken;
  console->congested = congested;
  console->broken = console->out.broken;
  if (changed)
    console->changed(console->arg);
}

static void on_moved(void *arg) { look(arg); }

int perigee__console_init(perigee__console *console, uv_loop_t *loop, void (*changed)(void *arg),
                          void *arg) {
  *console = (perigee__console){.changed = changed, .arg = arg};
  console->out_tty = isatty(STDOUT_FILENO) == 1;
  console->err_tty = isatty(STDERR_FILENO) == 1;
  console->terminal.tty = true;
  console->colour = perigee__wants_colour(console->out_tty);
  int rc = perigee__sink_init(&console->out, loop, STDOUT_FILENO, on_moved, console);
  if (rc < 0)
    return rc;
  rc = perigee__sink_init(&console->err, loop, STDERR_FILENO, on_moved, console);
  if (rc < 0) {
    perigee__sink_close(&console->out);
    return rc;
  }
  perigee__lines_init(&console->own, console->err_tty ? &console->terminal : &console->plain, "",
                      perigee__sink_write, &console->err);
  return 0;
}

int perigee__console_columns(const perigee__console *console) {
  struct winsize size;
  if (!console->out_tty || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0)
    return 0;
  return size.ws_col;
}

static void say(perigee__console *console, const char *head, const char *fmt, va_list ap) {
  char text[2048];
  int n = snprintf(text, sizeof(text), "%s", head);
  int m = vsnprintf(text + n, sizeof(text) - (size_t)n - 1, fmt, ap);
  size_t size = (size_t)n + (m > 0 ? (size_t)m : 0);
  if (size > sizeof(text) - 2)
    size = sizeof(text) - 2;
  text[size++] = '\n';
  perigee__lines_feed(&console->own, text, size);
  perigee__console_flush(console);
}

void perigee__console_say(perigee__console *console, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  say(console, "perigee run: ", fmt, ap);
  va_end(ap);
}

void perigee__console_say_plain(perigee__console *console, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  say(console, "", fmt, ap);
  va_end(ap);
}

void perigee__console_flush(perigee__console *console) {
  perigee__sink_flush(&console->out);
  perigee__sink_flush(&console->err);
  look(console);
}

bool perigee__console_drained(const perigee__console *console) {
  return most_pending(console) == 0;
}

void perigee__console_close(perigee__console *console) {
  perigee__lines_fini(&console->own);
  perigee__sink_close(&console->out);
  perigee__sink_close(&console->err);
}
