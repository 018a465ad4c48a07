/* What nodes.c (members, placement), node_decode.c (Serve streams) and node_prefill.c (health,
 * calls) share. Not for other files. */
#ifndef ROUTER_NODES_INTERNAL_H
#define ROUTER_NODES_INTERNAL_H

#include "router/breaker.h"
#include "router/nodes.h"
#include "rpc/rpc.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_node rtr_node;

/* An Admit without its answer yet: its pages count as taken. */
typedef struct rtr_ask {
    struct rtr_ask *next;
    char request_id[RTR_ID_SIZE];
    uint32_t epoch;
    uint32_t pages;
} rtr_ask;

struct rtr_prefill_call {
    rtr_node *node;
    rtr_prefill_call *prev, *next;
    rpc_call *call;
    rtr_prefill_events events;
    void *context;
    uint32_t tokens;
    bool heard; /* the node's own load counts it from its first event on */
    bool ended; /* done or failed was told */
};

struct rtr_node {
    rtr_nodes *nodes;
    rtr_node *next;
    uint64_t id; /* of the process */
    clu_member_info info;
    bool suspect;
    bool gone; /* it left: only what stands goes on, and until: */
    sl_time_ns gone_until;
    bool is_decode, is_prefill;
    rpc_channel *channel;
    Sluice__V1__Load load;
    sl_time_ns load_at;
    sl_time_ns paused_until; /* takes nothing new; what a process that hangs said is over then */
    bool rests;              /* and what it has does not go on */
    sl_time_ns rested_at;    /* last known to; 0 = never */
    sl_time_ns rests_until;  /* as its requests were told; 0 = they were not */

    /* decode */
    rpc_call *serve;
    uint64_t stream_id; /* of the stream that said hello; 0 = none */
    uint64_t broken_id; /* of the one that broke, while it may come back; 0 = none */
    uint32_t broken_tries;
    clu_stamp stamp; /* as hello told */
    bool incompatible;
    uint32_t context_max;
    uint32_t window;
    uint64_t messages_taken;
    uint64_t messages_credited;
    rtr_ask *asks;
    uint32_t ask_count;
    uint32_t ask_pages;
    sl_timer *serve_retry;
    sl_time_ns serve_backoff;
    rtr_breaker decode_breaker;

    /* prefill */
    rpc_call *health;
    bool serving;
    rtr_prefill_call *calls;
    sl_timer *health_retry;
    sl_time_ns health_backoff;
    rtr_breaker prefill_breaker;
};

struct rtr_nodes {
    rtr_nodes_options options;
    rtr_nodes_events events;
    void *context;
    rtr_node *first;
    size_t count;
    bool frozen; /* the view */
    uint32_t weights_min;
    sl_timer *gone_timer;
    uint64_t next_number;
    rtr_candidate decodes[RTR_NODES_MAX];
    rtr_candidate prefills[RTR_NODES_MAX];
};

#define RTR_BACKOFF_FIRST_NS (100 * SL_MS_NS)
#define RTR_BACKOFF_MAX_NS   SL_S_NS
#define RTR_LOAD_STALE_NS    (2 * SL_S_NS)
/* A process that died refuses the first attempt; but that one may also have met what is left of the
 * old connection, so that two must fail. */
#define RTR_BROKEN_TRIES    2u
#define RTR_BROKEN_PAUSE_NS (10 * SL_MS_NS)

#define RTR_GONE_NS (10 * SL_S_NS)

sl_time_ns rtr_nodes_now(const rtr_nodes *nodes);
/* Doubles the back-off and gives when to try again. */
sl_time_ns rtr_nodes_backoff(rtr_nodes *nodes, sl_time_ns *backoff);
/* Its work comes to something. */
void rtr_node_note_progress(rtr_node *node, rtr_breaker *breaker);
void rtr_node_take_load(rtr_node *node, const Sluice__V1__Load *load);
bool rtr_node_is_paused(const rtr_node *node);
/* A node that is gone: its stream or a call of it has ended, from within which it must stay. */
void rtr_node_end_soon(rtr_node *node);

/* node_decode.c */
void rtr_node_serve_start(rtr_node *node);
void rtr_node_serve_stop(rtr_node *node); /* no lost event */
/* The stream that requests may still wait for is lost. */
void rtr_node_give_up(rtr_node *node);
/* node_prefill.c */
void rtr_node_health_start(rtr_node *node);
void rtr_node_health_stop(rtr_node *node);
void rtr_node_calls_fail(rtr_node *node, sl_code code, const char *text);
void rtr_node_calls_drop(rtr_node *node); /* without events */

#ifdef __cplusplus
}
#endif
#endif
