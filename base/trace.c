/* See trace.h. */
#include "base/trace.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/clock.h"

struct sl_trace {
    uint32_t capacity;
    uint64_t count; /* noted so far */
    sl_trace_event events[];
};

sl_trace *sl_trace_create(uint32_t capacity)
{
    sl_assert(capacity > 0);
    sl_trace *trace =
        sl_alloc(1, sizeof(*trace) + (size_t)capacity * sizeof(trace->events[0]), "trace");
    trace->capacity = capacity;
    return trace;
}

void sl_trace_destroy(sl_trace *trace)
{
    sl_free(trace);
}

void sl_trace_note(sl_trace *trace, const char *id, const char *what, const char *format, ...)
{
    va_list arguments;
    if (!trace || strlen(id) >= SL_TRACE_ID_MAX)
        return;
    sl_trace_event *event = &trace->events[trace->count++ % trace->capacity];
    event->time_us = sl_wall_ns() / 1000;
    event->what = what;
    snprintf(event->id, sizeof(event->id), "%s", id);
    va_start(arguments, format);
    (void)vsnprintf(event->text, sizeof(event->text), format, arguments);
    va_end(arguments);
}

static uint64_t first_of(const sl_trace *trace)
{
    return trace->count > trace->capacity ? trace->count - trace->capacity : 0;
}

static const sl_trace_event *event_at(const sl_trace *trace, uint64_t number)
{
    return &trace->events[number % trace->capacity];
}

/* "r-1" is of "r-1", and so is "r-1-2", but not "r-10". */
static bool is_of(const char *noted, const char *id)
{
    size_t size = strlen(id);
    if (strncmp(noted, id, size) != 0)
        return false;
    return noted[size] == '\0' ||
           (noted[size] == '-' && noted[size + 1] != '\0' &&
            strspn(noted + size + 1, "0123456789") == strlen(noted + size + 1));
}

uint32_t sl_trace_find(const sl_trace *trace, const char *id,
                       void (*fn)(void *context, const sl_trace_event *event), void *context)
{
    uint32_t found = 0;
    for (uint64_t i = first_of(trace); i < trace->count; i++) {
        const sl_trace_event *event = event_at(trace, i);
        if (!is_of(event->id, id))
            continue;
        found++;
        fn(context, event);
    }
    return found;
}

uint64_t sl_trace_since_us(const sl_trace *trace)
{
    return first_of(trace) > 0 ? event_at(trace, first_of(trace))->time_us : 0;
}
