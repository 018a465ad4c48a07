/* The requests of one loop as an operator sees them: listed, and ended. Thread: the loop's. */
#ifndef ROUTER_LIVE_LIST_H
#define ROUTER_LIVE_LIST_H

#include "base/trace.h"
#include "cluster/member.h"
#include "router/front.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_request_row {
    char id[RTR_ID_SIZE];
    const char *kind, *state; /* literals */
    uint64_t age_ms;
    uint32_t prompt_tokens, generated_tokens, max_tokens, choices;
    int32_t priority;
    char decode[CLU_NAME_MAX], prefill[CLU_NAME_MAX];
} rtr_request_row;

/* At most `max` rows; returns how many requests there are. */
uint32_t rtr_front_list(const rtr_front *front, rtr_request_row *rows, uint32_t max);
/* Its client gets an error that says `text`. false: it is not here, or has answered already. */
bool rtr_front_cancel(rtr_front *front, const char *id, const char *text, rtr_request_row *out_row);

/* Why nodes were chosen for it, or what happened to it: sl_trace_find. */
uint32_t rtr_front_trace(const rtr_front *front, bool choices, const char *id,
                         void (*fn)(void *context, const sl_trace_event *event), void *context);
uint64_t rtr_front_trace_since_us(const rtr_front *front);

#ifdef __cplusplus
}
#endif
#endif
