/* What happened of late to requests, as one thread saw it: a bounded ring of short texts, the
 * oldest written over. A note costs a clock and a printf, so it is for what happens a few times to
 * a request, never once a token. Thread: owner. */
#ifndef BASE_TRACE_H
#define BASE_TRACE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SL_TRACE_ID_MAX   40u /* requests with longer ids are not noted */
#define SL_TRACE_TEXT_MAX 104u

typedef struct sl_trace_event {
    uint64_t time_us; /* since 1970 */
    const char *what; /* a literal */
    char id[SL_TRACE_ID_MAX];
    char text[SL_TRACE_TEXT_MAX];
} sl_trace_event;

typedef struct sl_trace sl_trace;

/* Allocates all of it. */
sl_trace *sl_trace_create(uint32_t capacity);
void sl_trace_destroy(sl_trace *trace);
/* what: a literal, kept. Longer texts are cut. A trace that is NULL notes nothing. */
void sl_trace_note(sl_trace *trace, const char *id, const char *what, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* Calls fn for each event of `id`, and of its choices (id, "-", number), the oldest first; returns
 * how many. Borrowed. */
uint32_t sl_trace_find(const sl_trace *trace, const char *id,
                       void (*fn)(void *context, const sl_trace_event *event), void *context);
/* What happened before is forgotten; 0: nothing is. */
uint64_t sl_trace_since_us(const sl_trace *trace);

#ifdef __cplusplus
}
#endif
#endif
