/* What the files of node/ share. Not for other folders. */
#ifndef NODE_INTERNAL_H
#define NODE_INTERNAL_H

#include "base/daemon.h"
#include "base/trace.h"
#include "cluster/registration.h"
#include "cluster/trust.h"
#include "comm/comm.h"
#include "decode/service.h"
#include "engine/reload.h"
#include "node/host.h"
#include "prefill/service.h"

typedef enum nod_state {
    NOD_STATE_STARTING, /* not registered yet */
    NOD_STATE_READY,
    NOD_STATE_DRAINING, /* takes nothing new, finishes what it has */
    NOD_STATE_LEAVING,  /* nothing is left: takes its record back, closes its calls */
    NOD_STATE_COUNT
} nod_state;

typedef struct nod_reload nod_reload;
typedef struct nod_ledger nod_ledger;
typedef struct nod_audit nod_audit;
typedef struct nod_ranks nod_ranks;
typedef struct nod_role_change nod_role_change;
typedef struct nod_pausing nod_pausing;

struct nod_host {
    const nod_options *options;
    nod_state state;
    nod_role role; /* now; options have the first one */
    uint64_t incarnation;
    clu_trust *trust;
    int exit_code;
    bool stopping; /* by a signal, or broken: a drain is not taken back */
    sl_loop *loop;
    sl_metrics *metrics;
    sl_daemon *daemon;
    eng_model *model;
    eng_engine *engine;
    eng_worker *worker;
    kvt_context *kvt;
    sl_watch *kvt_watch;
    dec_service *decode;  /* in the role of prefill: fetches only */
    pre_service *prefill; /* a decode rank: offers only */
    rpc_runtime *runtime;
    rpc_server *server;
    nod_ranks *ranks; /* NULL: all of the model is here */
    com_group *group; /* of the formation in use, for its numbers */
    bool left_alone;  /* all ranks leave: a group that ends is no fault */
    clu_etcd *etcd;
    clu_registration *registration;
    nod_reload *reload;
    nod_ledger *ledger;
    nod_audit *audit;
    nod_role_change *role_change;
    nod_pausing *pausing;
    sl_trace *trace; /* of requests */
    sl_timer *drain_timer;
    sl_timer *gauge_timer;
    sl_metric *pages_gauge, *running_gauge, *waiting_gauge, *etcd_gauge, *heap_gauge, *kv_gauge,
        *kv_received, *kv_pieces, *kv_mismatches, *kv_closes, *kv_restarts, *kv_restarts_deaf;
    kvt_stats kv_seen; /* told by those */
    sl_metric *tier_pages, *tier_lookups, *tier_bytes, *tier_dropped;
    eng_tier_stats tier_seen;
    sl_metric *ep_ranks, *ep_expert_bytes, *ep_bytes, *ep_rows, *ep_runs, *ep_wait;
    sl_metric *ep_placement, *ep_formations, *expert_tokens;
    uint64_t *expert_rows, *expert_seen; /* [moe_layers][experts], [experts] */
    com_stats ep_seen;
    uint64_t formation, placement; /* number and version in use */
    uint32_t context_max;
    uint32_t rows_max; /* of one step of the engine */
};

const char *nod_state_name(nod_state state);
/* Slots, pages and queue of both services together. */
void nod_host_load(const nod_host *host, Sluice__V1__Load *out_load);
/* Starts to drain; again: with an earlier deadline. */
void nod_host_drain(nod_host *host, uint64_t timeout_ns);

/* Takes a drain back. SL_CONFLICT: none is under way, it leaves already, or it was told to stop. */
SL_MUST_USE sl_status nod_host_resume(nod_host *host, sl_err *err);

/* Nothing new is taken while a reload waits or a pause is under way: looks which it is. */
void nod_host_hold(nod_host *host);
/* So does the engine rest, or not. */
void nod_host_rest(nod_host *host);
/* Requests that hold anything. */
uint32_t nod_host_live(const nod_host *host);
/* Borrows the engine's texts. */
void nod_host_stamp(const nod_host *host, Sluice__V1__Stamp *out_stamp);
/* Writes the member's record anew. */
void nod_host_tell_cluster(nod_host *host);
/* How this node opens the weights in `dir`, which is borrowed. Any thread. */
void nod_model_options(const nod_host *host, const char *dir, eng_model_options *out_options);

/* reload.c */
nod_reload *nod_reload_create(nod_host *host);
/* When the loop runs no more, and before the engine goes. */
void nod_reload_destroy(nod_reload *reload);
bool nod_reload_active(const nod_reload *reload);
/* All is loaded, and what runs must end, or give its pages up. */
bool nod_reload_waits(const nod_reload *reload);
/* The engine is to rest. */
bool nod_reload_rests(const nod_reload *reload);
/* No other formation is to be made ready. */
bool nod_reload_bars(const nod_reload *reload);
/* The ranks may have met again. Should this one be in doubt: over, others have gone over; else none
 * has if another formation is in use. While none is being made ready. */
void nod_reload_settle(nod_reload *reload, bool over);
/* At the end of each pass: nothing may run any more. */
void nod_reload_continue(nod_reload *reload);
void nod_reload_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request);

/* ledger.c */
nod_ledger *nod_ledger_create(nod_host *host);
/* When the loop runs no more and the worker is stopped. */
void nod_ledger_destroy(nod_ledger *ledger);
void nod_ledger_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request);

/* role.c */
nod_role_change *nod_role_change_create(nod_host *host);
/* When the loop runs no more. NULL is fine. */
void nod_role_change_destroy(nod_role_change *change);
bool nod_role_changing(const nod_role_change *change);
/* At the end of each pass: nothing may run any more. */
void nod_role_continue(nod_role_change *change);
/* Lets the services of the present role take requests, or none. */
void nod_role_apply(nod_host *host, bool takes);
void nod_role_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request);

/* pausing.c */
nod_pausing *nod_pausing_create(nod_host *host);
/* When the loop runs no more. NULL is fine. */
void nod_pausing_destroy(nod_pausing *pausing);
bool nod_pausing_active(const nod_pausing *pausing);
/* The engine is to rest for it. */
bool nod_pausing_wants_rest(const nod_pausing *pausing);
/* The engine does. */
bool nod_pausing_rests(const nod_pausing *pausing);
/* At the end of each pass: nothing may run any more, or the engine may rest. */
void nod_pausing_continue(nod_pausing *pausing);
/* The node drains. */
void nod_pausing_leave(nod_pausing *pausing);
void nod_pausing_on_begin(void *context, rpc_server_call *call, const ProtobufCMessage *request);
void nod_pausing_on_end(void *context, rpc_server_call *call, const ProtobufCMessage *request);

/* audit.c */
nod_audit *nod_audit_create(nod_host *host);
/* Before etcd's client. NULL is fine. */
void nod_audit_destroy(nod_audit *audit);
/* Something is not written yet: at most for etcd's timeout. */
bool nod_audit_busy(const nod_audit *audit);
/* Who called did this to the node; NULL: the node itself. */
void nod_audit_note(nod_audit *audit, rpc_server_call *call, const char *verb, const char *detail);

/* ranks.c: nothing to do where the node is no rank of several. */
bool nod_ranks_used(const nod_host *host);
/* Before the model is loaded: listens for the other ranks, and learns which experts this one has;
 * runs the loop meanwhile, as do the next two. */
SL_MUST_USE sl_status nod_ranks_open(nod_host *host, sl_err *err);
void nod_ranks_model_options(const nod_host *host, eng_model_options *options);
/* What the ranks say of a reload to this version, as their last headers had it. */
typedef struct nod_ranks_words {
    uint64_t formation; /* in use */
    bool failed;        /* it is not any more */
    eng_reload_stage least;
    uint64_t refused, silent; /* ranks, as bits */
} nod_ranks_words;
void nod_ranks_reload(const nod_host *host, uint32_t version, nod_ranks_words *out_words);
/* Which experts each rank has in the formation in use; the caller frees it. NULL: none is in use.
 */
uint16_t *nod_ranks_copy_table(const nod_host *host, uint64_t *out_formation);
/* No other formation is on its way, and what was before this one is gone. */
bool nod_ranks_settled(const nod_host *host);
/* What this rank says of its weights where the ranks meet; borrows those in doubt until the next
 * call. */
void nod_ranks_set_weights(nod_host *host, const eng_reload_doubt *weights);
/* The reload that held a formation back has ended. */
void nod_ranks_continue(nod_host *host);
/* "0, 2" */
void nod_ranks_list(uint64_t mask, char *out_text, size_t size);
/* The model is there: waits for the others, connects and joins it. */
SL_MUST_USE sl_status nod_ranks_meet(nod_host *host, sl_err *err);
/* The engine is there, its thread does not run yet. */
void nod_ranks_watch(nod_host *host);
/* It runs: waits until it is part of a formation. */
SL_MUST_USE sl_status nod_ranks_aboard(nod_host *host, sl_err *err);
/* on_left(host) once all ranks leave. */
void nod_ranks_leave(nod_host *host, void (*on_left)(void *context));
void nod_ranks_stay(nod_host *host);
/* Before etcd's client and the engine thread go. */
void nod_ranks_stop(nod_host *host);
/* After the engine. */
void nod_ranks_destroy(nod_host *host);

/* service.c: the Node service's handlers. */
#define NOD_HANDLERS 10
void nod_service_handlers(nod_host *host, rpc_handler out_handlers[NOD_HANDLERS]);

/* gauges.c */
void nod_gauges_create(nod_host *host);
void nod_gauges_update(nod_host *host);
/* Another group is in use. */
void nod_gauges_group(nod_host *host, com_group *group);
void nod_gauges_destroy(nod_host *host);

#endif
