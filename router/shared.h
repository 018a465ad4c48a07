/* What all loops of a router share: immutable after start, but for the metrics (atomic) and the
 * pool (own lock). */
#ifndef ROUTER_SHARED_H
#define ROUTER_SHARED_H

#include "router/api_request.h"
#include "router/metrics.h"
#include "router/pool.h"
#include "router/request.h"
#include "rpc/runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the cluster's settings may change while the router runs: each loop has a copy of its own. */
typedef struct rtr_tuning {
    rtr_request_limits limits; /* max_tokens is each request's own */
    uint32_t queue_max;        /* requests without a place, of one loop */
    bool self_prefill;
    bool move_drained;              /* requests leave decode ranks that drain */
    uint64_t recovery_tokens_per_s; /* of one loop; 0: no bound */
    uint32_t pull_min;              /* tokens that a prefill node rather fetches; 0: never */
    uint64_t ttft_target_ns, tpot_target_ns; /* 0: none */
    uint64_t keep_alive_ns;                  /* comments in silent streams; 0: none */
    uint32_t weights_min;                    /* nodes with older ones get no requests */
} rtr_tuning;

typedef struct rtr_shared {
    rtr_api_settings api;
    rtr_metrics metrics;
    rtr_pool *pool;
    rtr_tuning tuning; /* at the start */
    const char *router_name;
    uint64_t incarnation;
    const rpc_tls *tls;         /* NULL: plain text */
    const char *model_identity; /* what their model hash begins with; NULL: not checked */
    uint64_t started_at;        /* seconds since 1970 */
    uint32_t context_max;       /* the model's, or less by option */
    uint32_t inline_bytes; /* larger bodies are prepared by the pool, and those with a constraint */
    uint32_t prefill_deadline_ms;
} rtr_shared;

#ifdef __cplusplus
}
#endif
#endif
