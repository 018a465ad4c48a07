/* A pause of a node's work: pure control logic, (state, event, now) -> (state, actions).
 *
 *   OFF ---> WAITING ---> STOPPING ---> ON ---> OFF
 *    |   (what runs ends)  ^    (the step under way ends)
 *    +---------------------+
 *
 * Any state goes back to OFF by END, by LEAVE (the node drains) and when its time is over: nothing
 * waits for ever. Who asked to wait does not get a pause that keeps what runs: FAIL when somebody
 * does not wait. The adapter is node/pausing.c. */
#ifndef NODE_PAUSE_H
#define NODE_PAUSE_H

#include "base/clock.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nod_pause_state {
    NOD_PAUSE_STATE_OFF,
    NOD_PAUSE_STATE_WAITING,  /* nothing new is taken; what runs ends first */
    NOD_PAUSE_STATE_STOPPING, /* the engine was told to rest, a step may be under way */
    NOD_PAUSE_STATE_ON,       /* it rests */
    NOD_PAUSE_STATE_COUNT
} nod_pause_state;

typedef enum nod_pause_event_kind {
    NOD_PAUSE_EVENT_BEGIN, /* wait, wait_ns, hold_ns */
    NOD_PAUSE_EVENT_IDLE,  /* nothing runs */
    NOD_PAUSE_EVENT_RESTS, /* the engine does */
    NOD_PAUSE_EVENT_END,   /* an operator's wish */
    NOD_PAUSE_EVENT_LEAVE, /* the node drains: what it has must go on or move */
    NOD_PAUSE_EVENT_TICK,
    NOD_PAUSE_EVENT_COUNT
} nod_pause_event_kind;

typedef struct nod_pause_event {
    nod_pause_event_kind kind;
    bool wait;
    uint64_t wait_ns; /* until the engine rests, at most */
    uint64_t hold_ns; /* how long it rests, at most */
} nod_pause_event;

/* What the caller must do, in this order. */
typedef enum nod_pause_action {
    NOD_PAUSE_ACTION_REST = 1u << 0,    /* the engine is told to: answers RESTS */
    NOD_PAUSE_ACTION_GO = 1u << 1,      /* the engine goes on */
    NOD_PAUSE_ACTION_TELL = 1u << 2,    /* what services take and routers know is to be renewed */
    NOD_PAUSE_ACTION_REPLY = 1u << 3,   /* who asked for the pause has it */
    NOD_PAUSE_ACTION_FAIL = 1u << 4,    /* or not: `code`; not who asks in this very event */
    NOD_PAUSE_ACTION_EXPIRED = 1u << 5, /* nobody ended it in time */
} nod_pause_action;

typedef struct nod_pause {
    nod_pause_state state;
    uint64_t hold_ns;
    sl_time_ns asked_at, rested_at;
    sl_time_ns deadline; /* of the state; SL_NEVER while OFF */
} nod_pause;

typedef struct nod_pause_outcome {
    uint32_t actions; /* of nod_pause_action */
    sl_code code; /* for FAIL: SL_CONFLICT taken back, SL_EXISTS not waited, SL_UNAVAILABLE leaving,
                     SL_DEADLINE */
} nod_pause_outcome;

void nod_pause_init(nod_pause *pause);
nod_pause_outcome nod_pause_handle(nod_pause *pause, const nod_pause_event *event, sl_time_ns now);
/* Nothing new is taken until then at most; 0: no pause is under way. */
sl_time_ns nod_pause_until(const nod_pause *pause);

#ifdef __cplusplus
}
#endif
#endif
