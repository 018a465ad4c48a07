/* The two clocks. Owns nothing, any thread. */
#include "base/clock.h"

#include <time.h>

#include "base/assert.h"

static uint64_t clock_read(clockid_t id)
{
    struct timespec ts;
    sl_assert(clock_gettime(id, &ts) == 0);
    return (uint64_t)ts.tv_sec * SL_S_NS + (uint64_t)ts.tv_nsec;
}

sl_time_ns sl_now_ns(void)
{
    return clock_read(CLOCK_MONOTONIC);
}

uint64_t sl_wall_ns(void)
{
    return clock_read(CLOCK_REALTIME);
}
