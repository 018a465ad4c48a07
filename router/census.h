/* What the members of a cluster have to do, as they say themselves: a router's own requests may be
 * few, and the loads that come with them tell nothing of nodes that it gave none.
 *
 * One round at a time: Node.GetStatus of all nodes that take work, Cluster.GetScale of all routers.
 * Thread: the main loop's. */
#ifndef ROUTER_CENSUS_H
#define ROUTER_CENSUS_H

#include "cluster/view.h"
#include "router/limits.h"
#include "rpc/client.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_census rtr_census;

typedef struct rtr_census_role {
    uint32_t nodes;   /* members that take work */
    uint32_t ill;     /* of all: suspect, silent, or not ready */
    uint32_t working; /* nodes that work on something */
    uint32_t waiting; /* requests there that nothing is done for yet */
    uint64_t slots, slots_used, pages, pages_used;
} rtr_census_role;

typedef struct rtr_census_routers {
    uint32_t count;                                          /* that answered */
    uint32_t waiting;                                        /* requests without a place */
    uint64_t ttft_kept, ttft_missed, tpot_kept, tpot_missed; /* since each started */
} rtr_census_routers;

typedef struct rtr_census_result { /* hybrid nodes count in neither */
    rtr_census_role prefill, decode;
    rtr_census_routers routers;
} rtr_census_result;

typedef void (*rtr_census_fn)(void *context, const rtr_census_result *result);

typedef struct rtr_census_options {
    rpc_runtime *runtime;
    const clu_view *view;
    const rpc_tls *tls; /* NULL: plain text */
    uint64_t timeout_ns;
    rtr_census_fn fn; /* the end of a round; not from inside rtr_census_start */
    void *context;
} rtr_census_options;

rtr_census *rtr_census_create(const rtr_census_options *options);
/* Before the runtime and the view. NULL is fine. */
void rtr_census_destroy(rtr_census *census);
/* Does nothing while a round is under way. At most RTR_NODES_MAX members are asked. */
void rtr_census_start(rtr_census *census);
/* No result comes of the round under way. */
void rtr_census_drop(rtr_census *census);

/* A member that takes work, or will again. */
bool rtr_census_counts(const clu_view_member *member);

#ifdef __cplusplus
}
#endif
#endif
