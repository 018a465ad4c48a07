/* Whether the cluster wants a node more or less of a role, and why: from queues, from requests that
 * missed their targets, and from how busy the nodes are. Pure: (state, load, now) -> advice.
 *
 * Load is taken in windows. A role wants one more after so many late windows in a row, one less
 * after RTR_PLAN_IDLE_TIMES as many idle ones. Whenever members or the wish change, or a node is
 * ill, nothing is judged for a pause, and counting begins anew: so one step is made at a time, and
 * its effect is seen before the next one; whoever made it. Thread: the owner's. */
#ifndef ROUTER_PLANNER_H
#define ROUTER_PLANNER_H

#include "base/clock.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_PLAN_REASON_MAX  200u
#define RTR_PLAN_IDLE_TIMES  4u   /* shrinking is in less of a hurry than growing */
#define RTR_PLAN_COUNTED_MIN 5u   /* requests of a window that say something about a target */
#define RTR_PLAN_MISSED_MAX  0.1  /* share of them that may miss it */
#define RTR_PLAN_GROWS       1.25 /* a queue that grows so from window to window is a trend */
#define RTR_PLAN_BUSY_LESS   0.5  /* how busy one node less may be */

typedef enum rtr_plan_mode {
    RTR_PLAN_MODE_OFF,
    RTR_PLAN_MODE_ADVISE,
    RTR_PLAN_MODE_ACT,
    RTR_PLAN_MODE_COUNT
} rtr_plan_mode;

typedef enum rtr_plan_role {
    RTR_PLAN_ROLE_PREFILL,
    RTR_PLAN_ROLE_DECODE,
    RTR_PLAN_ROLE_COUNT
} rtr_plan_role;

typedef struct rtr_plan_options {
    uint64_t window_ns; /* > 0 */
    uint32_t windows;   /* late ones in a row, > 0 */
    uint64_t pause_ns;
    uint32_t queue_max; /* requests that may wait, for each node of the role */
    struct rtr_plan_bounds {
        uint32_t min, max; /* nodes */
    } bounds[RTR_PLAN_ROLE_COUNT];
} rtr_plan_options;

/* What is known of a role at one moment. */
typedef struct rtr_plan_load {
    uint32_t nodes;  /* members that take work */
    uint32_t wanted; /* by the wish; without one, `nodes` */
    uint32_t ill;    /* members that are silent, not ready, or whose lease is lost */
    uint32_t queue;  /* requests that wait for it */
    double busy;     /* share of its room that is in use, 0 to 1 */
    /* Requests by the role's target (first token, time per token), since routers started. */
    uint64_t kept, missed;
} rtr_plan_load;

/* now: not before the last one's. */
typedef struct rtr_plan_event {
    bool blind;       /* nobody knows who is there */
    uint32_t routers; /* whose requests are counted */
    rtr_plan_load roles[RTR_PLAN_ROLE_COUNT];
} rtr_plan_event;

typedef struct rtr_plan_advice {
    int32_t more; /* nodes: -1, 0, 1 */
    char reason[RTR_PLAN_REASON_MAX];
} rtr_plan_advice;

typedef struct rtr_plan_count { /* of a role, in the window */
    double queue, busy;         /* sums over `looks` */
    uint64_t kept, missed;      /* at its beginning */
    double queue_before;        /* mean of the window before */
    uint32_t late, idle;        /* windows in a row */
} rtr_plan_count;

typedef struct rtr_plan { /* zeroed = nothing is known */
    bool begun;
    sl_time_ns window_end, pause_until;
    uint32_t looks;
    rtr_plan_event last;
    rtr_plan_count counts[RTR_PLAN_ROLE_COUNT];
    rtr_plan_advice advice[RTR_PLAN_ROLE_COUNT]; /* as it stands */
} rtr_plan;

/* true: a window was judged. */
bool rtr_plan_step(rtr_plan *plan, const rtr_plan_options *options, const rtr_plan_event *event,
                   sl_time_ns now);

#ifdef __cplusplus
}
#endif
#endif
