/* Whether a node that failed at its work is given more of it. Pure.
 *
 * A node whose streams stand but whose work fails, or does not move, is left alone for a while;
 * then one request is the probe, and the next one only after twice that time, until one of them
 * gets somewhere. A probe is a request like any other: it goes on elsewhere if it fails. Thread:
 * owner. */
#ifndef ROUTER_BREAKER_H
#define ROUTER_BREAKER_H

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_BREAKER_FAILURES 3u /* in a row, unless one of them is grave */
#define RTR_BREAKER_FIRST_NS SL_S_NS
#define RTR_BREAKER_MAX_NS   (30 * SL_S_NS)

typedef struct rtr_breaker {
    uint32_t failures;     /* since the last progress */
    sl_time_ns pause_ns;   /* 0: closed, all is well */
    sl_time_ns next_probe; /* open: until then nothing, then one */
    bool probing;          /* one was given since the last failure */
} rtr_breaker;

bool rtr_breaker_is_open(const rtr_breaker *breaker);
/* A request may be given to the node. */
bool rtr_breaker_allows(const rtr_breaker *breaker, sl_time_ns now);
/* One was. */
void rtr_breaker_note_given(rtr_breaker *breaker, sl_time_ns now);
/* Work came to something. true: it was open. */
bool rtr_breaker_note_progress(rtr_breaker *breaker);
/* grave: nothing moved for the whole of a deadline. true: it was closed and is open now. */
bool rtr_breaker_note_failure(rtr_breaker *breaker, bool grave, sl_time_ns now);

#ifdef __cplusplus
}
#endif
#endif
