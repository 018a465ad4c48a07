/* The nodes as one router loop reaches them: channels, one Decode.Serve stream to each decode rank,
 * a Health.Watch on each prefill rank, reconnection, loads.
 *
 * Members come from the cluster's view (rtr_nodes_set); whether a member is usable is decided here,
 * by its streams, because they notice a death in milliseconds where a lease takes seconds. Numbers
 * name streams and processes, never reused, so that an answer of a dead stream cannot be taken for
 * one of the living.
 *
 * Thread: the loop's. */
#ifndef ROUTER_NODES_H
#define ROUTER_NODES_H

#include "cluster/member.h"
#include "proto/sluice/v1/decode.pb-c.h"
#include "proto/sluice/v1/prefill.pb-c.h"
#include "router/placement.h"
#include "router/prefix.h"
#include "rpc/client.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_nodes rtr_nodes;
typedef struct rtr_prefill_call rtr_prefill_call; /* one running Prefill.Run */

typedef struct rtr_nodes_events {
    /* Something became usable, free or known: queued requests may look again. */
    void (*on_changed)(void *context);
    /* The stream broke: then either it comes back under another number, with whatever the rank
     * keeps for us, or it is lost. */
    void (*on_decode_broken)(void *context, uint64_t decode);
    void (*on_decode_back)(void *context, uint64_t decode, uint64_t again);
    void (*on_decode_lost)(void *context, uint64_t decode);
    void (*on_prefill_lost)(void *context, uint64_t prefill);
    /* By an operator's wish, until then at the latest; 0: it works again. */
    void (*on_prefill_rests)(void *context, uint64_t prefill, sl_time_ns until);
    /* Borrowed messages of a rank. */
    void (*on_admitted)(void *context, uint64_t decode, const Sluice__V1__Admitted *admitted);
    void (*on_refused)(void *context, uint64_t decode, const Sluice__V1__Refused *refused);
    void (*on_run)(void *context, uint64_t decode, const Sluice__V1__TokenRun *run);
    /* The data path of a member broke: the view may forget it if its lease is gone too. */
    void (*on_broken)(void *context, const char *name, uint64_t incarnation);
} rtr_nodes_events;

typedef struct rtr_nodes_options {
    rpc_runtime *runtime;
    const char *router_name;
    uint64_t incarnation;
    uint32_t loop_index;
    const rpc_tls *tls;         /* NULL: plain text */
    const char *model_identity; /* what their model hash begins with; NULL: not checked */
} rtr_nodes_options;

rtr_nodes *rtr_nodes_create(const rtr_nodes_options *options, const rtr_nodes_events *events,
                            void *context);
/* Before the runtime. Running prefill calls must have been dropped. NULL is fine. */
void rtr_nodes_destroy(rtr_nodes *nodes);

/* A member appeared or changed. Members that are neither prefill nor decode are ignored, as are
 * more than RTR_NODES_MAX. */
void rtr_nodes_set(rtr_nodes *nodes, const clu_member_info *info, bool suspect);
/* So many members lost their leases at once that this says more of etcd than of them: they are as
 * good as the others until their streams break. */
void rtr_nodes_set_frozen(rtr_nodes *nodes, bool frozen);
/* Nodes with older weights get no requests from now on; what runs there goes on. */
void rtr_nodes_set_weights_min(rtr_nodes *nodes, uint32_t version);
/* It left. What it has written may not have been read yet: the stream and the calls that stand end
 * by themselves, in RTR_GONE_NS at the latest. */
void rtr_nodes_remove(rtr_nodes *nodes, const char *name, uint64_t incarnation);

/* Fills query's tables and places. pages: of prompt and answer; tokens: of the prompt. Members
 * whose lease is gone (unless the view is frozen), and those that failed of late
 * (router/breaker.h), are taken only if no other will do: when etcd lost all leases, they are still
 * what serves. */
void rtr_nodes_place(rtr_nodes *nodes, const rtr_request *request, uint32_t pages, uint32_t tokens,
                     bool self_prefill, rtr_place_result *out_result);
/* One that was looked at for a place. Borrowed. */
typedef struct rtr_node_candidate {
    const char *name, *verdict;
    bool is_decode;
    uint32_t running; /* decode */
    uint32_t pages, pages_free;
    uint64_t queued_tokens; /* prefill */
} rtr_node_candidate;
/* Says of some candidates for the place that was just found, or not, what became of them: at most
 * RTR_EXPLAINED_MAX of each role, the one that was taken among them. */
void rtr_nodes_explain(rtr_nodes *nodes, const rtr_request *request, uint32_t pages,
                       uint32_t tokens, const rtr_place_result *result,
                       void (*fn)(void *context, const rtr_node_candidate *candidate),
                       void *context);
/* Some decode rank drains. */
bool rtr_nodes_any_drains(const rtr_nodes *nodes);
bool rtr_nodes_drains(const rtr_nodes *nodes, uint64_t decode);
/* Another decode rank than the request's own, which drains, has room now and may have its pages:
 * the number of the process that drains. 0 = none. */
uint64_t rtr_nodes_move_source(rtr_nodes *nodes, const rtr_request *request, uint32_t pages,
                               uint32_t tokens);
/* What a request's machine says of nodes. */
void rtr_nodes_note_blame(rtr_nodes *nodes, const rtr_blame *blame);
/* At least one decode rank that can be used, and one prefill rank for it (or self_prefill). */
bool rtr_nodes_ready(rtr_nodes *nodes, bool self_prefill);
/* Until when what these two have did not go on, by an operator's wish: now, if one of them rests.
 * 0: they never did. */
sl_time_ns rtr_nodes_rested_until(const rtr_nodes *nodes, uint64_t decode, uint64_t prefill);
/* The largest window of the known decode ranks; 0 = none known. */
uint32_t rtr_nodes_context_max(const rtr_nodes *nodes);
/* Tokens that the largest cache of a known decode rank holds; 0 = none known. */
uint64_t rtr_nodes_cache_tokens(const rtr_nodes *nodes);
/* "" when unknown. Valid until the node goes. */
const char *rtr_nodes_decode_name(const rtr_nodes *nodes, uint64_t decode);
const char *rtr_nodes_prefill_name(const rtr_nodes *nodes, uint64_t prefill);
/* The process that a stream goes to, and back; 0 = none. */
uint64_t rtr_nodes_process(const rtr_nodes *nodes, uint64_t stream);
uint64_t rtr_nodes_stream(const rtr_nodes *nodes, uint64_t process);
const clu_stamp *rtr_nodes_decode_stamp(const rtr_nodes *nodes, uint64_t decode);
/* The incarnation of a process; 0 = unknown. */
uint64_t rtr_nodes_incarnation(const rtr_nodes *nodes, uint64_t process);
/* Of those that had some of a prompt's blocks, the process to fetch from: it can be reached, is not
 * in doubt, and its pages mean what those of `decode` do; most blocks first, then least to compute.
 * It may drain or be cordoned. NULL: none. Not `decode`, whose ticket says what it has, nor
 * `taker`; *out_taken: blocks that that one had. */
const rtr_prefix_match *rtr_nodes_pull_source(const rtr_nodes *nodes,
                                              const rtr_prefix_match *matches, uint32_t count,
                                              uint64_t decode, uint64_t taker,
                                              uint64_t *out_process, uint32_t *out_taken);

/* SL_UNAVAILABLE: the stream is gone; SL_FULL: it does not drain. */
SL_MUST_USE sl_status rtr_nodes_admit(rtr_nodes *nodes, uint64_t decode, Sluice__V1__Admit *admit,
                                      uint32_t pages);
/* A stream that cannot take it is broken off. */
void rtr_nodes_attach(rtr_nodes *nodes, uint64_t decode, Sluice__V1__Attach *attach);
void rtr_nodes_extend(rtr_nodes *nodes, uint64_t decode, Sluice__V1__Extend *extend);
/* Always heard: a stream that cannot take it is broken off, and the rank drops what nobody attaches
 * to again. moved: the request's pages will be asked for. */
void rtr_nodes_cancel(rtr_nodes *nodes, uint64_t decode, const char *request_id, const char *reason,
                      bool moved);

typedef struct rtr_prefill_events {
    void (*on_progress)(void *context);
    void (*on_rows)(void *context, const Sluice__V1__PromptRows *rows);
    void (*on_done)(void *context, const Sluice__V1__PrefillDone *done);
    /* Also when the call ended without a result. Exactly one of done and failed comes, last. */
    void (*on_failed)(void *context, sl_code code, const char *text);
} rtr_prefill_events;

SL_MUST_USE sl_status rtr_nodes_run_prefill(rtr_nodes *nodes, uint64_t prefill,
                                            const Sluice__V1__PrefillRequest *request,
                                            const rtr_prefill_events *events, void *context,
                                            rtr_prefill_call **out_call, sl_err *err);
/* Cancels; no event comes any more. NULL is fine. The handle is invalid after on_done/on_failed. */
void rtr_prefill_drop(rtr_prefill_call *call);

/* For ListMembers and metrics: visits all nodes. */
typedef struct rtr_node_status {
    const clu_member_info *info;
    bool suspect;
    bool usable;
    bool incompatible; /* another model than the router's */
    bool paused;
    const Sluice__V1__Load *load;
} rtr_node_status;
typedef void (*rtr_node_visit_fn)(void *context, const rtr_node_status *status);
void rtr_nodes_visit(rtr_nodes *nodes, rtr_node_visit_fn fn, void *context);

#ifdef __cplusplus
}
#endif
#endif
