/* Whether the experts of one instance should be spread anew over its ranks, and when: from the rows
 * that its ranks say they have worked on. Pure: (state, event, now) -> what to do; no clock, no
 * network.
 *
 * Load is taken in windows. After so many in a row in which the heaviest rank was over its bound a
 * plan is asked for, by the load of those windows. It is worth it if it gains by that load and also
 * by the load of a longer past, which fades to a half in a pause: so what comes and goes moves
 * nothing to and fro. After a roll-out, and whenever ranks, formation or placement change by other
 * hands, nothing is planned for a pause; nor while ranks are missing or a roll-out is under way. A
 * new leader begins with a pause: it does not know what was done before it. Thread: the owner's. */
#ifndef ROUTER_REBALANCE_H
#define ROUTER_REBALANCE_H

#include "base/clock.h"
#include "cluster/placement.h"
#include "router/planner.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_REBALANCE_REASON_MAX 200u
#define RTR_ROLL_OUT_NS          (60 * SL_S_NS) /* longer is told as a failure */

typedef struct rtr_rebalance_options {
    rtr_plan_mode mode; /* not OFF */
    uint64_t window_ns; /* > 0 */
    uint32_t windows;   /* in a row, > 0 */
    uint32_t rows; /* of a window, for each rank and layer; fewer say nothing: that is chance */
    uint64_t pause_ns;
    double over; /* heaviest rank over the mean, > 1 is uneven */
    double gain; /* share of its imbalance that a plan must take away */
} rtr_rebalance_options;

typedef struct rtr_rebalance_seen {
    const char
        *missing; /* why they cannot be judged now ("a rank is silent"); NULL: all is there */
    uint64_t formation, placement; /* in use on all ranks, of `missing` 0 */
    /* Rows since each rank started. Borrowed; NULL if something is missing. */
    const uint64_t *expert_rows; /* [layers][experts], of all ranks */
    const uint64_t *rank_rows;   /* [layers][ranks] */
} rtr_rebalance_seen;

/* What another table would do. */
typedef struct rtr_rebalance_plan {
    uint64_t placement;             /* the version that is there: planned from */
    double before, after;           /* imbalance by the windows' load */
    double long_before, long_after; /* by that of the longer past */
    uint64_t moves, bytes;          /* experts; of their weights, 0: not known */
} rtr_rebalance_plan;

typedef enum rtr_rebalance_kind {
    RTR_REBALANCE_SEEN,    /* the ranks have been asked */
    RTR_REBALANCE_PLANNED, /* the plan that was asked for */
    RTR_REBALANCE_FAILED,  /* it, or the writing, has come to nothing: `why` */
    RTR_REBALANCE_WRITTEN, /* the table is in etcd */
} rtr_rebalance_kind;

typedef struct rtr_rebalance_event {
    rtr_rebalance_kind kind;
    rtr_rebalance_seen seen;
    rtr_rebalance_plan plan;
    const char *why;
} rtr_rebalance_event;

typedef enum rtr_rebalance_action {
    RTR_REBALANCE_NOTHING,
    RTR_REBALANCE_PLAN,  /* by rtr_rebalance.recent and .past; answered by PLANNED or FAILED */
    RTR_REBALANCE_WRITE, /* that plan's table; answered by WRITTEN or FAILED */
    RTR_REBALANCE_DONE,  /* all ranks use what was written: after `took_ns` */
    RTR_REBALANCE_LATE,  /* not all do, after RTR_ROLL_OUT_NS */
} rtr_rebalance_action;

typedef enum rtr_rebalance_phase {
    RTR_REBALANCE_PHASE_WATCHING,
    RTR_REBALANCE_PHASE_PLANNING,
    RTR_REBALANCE_PHASE_WRITING,
    RTR_REBALANCE_PHASE_ROLLING_OUT,
} rtr_rebalance_phase;

typedef struct rtr_rebalance {
    uint32_t layers, experts, ranks;
    rtr_rebalance_phase phase;
    bool begun;
    bool disturbed; /* ranks changed in the midst of planning */
    sl_time_ns window_begin, pause_until;
    const char *pause_why; /* a literal */
    uint64_t formation, placement;
    uint64_t *experts_before, *ranks_before; /* as seen at the window's begin */
    double *recent, *past;                   /* loads [layers][experts] */
    double *rank_loads;                      /* [layers][ranks] of one window */
    uint32_t over;                           /* windows in a row */
    double imbalance;                        /* of the last window; 0: none yet */
    bool advised;                            /* `plan` is worth it */
    rtr_rebalance_plan plan;                 /* the last one */
    sl_time_ns written_at;
    uint64_t late;    /* version that was written and is not used by all ranks; 0: none */
    uint64_t took_ns; /* of the last roll-out; 0: none yet */
    char reason[RTR_REBALANCE_REASON_MAX];
} rtr_rebalance;

/* Within the limits of cluster/placement.h. */
rtr_rebalance *rtr_rebalance_create(uint32_t layers, uint32_t experts, uint32_t ranks);
void rtr_rebalance_destroy(rtr_rebalance *r); /* NULL is fine */
/* now: not before the last one's. */
rtr_rebalance_action rtr_rebalance_step(rtr_rebalance *r, const rtr_rebalance_options *options,
                                        const rtr_rebalance_event *event, sl_time_ns now);

#ifdef __cplusplus
}
#endif
#endif
