/* A prefix pull: one node fetches pages that another one has into its own cache, to start from
 * them.
 *
 * The taker is asked to fetch and grants a ticket, the source is asked to offer under it; both are
 * ordinary calls (Admit.fetch_only, PrefillRequest.offer). Whatever goes wrong ends the pull, and
 * what it was for is computed. Owner: a live request. Thread: the loop's. */
#ifndef ROUTER_PULL_H
#define ROUTER_PULL_H

#include "router/nodes.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_pull rtr_pull;

typedef struct rtr_pulls { /* of one loop; zeroed at first */
    rtr_pull *first;
    uint32_t begun;
} rtr_pulls;

typedef enum rtr_pull_end {
    RTR_PULL_FETCHED,
    RTR_PULL_KNOWN, /* the taker had them */
    RTR_PULL_STALE, /* the source has them no more */
    RTR_PULL_LATE,  /* not over in time */
    RTR_PULL_FAILED,
} rtr_pull_end;

const char *rtr_pull_end_name(rtr_pull_end end);

typedef struct rtr_pull_options {
    rtr_nodes *nodes;
    sl_loop *loop;
    const char *request_id; /* that it is for */
    uint64_t taker;         /* the stream to it */
    uint64_t source;        /* the process */
    const uint32_t *tokens; /* copied */
    uint32_t token_count;   /* whole pages */
    uint64_t cache_space;
    int32_t priority;
    uint64_t timeout_ns;
    void (*on_end)(void *context, rtr_pull_end end); /* not from inside start; it is freed then */
    void *context;
} rtr_pull_options;

/* NULL: the taker cannot be asked. */
rtr_pull *rtr_pull_start(rtr_pulls *pulls, const rtr_pull_options *options);
/* No event any more. NULL is fine. */
void rtr_pull_drop(rtr_pull *pull);

/* What nodes say; false: of no pull. */
bool rtr_pulls_admitted(rtr_pulls *pulls, const Sluice__V1__Admitted *admitted);
bool rtr_pulls_refused(rtr_pulls *pulls, const Sluice__V1__Refused *refused);
bool rtr_pulls_run(rtr_pulls *pulls, const Sluice__V1__TokenRun *run);
/* The stream broke. */
void rtr_pulls_broken(rtr_pulls *pulls, uint64_t stream);

#ifdef __cplusplus
}
#endif
#endif
