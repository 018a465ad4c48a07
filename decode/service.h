/* The Decode service of a node: admits sequences for routers, has their pages filled, generates,
 * streams tokens.
 *
 * Adapter around the pure state machine (decode/sequence.h): carries its actions out on the rpc
 * server, kvtransfer and the engine thread. One per node. Thread: the control loop's, but for what
 * decode/batch.h says of the engine thread. */
#ifndef DECODE_SERVICE_H
#define DECODE_SERVICE_H

#include "base/loop.h"
#include "base/metrics.h"
#include "base/trace.h"
#include "decode/batch.h"
#include "kvtransfer/kvtransfer.h"
#include "proto/sluice/v1/node.pb-c.h"
#include "proto/sluice/v1/types.pb-c.h"
#include "rpc/methods.h"
#include "rpc/server.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dec_service dec_service;

typedef struct dec_service_options {
    sl_loop *loop;
    const eng_model *model;
    eng_engine *engine;
    eng_worker *worker; /* not started yet */
    kvt_context *kvt;
    kvt_sums sums; /* of the pieces that it fetches */
    sl_metrics *metrics;
    sl_trace *trace;  /* NULL: nothing is noted */
    const char *name; /* the node's; borrowed */
    uint64_t incarnation;
    uint32_t sequences_max;
    uint32_t context_max;
    uint32_t chunk_tokens;
    uint64_t chunk_ns;    /* see dec_batch_options */
    uint32_t rows_max;    /* of one step of the engine */
    uint32_t draft_depth; /* 0 = no drafts; a model without MTP layer makes none */
    bool prefix_cache;
    uint64_t park_ns; /* how long sequences wait for a router whose stream broke; 0: not at all */
} dec_service_options;

SL_MUST_USE sl_status dec_service_create(const dec_service_options *options,
                                         dec_service **out_service, sl_err *err);
/* After the worker has stopped, the server and the kvt context are destroyed, and before the engine
 * is. */
void dec_service_destroy(dec_service *service);
/* The rpc method's handler, for rpc_server_options. */
rpc_handler dec_service_handler(dec_service *service);
/* A KVT_EVENT_RECV_* of the node's context. */
void dec_service_on_transfer(dec_service *service, const kvt_event *event);
/* At the end of each pass of the loop: sends the routers what the pass brought, one message each.
 */
void dec_service_flush(dec_service *service);
/* Calls fn for each sequence that holds anything, with what the node's ledger says of it. Borrowed.
 */
void dec_service_holders(const dec_service *service,
                         void (*fn)(void *context, const Sluice__V1__LedgerHolder *holder),
                         void *context);
/* A prefill rank: it fetches pages for its cache, and generates nothing. */
void dec_service_set_fetches_only(dec_service *service, bool fetches_only);
/* Refuses new sequences; false: takes them again. */
void dec_service_drain(dec_service *service, bool draining);
/* Refuses new sequences as if there were no room, so that routers wait or go elsewhere. */
void dec_service_hold(dec_service *service, bool held);
/* Routers are told: a pause is under way until then at most (0: none), and what is here rests too.
 */
void dec_service_set_pause(dec_service *service, sl_time_ns until, bool rests);
/* Other weights while sequences live, in these steps. Again and again until it is clear: ends what
 * has not generated here yet; routers have it done anew. */
void dec_service_clear(dec_service *service);
/* What is here has generated, or is not open yet. */
bool dec_service_is_clear(const dec_service *service);
/* Engine thread, between turns: all that is here gives its pages up; what has generated comes back
 * by itself. */
void dec_service_give_up_all(dec_service *service);
/* Engine thread: the engine has other weights, by this way or any. */
void dec_service_note_weights(dec_service *service);
/* Tells the routers the engine's new stamp on the streams that stand. */
void dec_service_tell_stamp(dec_service *service);
/* Ends the routers' streams, so that they come again and hear the engine's new stamp. While no
 * sequence is live. */
void dec_service_renew(dec_service *service);
/* Sequences that hold anything. */
uint32_t dec_service_live(const dec_service *service);
/* Requests that moved away and whose pages are still to be asked for. */
uint32_t dec_service_moves(const dec_service *service);
/* They are. */
void dec_service_note_asked(dec_service *service, const char *request_id);
/* Fills slots, running and waiting; pages are the node's to add. */
void dec_service_load(const dec_service *service, Sluice__V1__Load *out_load);

#ifdef __cplusplus
}
#endif
#endif
