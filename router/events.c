/* See events.h. */
#include "router/events.h"

#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"

void rtr_events_add(rtr_events_ring *ring, const char *kind, const char *subject,
                    const char *format, ...)
{
    rtr_happening *item = &ring->items[ring->count++ % RTR_EVENTS_MAX];
    va_list arguments;
    item->time_us = sl_wall_ns() / 1000;
    item->kind = kind;
    snprintf(item->subject, sizeof item->subject, "%s", subject);
    va_start(arguments, format);
    vsnprintf(item->text, sizeof item->text, format, arguments);
    va_end(arguments);
}

const rtr_happening *rtr_events_at(const rtr_events_ring *ring, uint32_t index)
{
    uint64_t first = ring->count > RTR_EVENTS_MAX ? ring->count - RTR_EVENTS_MAX : 0;
    return first + index < ring->count ? &ring->items[(first + index) % RTR_EVENTS_MAX] : NULL;
}
