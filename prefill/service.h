/* The Prefill service of a node: computes prompts and hands their pages to the decode nodes named
 * by the tickets.
 *
 * Adapter around the pure state machine (prefill/job.h): carries its actions out on the rpc server,
 * kvtransfer and the engine thread. One per node. Thread: the control loop's, but for what
 * prefill/compute.h says of the engine thread. */
#ifndef PREFILL_SERVICE_H
#define PREFILL_SERVICE_H

#include "base/loop.h"
#include "base/metrics.h"
#include "base/trace.h"
#include "engine/worker.h"
#include "kvtransfer/kvtransfer.h"
#include "prefill/compute.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "proto/sluice/v1/types.pb-c.h"
#include "rpc/methods.h"
#include "rpc/server.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pre_service pre_service;

typedef struct pre_service_options {
    sl_loop *loop;
    const eng_model *model;
    eng_engine *engine;
    eng_worker *worker; /* not started yet */
    kvt_context *kvt;
    sl_metrics *metrics;
    sl_trace *trace;  /* NULL: nothing is noted */
    const char *name; /* the node's; borrowed */
    uint32_t context_max;
    uint32_t chunk_tokens;
    uint64_t chunk_ns; /* see pre_compute_options */
    bool prefix_cache;
    uint32_t queue_max; /* jobs that hold anything, at most PRE_JOBS_MAX */
    /* Somebody asks for pages that are here; NULL: nobody wants to know. */
    void (*on_offer)(void *context, const char *request_id);
    void *context;
} pre_service_options;

SL_MUST_USE sl_status pre_service_create(const pre_service_options *options,
                                         pre_service **out_service, sl_err *err);
/* After the worker has stopped, the server and the kvt context are destroyed, and before the engine
 * is. */
void pre_service_destroy(pre_service *service);
/* The rpc method's handler, for rpc_server_options. */
rpc_handler pre_service_handler(pre_service *service);
/* A KVT_EVENT_SEND_* of the node's context. */
void pre_service_on_transfer(pre_service *service, const kvt_event *event);
/* Calls fn for each job that holds anything, with what the node's ledger says of it. Borrowed. */
void pre_service_holders(const pre_service *service,
                         void (*fn)(void *context, const Sluice__V1__LedgerHolder *holder),
                         void *context);
/* Refuses new jobs, but for offers; false: takes them again. */
void pre_service_drain(pre_service *service, bool draining);
/* A decode rank: it hands over what it has, and computes no prompts. */
void pre_service_set_offers_only(pre_service *service, bool offers_only);
/* Refuses new jobs as if there were no room, so that routers wait or go elsewhere. */
void pre_service_hold(pre_service *service, bool held);
/* The engine rests, by an operator's wish: that time does not count for the jobs' deadlines. */
void pre_service_set_rest(pre_service *service, bool rests);
/* Ends all jobs: routers have them done elsewhere, or later. */
void pre_service_clear(pre_service *service);
/* No job holds anything. */
bool pre_service_is_clear(const pre_service *service);
/* Jobs that hold anything. */
uint32_t pre_service_live(const pre_service *service);
/* Fills slots, running, waiting and queued_tokens; pages are the node's to add. */
void pre_service_load(const pre_service *service, Sluice__V1__Load *out_load);

#ifdef __cplusplus
}
#endif
#endif
