/* One prefill on a prefill rank: pure control logic, (state, event, now) -> (state, actions).
 *
 * Knows no sockets, no engine, no transfer: the service (prefill/service.c) carries the actions
 * out, the simulator can as well. */
#ifndef PREFILL_JOB_H
#define PREFILL_JOB_H

#include "base/clock.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pre_state {
    PRE_STATE_QUEUED,    /* waits for its turn and for pages */
    PRE_STATE_OPENING,   /* the engine binds pages */
    PRE_STATE_COMPUTING, /* chunks run; finished pieces are announced */
    PRE_STATE_DRAINING,  /* all computed; the decode node still fetches or verifies */
    PRE_STATE_CLOSING, /* ends: waits for the transfer, then for the engine, to let go of the pages
                        */
    PRE_STATE_DONE,    /* nothing is held */
    PRE_STATE_COUNT
} pre_state;

typedef enum pre_event_kind {
    PRE_EVENT_START, /* its turn */
    PRE_EVENT_OPENED,
    PRE_EVENT_OPEN_FULL,      /* no pages now: back to the head of the queue */
    PRE_EVENT_OPEN_FAILED,    /* can never be served here; code */
    PRE_EVENT_COMPUTED,       /* the last chunk is done */
    PRE_EVENT_COMPUTE_FAILED, /* code */
    PRE_EVENT_ACKNOWLEDGED,   /* the decode node has verified everything; the transfer is closed */
    PRE_EVENT_SEND_FAILED,    /* code; the transfer is closed */
    PRE_EVENT_ENGINE_CLOSED,  /* answer to CLOSE_ENGINE */
    PRE_EVENT_CANCEL,         /* the router gave up, or its stream broke */
    PRE_EVENT_REST,           /* the node does, by an operator's wish: that time does not count */
    PRE_EVENT_GO,             /* it works again */
    PRE_EVENT_TICK,
    PRE_EVENT_COUNT
} pre_event_kind;

typedef struct pre_event {
    pre_event_kind kind;
    sl_code code;
} pre_event;

/* What the caller must do, in this order. */
typedef enum pre_action {
    PRE_ACTION_OPEN_ENGINE = 1u << 0, /* answers OPENED, OPEN_FULL or OPEN_FAILED */
    PRE_ACTION_COMPUTE = 1u << 1,
    PRE_ACTION_CANCEL_SEND = 1u << 2, /* answers SEND_FAILED */
    PRE_ACTION_CLOSE_ENGINE = 1u << 3,
    PRE_ACTION_REPLY_DONE = 1u << 4,   /* ends the router's stream with success */
    PRE_ACTION_REPLY_FAILED = 1u << 5, /* ends it with `code` */
} pre_action;

typedef struct pre_job_state {
    pre_state state;
    bool send_open;
    bool engine_open; /* the engine holds pages or was asked for them */
    bool engine_closing;
    bool replied; /* the router has its answer, or has gone */
    sl_time_ns deadline;
    sl_time_ns rests_since; /* SL_NEVER: it works */
} pre_job_state;

typedef struct pre_outcome {
    uint32_t actions;
    sl_code code;
} pre_outcome;

/* A new job, QUEUED, whose transfer is open. deadline: of the whole prefill, from the ticket. */
void pre_job_init(pre_job_state *job, sl_time_ns deadline);
pre_outcome pre_job_handle(pre_job_state *job, const pre_event *event, sl_time_ns now);
/* When to send TICK; SL_NEVER = not. */
sl_time_ns pre_job_due(const pre_job_state *job);
const char *pre_state_name(pre_state state);

#ifdef __cplusplus
}
#endif
#endif
