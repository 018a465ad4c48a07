/* What operations.c (desired state, settings, events) and operations_requests.c (the loops'
 * requests) share. Not for other files. */
#ifndef ROUTER_OPERATIONS_INTERNAL_H
#define ROUTER_OPERATIONS_INTERNAL_H

#include "cluster/action.h"
#include "cluster/desired.h"
#include "cluster/table.h"
#include "router/controller.h"
#include "router/live_settings.h"
#include "router/operations.h"

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_DESIRED_MAX 1024u /* nodes with a record */
#define RTR_DEEDS_MAX   64u   /* calls of operators that wait for something */

typedef struct rtr_desired {
    char node[CLU_NAME_MAX];
    clu_desired record;
    int64_t revision;
    bool listed; /* by the list that is being taken in */
} rtr_desired;

typedef struct rtr_gather rtr_gather;

/* A call that waits for etcd. */
typedef struct rtr_deed {
    struct rtr_deed *prev, *next;
    rtr_operations *operations;
    rpc_server_call *call; /* NULL: who asked has gone */
    clu_action_run *run;
    clu_request *request;
    ProtobufCMessage *reply; /* a packed copy's message, to be sent once it took place */
    const clu_table *shows;  /* and once that shows it, from the revision on: the operator's next */
    int64_t revision;        /* call must find it; 0: it has not taken place */
} rtr_deed;

struct rtr_operations {
    rtr_operations_options options;
    rtr_events_ring events;
    clu_table *desired_table, *settings_table;
    rtr_controller *controller;
    rtr_desired *desired; /* [RTR_DESIRED_MAX] */
    uint32_t desired_count;
    rtr_live_settings settings;
    int64_t settings_revision;
    bool settings_listed;
    rtr_options tuned; /* own options with the settings over them */
    rtr_deed *deeds;
    rtr_gather *gathers;
    uint32_t deed_count;
};

/* operations_requests.c */
void rtr_gathers_destroy(rtr_operations *operations);
void rtr_on_list_requests(rtr_operations *operations, rpc_server_call *call,
                          const ProtobufCMessage *request);
void rtr_on_cancel_request(rtr_operations *operations, rpc_server_call *call,
                           const ProtobufCMessage *request);
void rtr_on_trace(rtr_operations *operations, rpc_server_call *call,
                  const ProtobufCMessage *request);

#ifdef __cplusplus
}
#endif
#endif
