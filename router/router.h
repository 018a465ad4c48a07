/* The router process: model files, loops, membership, control port, start and stop. */
#ifndef ROUTER_ROUTER_H
#define ROUTER_ROUTER_H

#include "router/front.h"
#include "router/options.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_router rtr_router;

/* Starts a router whose first loop the caller runs until it stops. options: borrowed until destroy.
 * Thread: that loop's. */
SL_MUST_USE sl_status rtr_router_create(const rtr_options *options, rtr_router **out_router,
                                        sl_err *err);
sl_loop *rtr_router_loop(const rtr_router *router);
rtr_front *rtr_router_front(const rtr_router *router);
/* At any time outside the loop's callbacks: what runs is dropped. NULL is fine. */
void rtr_router_destroy(rtr_router *router);
/* Runs until SIGTERM; returns the process's exit code (0 after a clean stop, 1 after an error that
 * was logged). */
int rtr_run(const rtr_options *options);
/* What main() does: parse, run, clean up. */
int rtr_main(int argc, char **argv);

#ifdef __cplusplus
}
#endif
#endif
