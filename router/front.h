/* One router loop: its HTTP server, its streams to the nodes, and the requests that live on it.
 *
 * A request belongs to one front from its first byte to its last. Thread: the loop's. */
#ifndef ROUTER_FRONT_H
#define ROUTER_FRONT_H

#include "router/http_server.h"
#include "router/nodes.h"
#include "router/shared.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_front rtr_front;

typedef struct rtr_front_options {
    sl_loop *loop;
    rpc_runtime *runtime;
    const rtr_shared *shared;
    rtr_http_server_options http; /* on_request and context are the front's */
    uint32_t index;
    /* The data path of a member broke; comes from the loop, not from inside a stream's callback. */
    void (*on_broken)(void *context, const char *name, uint64_t incarnation);
    void *context;
} rtr_front_options;

SL_MUST_USE sl_status rtr_front_create(const rtr_front_options *options, rtr_front **out_front,
                                       sl_err *err);
/* Requests left are dropped (their nodes see the streams end). NULL is fine. */
void rtr_front_destroy(rtr_front *front);
rtr_nodes *rtr_front_nodes(rtr_front *front);
/* /ready says no from now on; requests are still taken. */
void rtr_front_leave(rtr_front *front);
/* No new connections or requests; on_stopped once all answers are written, or at the deadline, when
 * what still runs has been given up with an error. */
void rtr_front_stop(rtr_front *front, sl_time_ns deadline, void (*on_stopped)(void *context),
                    void *context);
/* From now on; requests that have begun keep the limits they began with. */
void rtr_front_tune(rtr_front *front, const rtr_tuning *tuning);
uint32_t rtr_front_live_count(const rtr_front *front);

#ifdef __cplusplus
}
#endif
#endif
