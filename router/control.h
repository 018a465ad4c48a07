/* The router's gRPC port: the Cluster service, health, reflection. Thread: the main loop's. */
#ifndef ROUTER_CONTROL_H
#define ROUTER_CONTROL_H

#include "cluster/view.h"
#include "router/nodes.h"
#include "router/operations.h"
#include "rpc/server.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_control rtr_control;

typedef struct rtr_control_options {
    rpc_runtime *runtime;
    const char *listen;
    const rpc_tls *tls; /* NULL: plain text */
} rtr_control_options;

SL_MUST_USE sl_status rtr_control_create(const rtr_control_options *options,
                                         rtr_control **out_control, sl_err *err);
/* What it tells of; NULL again before they go. */
void rtr_control_set(rtr_control *control, const clu_view *view, rtr_nodes *nodes,
                     rtr_operations *operations);
const char *rtr_control_address(const rtr_control *control);
void rtr_control_destroy(rtr_control *control);

#ifdef __cplusplus
}
#endif
#endif
