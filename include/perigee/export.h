/* Compiler attributes of the public API. */
#ifndef PERIGEE_EXPORT_H
#define PERIGEE_EXPORT_H

#if defined(__GNUC__) || defined(__clang__)
#define PERIGEE_API __attribute__((visibility("default")))
#define PERIGEE_MUST_CHECK __attribute__((warn_unused_result))
#define PERIGEE_PRINTF(_fmt, _args) __attribute__((format(printf, _fmt, _args)))
#else
#define PERIGEE_API
#define PERIGEE_MUST_CHECK
#define PERIGEE_PRINTF(_fmt, _args)
#endif

#endif
