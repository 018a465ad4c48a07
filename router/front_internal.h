/* What front.c (the loop), live.c (a request's life), live_answer.c (its answer) and routes.c (HTTP
 * paths) share. Not for other files. */
#ifndef ROUTER_FRONT_INTERNAL_H
#define ROUTER_FRONT_INTERNAL_H

#include "base/trace.h"
#include "router/answer.h"
#include "router/budget.h"
#include "router/front.h"
#include "router/pull.h"
#include "router/queue.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RTR_LIVE_BUCKETS 4096u /* a power of two */

typedef enum rtr_live_gauge { RTR_GAUGE_NONE, RTR_GAUGE_WAITING, RTR_GAUGE_RUNNING } rtr_live_gauge;

typedef struct rtr_live rtr_live;

/* One sequence of a request: its only choice, or one of several. The first is the request's lead:
 * it holds the client's side for all; the others (followers) begin when the lead has a decode node,
 * and copy the prompt from it there. */
struct rtr_live {
    rtr_pool_job job; /* first: the pool hands it back */
    rtr_front *front;
    rtr_live *lead;                      /* itself for the first */
    rtr_live *followers, *follower_next; /* of the lead */
    uint32_t index;                      /* of the choice */
    bool followers_begun;                /* lead: they are there, or have ended already */
    bool forks;                          /* follower: the next Admit copies the lead's prompt */
    bool answered;                       /* its part of the answer is complete */
    rtr_live *prev, *next;               /* all */
    rtr_waiter waiter;                   /* in the queue, or its place there */
    rtr_live *hash_next;
    rtr_live_gauge gauge;
    char id[RTR_ID_SIZE];
    rtr_http_exchange *exchange; /* lead; NULL: answered, or the client is gone */
    uint64_t created;            /* seconds since 1970 */
    sl_time_ns arrived_at, first_token_at, last_token_at;

    /* preparing */
    rtr_api_kind kind;
    bool preparing; /* with the pool */
    bool prepared_ok;
    char *body;
    size_t body_size;
    uint32_t context_max;
    rtr_api_error error;

    /* generating */
    rtr_api_request *request; /* the lead's */
    rtr_request_limits limits;
    rtr_request core;
    bool started;            /* core is in use */
    bool admitted;           /* for the first time: the queue time is told */
    bool paid;               /* recovery: what it computes again was taken off the budget */
    bool migrated;           /* the prefill under way is of tokens that were computed before */
    uint32_t prefill_tokens; /* of it */
    /* of the admission: what its blocks are named after, and who has them in the end (incarnations;
     * 0: unknown, or noted already) */
    uint64_t prefix_root, prefill_by, decode_by;
    rtr_answer *answer; /* lead */
    bool answer_begun;  /* lead */
    /* lead of a stream: its head is out; when something was written last; wakes when that is too
     * long ago (NULL: no comments) */
    bool head_sent;
    sl_time_ns written_at, keep_alive_ns;
    sl_timer *silence;
    bool finished; /* all tokens are here, with the cause in finish */
    mdl_finish finish;
    uint32_t *tokens;
    rtr_token_logprobs *logprobs;
    uint32_t token_count, token_capacity, delivered;
    uint32_t cached_tokens;
    rtr_prefill_call *prefill_call;
    rtr_pull *pull; /* the prefill node fetches first, and then has: */
    struct rtr_pulled {
        uint64_t node;
        uint32_t epoch, tokens;
        uint64_t source, taker; /* incarnations */
        uint8_t *ticket;        /* packed */
        size_t ticket_bytes;
    } pulled;
    sl_timer *timer;
    sl_code admit_error; /* an Admit that could not be sent: told as a refusal by the timer */
    char decode_name[CLU_NAME_MAX];
    char prefill_name[CLU_NAME_MAX];
    char fingerprint[CLU_TEXT_MAX];
    uint32_t depth; /* of rtr_live_step */

    /* borrowed while one event is handled */
    const Sluice__V1__TokenRun *run;
    Sluice__V1__Ticket *ticket;
};

struct rtr_front {
    rtr_front_options options;
    const rtr_shared *shared;
    rtr_tuning tuning;
    sl_loop *loop;
    rtr_http_server *http;
    rtr_nodes *nodes;
    rtr_live *lives;
    rtr_queue queue;
    rtr_pulls pulls;
    rtr_prefixes *prefixes;
    sl_trace *trace, *choices; /* what happened to requests; why nodes were chosen */
    uint32_t live_count, preparing_count;
    rtr_live *buckets[RTR_LIVE_BUCKETS];
    uint64_t next_id;
    bool changed; /* nodes or loads: the queue may move */
    rtr_budget recovery;
    sl_timer *recovery_timer; /* the budget allows more: the queue may move */
    bool leaving, stopping, aborted, stopped;
    sl_timer *stop_timer;
    void (*on_stopped)(void *context);
    void *stop_context;
};

/* live.c */
/* Takes the exchange: answers it now or later. */
void rtr_live_start(rtr_front *front, rtr_http_exchange *exchange, rtr_api_kind kind);
static inline rtr_live *rtr_live_of_waiter(rtr_waiter *waiter)
{
    return (rtr_live *)(void *)((char *)waiter - offsetof(rtr_live, waiter));
}
/* Cache pages that it will need. */
uint32_t rtr_live_pages(const rtr_live *live);
void rtr_live_step(rtr_live *live, const rtr_event *event);
/* Frees it if nothing is left to do. Call last. */
void rtr_live_settle(rtr_live *live);
/* The answer ended for all choices: those that still run learn of it from their timers, because
 * whoever walks over the live requests must not lose the next one. */
void rtr_live_wake_all(rtr_live *lead);
void rtr_live_destroy(rtr_live *live);
rtr_live *rtr_live_find(rtr_front *front, const char *id);

/* Prompt, then what was generated so far. Caller frees. */
uint32_t *rtr_live_tokens(const rtr_live *live, size_t *out_count);
/* Something of the prompt is to be told yet. */
bool rtr_live_wants_rows(const rtr_live *live);
void rtr_live_run_prefill(rtr_live *live, uint64_t node, uint32_t epoch,
                          Sluice__V1__Ticket *ticket);

/* live_pull.c */
/* Has the prefill node fetch what others have of the prompt, if that is worth it; the prefill
 * follows then, whatever comes of it. False: nothing is fetched. */
bool rtr_live_pull(rtr_live *live, const rtr_action *action);
void rtr_live_pull_drop(rtr_live *live);
/* The decode node is asked to admit it. */
void rtr_live_note_admit(rtr_live *live, uint64_t decode);
/* The prefill under way has come to its end: its node is remembered to have the pages. Once. */
void rtr_live_note_prefill(rtr_live *live);
/* The answer has: the decode node is. */
void rtr_live_note_answer(rtr_live *live);

/* live_answer.c */
/* Appends tokens [skip, skip + count) of the run. */
void rtr_live_take_tokens(rtr_live *live, uint32_t skip, uint32_t count);
/* What a node tells of the prompt. */
void rtr_live_take_rows(rtr_live *live, const Sluice__V1__PromptRows *rows);
/* Gives the client what is there, as far as it reads. */
void rtr_live_deliver(rtr_live *live);
/* An error instead of the (rest of the) answer. */
void rtr_live_fail(rtr_live *live, const rtr_api_error *error);
void rtr_live_answer_tokens(rtr_live *live); /* TOKENIZE, DETOKENIZE */
void rtr_live_claim(rtr_live *live);
/* Comments from now on whenever the lead's stream is silent. */
void rtr_live_keep_alive(rtr_live *lead);

/* live_trace.c: before the step takes place. */
void rtr_live_note_event(rtr_live *live, const rtr_event *event);
/* When it is carried out. */
void rtr_live_note_action(rtr_live *live, const rtr_action *action);
void rtr_live_note_choice(rtr_live *live, const rtr_place_result *place);

/* routes.c */
void rtr_route(void *context, rtr_http_exchange *exchange);
void rtr_count_response(const rtr_front *front, int status);

#ifdef __cplusplus
}
#endif
#endif
