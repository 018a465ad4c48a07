/* What happened of late as this router saw it: a ring in memory, the oldest go. Thread: the main
 * loop's. */
#ifndef ROUTER_EVENTS_H
#define ROUTER_EVENTS_H

#include <stdint.h>

#include "cluster/member.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_EVENTS_MAX     512u
#define RTR_EVENT_TEXT_MAX 200u

typedef struct rtr_happening {
    uint64_t time_us; /* since 1970 */
    const char *kind; /* "member", "etcd", "settings", "controller": a literal */
    char subject[CLU_NAME_MAX];
    char text[RTR_EVENT_TEXT_MAX];
} rtr_happening;

typedef struct rtr_events_ring {
    rtr_happening items[RTR_EVENTS_MAX];
    uint64_t count; /* ever */
} rtr_events_ring;

void rtr_events_add(rtr_events_ring *ring, const char *kind, const char *subject,
                    const char *format, ...) __attribute__((format(printf, 4, 5)));
/* The index-th of those that are kept, the oldest first; NULL: there are no more. */
const rtr_happening *rtr_events_at(const rtr_events_ring *ring, uint32_t index);

#ifdef __cplusplus
}
#endif
#endif
