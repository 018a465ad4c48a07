/* What the leading router does for the cluster: it keeps as many nodes of each role as are wanted,
 * by a hook that knows how nodes are started and stopped here; it plans how many that should be
 * (router/planner.h), from what all members say that they have to do (router/census.h); and it
 * spreads experts over the ranks of instances by their load (router/rebalancer.h).
 *
 * Every router campaigns; all follow the wish; only the leader acts, and each act begins with its
 * record in the audit, fenced by the election, so that an old leader does nothing. The hook gets
 * the wish in its environment and may be run again with the same: it makes a difference up, it does
 * not add. Thread: the main loop's. */
#ifndef ROUTER_CONTROLLER_H
#define ROUTER_CONTROLLER_H

#include "cluster/desired.h"
#include "cluster/table.h"
#include "cluster/view.h"
#include "router/events.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/planner.h"
#include "router/rebalancer.h"
#include "rpc/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_controller rtr_controller;

typedef struct rtr_controller_options {
    clu_etcd *etcd;
    const clu_view *view;
    const char *cluster, *router; /* names; borrowed */
    uint64_t lease_ns;
    const char *hook;         /* a shell's command; NULL: none */
    const rtr_options *tuned; /* as the cluster's settings make them; borrowed, may change */
    const rpc_tls *tls;       /* NULL: plain text */
    rtr_events_ring *events;  /* borrowed */
    const rtr_metrics *metrics;
    void (*on_wish_seen)(void *context); /* clu_table_seen of rtr_controller_wish has grown */
    void *context;
} rtr_controller_options;

SL_MUST_USE sl_status rtr_controller_create(const rtr_controller_options *options,
                                            rtr_controller **out_controller, sl_err *err);
/* A hook that runs is left to itself. NULL is fine. */
void rtr_controller_destroy(rtr_controller *controller);
/* The table that keeps the wish; lives as long as the controller. */
const clu_table *rtr_controller_wish(const rtr_controller *controller);

typedef struct rtr_scale_status {
    bool set;
    clu_scale wanted;
    int64_t revision; /* of the wish; 0: none */
    uint32_t prefill, decode, hybrid;
    const char *leader; /* "" = none; borrowed */
    bool hook;
    const char *last; /* borrowed */
    rtr_plan_mode mode;
    const rtr_plan_advice *advice; /* [RTR_PLAN_ROLE_COUNT] borrowed; NULL: another router plans */
} rtr_scale_status;
void rtr_controller_status(const rtr_controller *controller, rtr_scale_status *out_status);
/* Of the leader; of others without instances. Borrowed. */
const rtr_rebalancer *rtr_controller_rebalancer(const rtr_controller *controller);

#ifdef __cplusplus
}
#endif
#endif
