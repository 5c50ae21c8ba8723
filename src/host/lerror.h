/*
 * Error objects in Lua: a table {code, message, op, seq, group, rank, origin, ranks, cause, traceback} whose metatable makes
 * tostring(e) the one line of perigee_error_format. Everything the module raises is one.
 */
#ifndef PERIGEE_HOST_LERROR_H
#define PERIGEE_HOST_LERROR_H

#include "host/interp.h"

/** [-0, +1, m] */
void perigee__error_push(lua_State *L, const perigee_error *error);
/** Fill *error from an error object; false (and *error untouched) when the value is none. [-0, +0, m] */
bool perigee__error_get(lua_State *L, int index, perigee_error *error);
/** Fill *error from any value that was raised: an error object, or its text as ELUA. [-0, +0, e] */
void perigee__error_any(lua_State *L, int index, perigee_error *error);
/** [-0, +0, -] */
bool perigee__error_is(lua_State *L, int index);

/** Make the table on top of the stack an error object. [-0, +0, -] */
void perigee__error_bless(lua_State *L);

/** A message handler that makes an error object with a traceback of whatever was raised. [-1, +1, m] */
int perigee__error_object(lua_State *L);

/** Raise an error object with where the script called from and a traceback. */
_Noreturn void perigee__raise(lua_State *L, int code, const char *fmt, ...) PERIGEE_PRINTF(3, 4);
/** Raise *error (it is copied first). */
_Noreturn void perigee__raise_error(lua_State *L, const perigee_error *error);
/** Raise this thread's last error. */
_Noreturn void perigee__raise_last(lua_State *L);
/** Raise "bad argument #arg to 'function' (text)" with code EINVAL. arg counts as the script does, without self. */
_Noreturn void perigee__raise_arg(lua_State *L, const char *function, int arg, const char *fmt, ...)
    PERIGEE_PRINTF(4, 5);
/** Raise when rc < 0. */
static inline void perigee__check(lua_State *L, int rc) {
  if (PERIGEE_UNLIKELY(rc < 0))
    perigee__raise_last(L);
}

/** Type of a value as a script author names it: "tensor", "work", "string"; never NULL. [-0, +0, -] */
const char *perigee__type_name(lua_State *L, int index);

/** Copies of text, cut to fit; copy_line turns line ends into blanks. */
void perigee__copy_text(char *to, size_t size, const char *text);
void perigee__copy_line(char *to, size_t size, const char *text);

/** Make the metatable; perigee.error in the module table on top of the stack. */
void perigee__lerror_open(lua_State *L);

#endif
