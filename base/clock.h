/* Time. Control logic never reads it: `now` is handed in. Deadlines are absolute monotonic
 * nanoseconds. Thread: any. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t sl_time_ns; /* CLOCK_MONOTONIC, nanoseconds */

#define SL_MS_NS 1000000ull
#define SL_S_NS  1000000000ull
#define SL_NEVER UINT64_MAX

sl_time_ns sl_now_ns(void);
/* CLOCK_REALTIME nanoseconds, for logs and `created` fields only. */
uint64_t sl_wall_ns(void);

#ifdef __cplusplus
}
#endif
#endif
