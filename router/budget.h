/* How much may be computed again after losses: a bucket that fills at a constant rate, so that the
 * death of a node with many requests does not keep the others' prompts waiting. Pure.
 *
 * Who finds the bucket not empty may take all that it needs, also more than is there: the next ones
 * wait for that to be made good. So no request is too large for it. Thread: owner. */
#ifndef ROUTER_BUDGET_H
#define ROUTER_BUDGET_H

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_BUDGET_BURST_NS (4 * SL_S_NS) /* of the rate: what a full bucket holds */

typedef struct rtr_budget {
    uint64_t tokens_per_s;  /* 0: no bound */
    sl_time_ns spent_until; /* what was taken lasts until then; the bucket is full before it */
} rtr_budget;

/* false: nothing was taken, again at rtr_budget_next. */
bool rtr_budget_take(rtr_budget *budget, uint64_t tokens, sl_time_ns now);
/* When something may be taken; at or before now: at once. */
sl_time_ns rtr_budget_next(const rtr_budget *budget);

#ifdef __cplusplus
}
#endif
#endif
