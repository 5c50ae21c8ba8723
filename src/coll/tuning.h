/*
 * Where the rules of a group come from (select.h has their language), and files of rules.
 *
 *   perigee tuning 1                        the first line that is not empty or a comment: the version
 *   machine 2 cores, Xeon ...               where it was measured; for people
 *   allreduce/spin@2:0-32k:oneshot          a rule or setting on each other line
 *   # comment
 *
 * A file is used only when PERIGEE_TUNING_FILE names it: one that is found by itself would make programs of one user choose otherwise
 * on one host than on the next. It is read when a group is made. Whatever is wrong in it is an error then, with its name, the line and
 * the word; so is another table on another rank (perigee__net_agree).
 */
#ifndef PERIGEE_COLL_TUNING_H
#define PERIGEE_COLL_TUNING_H

#include "coll/select.h"

/** For a group of n ranks: from its own rules (or NULL), the environment, the file and what is built in. On error nothing is written. */
PERIGEE_MUST_CHECK int perigee__tuning_read_for(const char *rules, int n,
                                                perigee__tuning *tuning_p);
/** For a group of whatever size without rules of its own. */
PERIGEE_MUST_CHECK int perigee__tuning_read(perigee__tuning *tuning_p);
/** Append the rules of a file. machine: room for what it was measured on, "" when it does not say; or NULL. */
PERIGEE_MUST_CHECK int perigee__tuning_read_file(perigee__select *select, const char *path,
                                                 char *machine, size_t machine_size);

/** What this process uses: read from the environment once, or what was set. Never NULL. */
const perigee__tuning *perigee__tuning_get(void);
/** For tests and benchmarks: use this from now on, in groups made from now on as well (NULL: the environment's). Borrowed. No collective may be running. */
void perigee__tuning_set(const perigee__tuning *tuning);

/** Who made a rule: "built in", "PERIGEE_SELECT", "FILE:LINE". */
void perigee__rule_origin(const perigee__tuning *tuning, const perigee__select_rule *rule,
                          char *text, size_t size);

#endif
