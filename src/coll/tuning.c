#include "coll/tuning.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/env.h"
#include "base/log.h"

enum {
  SEGMENT = 65536,
  LINE_MAX_BYTES = 4096
};

/* ---- files ------------------------------------------------------------------------------------- */

#define VERSION_LINE "perigee tuning 1"

/* Without the comment, and blanks at both ends. */
static char *trim(char *line) {
  line[strcspn(line, "#\r\n")] = '\0';
  while (*line == ' ' || *line == '\t')
    line++;
  size_t len = strlen(line);
  while (len > 0 && (line[len - 1] == ' ' || line[len - 1] == '\t'))
    line[--len] = '\0';
  return line;
}

static int read_line(perigee__select *select, char *line, bool *versioned,
                     const perigee__select_origin *origin, char *machine, size_t machine_size) {
  static const char word[] = "machine ";
  if (line[0] == '\0')
    return 0;
  if (!*versioned) {
    *versioned = strcmp(line, VERSION_LINE) == 0;
    return *versioned ? 0
                      : perigee__fail(PERIGEE_EINVAL, "%.140s:%d: expected '%s', not '%.40s'",
                                      origin->name, origin->line, VERSION_LINE, line);
  }
  if (strncmp(line, word, sizeof(word) - 1) != 0)
    return perigee__select_add(select, line, origin);
  if (machine != NULL)
    snprintf(machine, machine_size, "%s", line + sizeof(word) - 1);
  return 0;
}

static int read_lines(perigee__select *select, FILE *f, const char *path, char *machine,
                      size_t machine_size) {
  char line[LINE_MAX_BYTES];
  bool versioned = false;
  perigee__select_origin origin = {PERIGEE_RULE_FILE, path, 0};
  while (fgets(line, sizeof(line), f) != NULL) {
    origin.line++;
    if (strlen(line) == sizeof(line) - 1)
      return perigee__fail(PERIGEE_EINVAL, "%.140s:%d: a line of more than %d characters", path,
                           origin.line, LINE_MAX_BYTES - 2);
    PERIGEE_TRY(read_line(select, trim(line), &versioned, &origin, machine, machine_size));
  }
  if (ferror(f))
    return perigee__fail_errno(EIO, "cannot read the rules in %.140s", path);
  return versioned
             ? 0
             : perigee__fail(PERIGEE_EINVAL, "%.140s: expected a line '%s'", path, VERSION_LINE);
}

int perigee__tuning_read_file(perigee__select *select, const char *path, char *machine,
                              size_t machine_size) {
  if (machine != NULL && machine_size > 0)
    machine[0] = '\0';
  FILE *f = fopen(path, "re");
  if (f == NULL)
    return perigee__fail_errno(errno, "cannot open the rules in %.140s", path);
  int rc = read_lines(select, f, path, machine, machine_size);
  fclose(f);
  return rc;
}

/* Release in _set, acquire in _get: who sees the pointer sees what it points to. */
static const perigee__tuning *_Atomic chosen;

/* ---- all together ------------------------------------------------------------------------------ */

static int add_builtin(perigee__select *select) {
  static const perigee__select_origin builtin = {PERIGEE_RULE_BUILTIN, "built in", 0};
  PERIGEE_TRY(perigee__select_add(select, perigee__select_builtin, &builtin));
  return perigee__select_add(select, perigee__arena_rules, &builtin);
}

/* Those of the environment. */
static int add_read(perigee__tuning *t) {
  PERIGEE_TRY(perigee__select_parse(&t->select, perigee__env("PERIGEE_SELECT")));
  const char *file = perigee__env("PERIGEE_TUNING_FILE");
  if (file[0] == '\0')
    return 0;
  if (strlen(file) >= sizeof(t->file))
    return perigee__fail(PERIGEE_ELIMIT, "PERIGEE_TUNING_FILE: a name of more than %d characters",
                         PERIGEE_TUNING_NAME - 1);
  snprintf(t->file, sizeof(t->file), "%s", file);
  return perigee__tuning_read_file(&t->select, file, NULL, 0);
}

int perigee__tuning_read_for(const char *rules, int n, perigee__tuning *tuning_p) {
  static const perigee__select_origin option = {PERIGEE_RULE_OPTION, "option tuning", 0};
  const perigee__tuning *set = atomic_load_explicit(&chosen, memory_order_acquire);
  if (set != NULL) {
    *tuning_p = *set;
    return 0;
  }
  perigee__tuning *t = perigee__calloc(1, sizeof(*t));
  if (t == NULL)
    return perigee__fail(PERIGEE_ENOMEM, "no memory for rules");
  t->deterministic = perigee__env_int("PERIGEE_DETERMINISTIC", 0, 1) != 0;
#ifdef PERIGEE_HOSTILE
  t->segment_max_elems = 3;
#endif
  int rc = rules != NULL ? perigee__select_add(&t->select, rules, &option) : 0;
  if (rc == 0)
    rc = add_read(t);
  if (rc == 0)
    rc = add_builtin(&t->select);
  if (rc == 0) {
    const char *segment = getenv("PERIGEE_SEGMENT"); /* goes before a rule, as it always has */
    t->segment =
        segment != NULL && segment[0] != '\0'
            ? (size_t)perigee__env_int("PERIGEE_SEGMENT", 16, 1 << 26)
            : perigee__select_setting(t, PERIGEE_SETTING_SEGMENT, PERIGEE_WHERE_TCP, n, SEGMENT);
    *tuning_p = *t;
  }
  free(t);
  return rc;
}

int perigee__tuning_read(perigee__tuning *tuning_p) {
  return perigee__tuning_read_for(NULL, 2, tuning_p);
}

void perigee__rule_origin(const perigee__tuning *tuning, const perigee__select_rule *rule,
                          char *text, size_t size) {
  static const char *const names[] = {[PERIGEE_RULE_BUILTIN] = "built in",
                                      [PERIGEE_RULE_ENV] = "PERIGEE_SELECT",
                                      [PERIGEE_RULE_OPTION] = "the group's option tuning",
                                      [PERIGEE_RULE_PATH] = "PERIGEE_PATH"};
  if (rule->source == PERIGEE_RULE_FILE)
    snprintf(text, size, "%s:%d", tuning->file, rule->line);
  else
    snprintf(text, size, "%s", names[rule->source]);
}

/* ---- what this process uses -------------------------------------------------------------------- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static perigee__tuning from_env; /* written under once */
static void read_once(void) {
  if (perigee__tuning_read(&from_env) == 0)
    return;
  perigee__log(PERIGEE_LOG_WARN, "%s: using the built-in rules", perigee__last_error()->message);
  from_env = (perigee__tuning){.segment = SEGMENT};
  int rc = add_builtin(&from_env.select);
  PERIGEE_CHECK(rc == 0);
}

const perigee__tuning *perigee__tuning_get(void) {
  const perigee__tuning *tuning = atomic_load_explicit(&chosen, memory_order_acquire);
  if (tuning != NULL)
    return tuning;
  pthread_once(&once, read_once);
  return &from_env;
}

void perigee__tuning_set(const perigee__tuning *tuning) {
  atomic_store_explicit(&chosen, tuning, memory_order_release);
}
