/* The life of one request as a pure state machine: (state, event, now) -> (state, actions).
 *
 * It decides; it owns no text, no sockets, no calls, and reads no clock. Nodes are numbers: a
 * decode number names one stream to a rank (a new stream is a new number), a prefill number one
 * node process. A broken stream is waited for, for a moment: if the process answers under a new
 * number the request goes on there as if nothing had been. Tokens are counted here by their index,
 * which is what makes a stream exact over retries: what was seen is dropped, what is missing is an
 * error.
 *
 *   QUEUED ----> ADMITTING ----> PREFILLING ----> DECODING ----> DONE
 *     ^  a place    | D granted     | P done or      |
 *     |  was found  | a ticket      | first token    |
 *     +-------------+---------------+----------------+       (any) ----> FAILED
 *       refused: another D; prefill lost: same D, other P, new epoch; decode lost: both again,
 *       prompt and tokens so far, same seed
 *
 * Thread: owner. */
#ifndef ROUTER_REQUEST_H
#define ROUTER_REQUEST_H

#include "base/clock.h"
#include "base/status.h"
#include "router/limits.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum rtr_state {
    RTR_STATE_QUEUED,     /* needs a place (a decode node may still be held) */
    RTR_STATE_ADMITTING,  /* the decode node was asked for a slot */
    RTR_STATE_PREFILLING, /* it granted one; the prompt is being computed */
    RTR_STATE_DECODING,
    RTR_STATE_DONE,
    RTR_STATE_FAILED,
    RTR_STATE_COUNT,
} rtr_state;

typedef enum rtr_finish {
    RTR_FINISH_NONE,
    RTR_FINISH_STOP,
    RTR_FINISH_LENGTH,
    RTR_FINISH_FAILED,
    RTR_FINISH_CANCELLED,
} rtr_finish;

typedef enum rtr_lack { /* why there is no place */
                        RTR_LACK_NONE,
                        RTR_LACK_DECODE,  /* no usable decode node */
                        RTR_LACK_PREFILL, /* no usable prefill node that matches */
                        RTR_LACK_PAUSED,  /* usable ones are, but for a pause */
                        RTR_LACK_ROOM,    /* usable ones are full */
                        RTR_LACK_BUDGET,  /* it is to be computed again: the others first */
                        RTR_LACK_SIZE,    /* larger than the cache of any decode node */
} rtr_lack;

typedef struct rtr_request_limits {
    sl_time_ns place_timeout_ns;    /* no usable node */
    sl_time_ns queue_timeout_ns;    /* usable nodes are full */
    sl_time_ns admit_timeout_ns;    /* answer to Admit */
    sl_time_ns progress_timeout_ns; /* between two events of a prefill node */
    sl_time_ns self_timeout_ns;     /* a prompt that the decode node computes itself */
    sl_time_ns token_timeout_ns;    /* between two token runs */
    sl_time_ns refusal_pause_ns;    /* before a node that refused is asked again */
    sl_time_ns attach_timeout_ns;   /* for a decode node's broken stream to come back; 0: not */
    uint32_t attempts_max;          /* admissions that came to nothing, the last one included */
    uint32_t max_tokens;            /* of this request */
    bool prompt_rows;               /* its answer also tells rows of the prompt: ROWS_DONE */
} rtr_request_limits;

typedef enum rtr_event_kind {
    RTR_EVENT_SUBMIT,           /* encoded and wanted: look for a place */
    RTR_EVENT_PLACED,           /* answer to ACTION_PLACE: decode, prefill (0 = by D itself) */
    RTR_EVENT_UNPLACED,         /* answer to ACTION_PLACE: lack, until (PAUSED) */
    RTR_EVENT_NODES_CHANGED,    /* something became free, usable or known */
    RTR_EVENT_ADMITTED,         /* decode, epoch */
    RTR_EVENT_REFUSED,          /* decode, epoch, code, text */
    RTR_EVENT_DECODE_BROKEN,    /* decode: its stream broke; BACK or LOST will follow */
    RTR_EVENT_DECODE_BACK,      /* decode, again: the same process under a new number */
    RTR_EVENT_DECODE_LOST,      /* decode: it is gone */
    RTR_EVENT_DECODE_DRAINS,    /* decode; source: its process. Another one has room */
    RTR_EVENT_PREFILL_PROGRESS, /* epoch: any sign of life */
    RTR_EVENT_PREFILL_DONE,     /* epoch */
    RTR_EVENT_PREFILL_FAILED,   /* epoch, code, text: the call is over */
    RTR_EVENT_ROWS_DONE,        /* all that is told of the prompt is here */
    RTR_EVENT_PREFILL_LOST,     /* prefill: the node is dead or unusable */
    RTR_EVENT_PREFILL_RESTS,    /* prefill; until: at the latest, by an operator's wish. 0: not any
                                   more */
    RTR_EVENT_TOKENS,  /* decode, epoch, first_index, count, finish; code, text if failed */
    RTR_EVENT_STOPPED, /* the answer is complete for the client (stop string) */
    RTR_EVENT_CLIENT_GONE,
    RTR_EVENT_ABORT, /* code, text: the router gives it up (shutdown) */
    RTR_EVENT_TIMER, /* the deadline passed; until: so long its nodes rested by an operator's wish
                      */
    RTR_EVENT_COUNT,
} rtr_event_kind;

typedef struct rtr_event {
    rtr_event_kind kind;
    uint64_t decode;
    uint64_t again;
    uint64_t prefill;
    uint64_t source;
    uint32_t epoch;
    uint32_t first_index;
    uint32_t count;
    rtr_finish finish;
    rtr_lack lack;
    sl_time_ns until; /* 0 = never */
    sl_code code;
    const char *text; /* borrowed for the step */
} rtr_event;

typedef enum rtr_action_kind {
    RTR_ACTION_PLACE,          /* answer at once with PLACED or UNPLACED */
    RTR_ACTION_ADMIT,          /* node, epoch; send prompt and tokens so far */
    RTR_ACTION_RUN_PREFILL,    /* node, epoch; with the ticket just granted */
    RTR_ACTION_ATTACH,         /* node, epoch; it still has the request: from the next token on */
    RTR_ACTION_EXTEND,         /* node, epoch, span_ns: so long it waits for its prefill node */
    RTR_ACTION_CANCEL_DECODE,  /* node; moved: its pages will be asked for */
    RTR_ACTION_CANCEL_PREFILL, /* node: end the call, no more events of it */
    RTR_ACTION_DELIVER,        /* tokens [skip, skip + count) of the event are new */
    RTR_ACTION_MIGRATED,       /* text: the reason, for the metric */
    RTR_ACTION_FINISH,         /* finish: STOP or LENGTH */
    RTR_ACTION_FAIL,           /* code, text */
} rtr_action_kind;

typedef struct rtr_action {
    rtr_action_kind kind;
    uint64_t node;
    uint32_t epoch;
    bool moved;
    uint32_t skip;
    uint32_t count;
    sl_time_ns span_ns;
    rtr_finish finish;
    sl_code code;
    const char *text; /* a literal, or fail_text of the request */
} rtr_action;

typedef struct rtr_blame { /* nodes that did not do what they had taken on; 0 = none */
    uint64_t decode;
    uint64_t prefill;
    bool grave; /* nothing moved for the whole of a deadline */
} rtr_blame;

typedef struct rtr_actions {
    rtr_action at[RTR_ACTIONS_MAX];
    uint32_t count;
    rtr_blame blame;
} rtr_actions;

typedef struct rtr_request {
    const rtr_request_limits *limits; /* borrowed */
    rtr_state state;
    uint64_t decode;  /* 0 = none */
    uint64_t prefill; /* 0 = none or by D itself */
    uint64_t
        warm_prefill; /* has computed this prompt, or some of it, and may still have its pages */
    uint64_t source;  /* the decode node that it moves away from: hands its pages over in the place
                         of a prefill node; 0 = none, or they are there */
    uint32_t epoch;   /* of the last admission asked for */
    uint32_t granted_epoch; /* first epoch granted by `decode`; 0 = none yet */
    uint32_t last_granted;  /* last epoch granted by `decode`; 0 = none yet */
    uint32_t prefills_lost; /* for `decode` */
    uint32_t attempts;      /* granted admissions lost */
    uint32_t admit_losses;  /* admissions lost before an answer */
    uint32_t replaced;      /* times that the decode node took other weights under it */
    uint32_t token_count;   /* tokens taken so far: the next index */
    bool prefill_running;
    bool rows_done;
    rtr_finish ended; /* all tokens are here, the prompt's rows are not; else NONE */
    rtr_lack lack;
    const char *migration; /* reason of the loss not yet made good, for the metric */
    sl_time_ns queued_at;
    sl_time_ns lack_since;
    sl_time_ns paused_since;   /* lack is PAUSED: time that is nobody's fault */
    sl_time_ns paused_until;   /* the last pause ends by then */
    sl_time_ns extended_until; /* what `decode` was told of it; 0 = nothing */
    sl_time_ns retry_at;       /* refusals are forgotten then */
    sl_time_ns deadline;       /* of the state, SL_NEVER = none */
    sl_time_ns attach_by;      /* the stream of `decode` is broken: until then it may come back */
    sl_code refusal_code;
    uint64_t refused_decode[RTR_REFUSED_MAX];
    uint32_t refused_decode_count;
    uint64_t refused_prefill[RTR_REFUSED_MAX];
    uint32_t refused_prefill_count;
    char refusal_text[256];
    char fail_text[512];
} rtr_request;

/* limits: borrowed for the request's life. State QUEUED; send SUBMIT. */
void rtr_request_init(rtr_request *request, const rtr_request_limits *limits);
/* One step. What follows from the actions comes back as events; PLACE must be answered before any
 * other event. Events for an older epoch, another node or a finished request do nothing. */
void rtr_request_step(rtr_request *request, const rtr_event *event, sl_time_ns now,
                      rtr_actions *out_actions);
/* When to send TIMER; SL_NEVER = not. */
sl_time_ns rtr_request_deadline(const rtr_request *request);
/* DONE or FAILED. */
bool rtr_request_over(const rtr_request *request);
const char *rtr_state_name(rtr_state state);
const char *rtr_lack_name(rtr_lack lack);
bool rtr_state_legal(rtr_state from, rtr_state to);

#ifdef __cplusplus
}
#endif
#endif
