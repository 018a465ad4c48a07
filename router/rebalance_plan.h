/* Plans another placement for an instance (cluster/placement.h), by load of late, and says what it
 * would do by that load and by that of a longer past. Pure. Thread: any; it takes a while. */
#ifndef ROUTER_REBALANCE_PLAN_H
#define ROUTER_REBALANCE_PLAN_H

#include "cluster/placement_table.h"
#include "router/rebalance.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_rebalance_question {
    const clu_placement *table;  /* in use */
    const double *recent, *past; /* loads [layers][experts] */
    double gain;                 /* a layer that would gain a smaller share stays as it is */
    uint64_t bytes;              /* of all ranks' experts; 0: not known */
    const bool *stopped;         /* atomic accesses only; NULL: to the end */
} rtr_rebalance_question;

/* out_table: of the next version, the caller's. SL_CANCELLED: stopped. */
SL_MUST_USE sl_status rtr_rebalance_make_plan(const rtr_rebalance_question *question,
                                              clu_placement **out_table,
                                              rtr_rebalance_plan *out_plan, sl_err *err);

#ifdef __cplusplus
}
#endif
#endif
