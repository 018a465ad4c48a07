/* Spreads the experts of all instances over their ranks by measured load: asks the ranks once a
 * window (Node.GetExperts), has router/rebalance.h judge each instance, reads its table in etcd and
 * plans another one, on a thread of its own, and writes it by an action that is fenced by the
 * election and compares the table's revision.
 *
 * One plan at a time. What it knows is forgotten when the router does not lead any more, or does
 * not know who is there. Thread: the main loop's. */
#ifndef ROUTER_REBALANCER_H
#define ROUTER_REBALANCER_H

#include "cluster/etcd.h"
#include "cluster/view.h"
#include "router/events.h"
#include "router/metrics.h"
#include "router/options.h"
#include "router/rebalance.h"
#include "rpc/client.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_INSTANCES_MAX 64u

typedef struct rtr_rebalancer rtr_rebalancer;

typedef struct rtr_rebalancer_options {
    clu_etcd *etcd;
    const clu_view *view;
    const char *cluster, *router; /* names; borrowed */
    const rtr_options *tuned;     /* borrowed, may change */
    const rpc_tls *tls;           /* NULL: plain text */
    rtr_events_ring *events;      /* borrowed */
    const rtr_metrics *metrics;
} rtr_rebalancer_options;

rtr_rebalancer *rtr_rebalancer_create(const rtr_rebalancer_options *options);
/* Before the runtime, the view and etcd's client. NULL is fine. */
void rtr_rebalancer_destroy(rtr_rebalancer *rebalancer);
/* Often. fence: of the election; 0: does not lead, or nobody knows who is there. */
void rtr_rebalancer_look(rtr_rebalancer *rebalancer, int64_t fence, sl_time_ns now);
/* In no order. NULL: no more. Until the loop runs again. */
const rtr_rebalance *rtr_rebalancer_at(const rtr_rebalancer *rebalancer, uint32_t index,
                                       const char **out_instance);

#ifdef __cplusplus
}
#endif
#endif
