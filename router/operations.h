/* The operator's hand on the cluster, as each router offers it: cordoning, settings, requests,
 * events. What is desired lies in etcd; every router follows it, whoever wrote it.
 *
 * Thread: the main loop's; requests of other loops are asked there by posts. */
#ifndef ROUTER_OPERATIONS_H
#define ROUTER_OPERATIONS_H

#include "cluster/view.h"
#include "router/events.h"
#include "router/front.h"
#include "router/options.h"
#include "rpc/server.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_LOOPS_MAX 64u

typedef struct rtr_operations rtr_operations;

typedef struct rtr_loop_ref {
    sl_loop *loop;
    rtr_front *front;
} rtr_loop_ref;

typedef struct rtr_operations_options {
    clu_etcd *etcd;
    const clu_view *view;
    const char *cluster, *router;      /* names; borrowed */
    const rtr_options *own;            /* borrowed */
    const rpc_tls *tls;                /* NULL: plain text */
    const rtr_metrics *metrics;        /* borrowed */
    rtr_loop_ref loops[RTR_LOOPS_MAX]; /* the first is the main one */
    uint32_t loop_count;
    /* What routers may give a node has changed. */
    void (*on_cordon)(void *context, const char *node);
    void *context;
} rtr_operations_options;

SL_MUST_USE sl_status rtr_operations_create(const rtr_operations_options *options,
                                            rtr_operations **out_operations, sl_err *err);
/* Before etcd's client, after the other loops have stopped. NULL is fine. */
void rtr_operations_destroy(rtr_operations *operations);
bool rtr_operations_cordoned(const rtr_operations *operations, const char *node);
rtr_events_ring *rtr_operations_events(rtr_operations *operations);

/* The methods of Cluster that it serves. */
typedef struct rtr_operation {
    const rpc_method *method;
    void (*on_call)(rtr_operations *operations, rpc_server_call *call,
                    const ProtobufCMessage *request);
} rtr_operation;
#define RTR_OPERATIONS 10u
extern const rtr_operation RTR_OPERATION_TABLE[RTR_OPERATIONS];

#ifdef __cplusplus
}
#endif
#endif
