/* One sequence on a decode rank: pure control logic, (state, event, now) -> (state, actions).
 *
 * Knows no sockets, no engine, no transfer: the service (decode/service.c) carries the actions out,
 * the simulator can as well. */
#ifndef DECODE_SEQUENCE_H
#define DECODE_SEQUENCE_H

#include "base/clock.h"
#include "base/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum dec_state {
    DEC_STATE_OPENING,  /* the engine binds pages */
    DEC_STATE_FETCHING, /* a transfer is open, the ticket is out */
    DEC_STATE_STALLED,  /* the transfer failed, or gives way to a newer epoch; pages and verified
                           blocks are kept */
    DEC_STATE_RUNNING,  /* the engine generates (or computes the prompt itself first) */
    DEC_STATE_CLOSING,  /* ends: waits for the transfer and the engine to let go of the pages */
    DEC_STATE_DONE,     /* nothing is held */
    DEC_STATE_COUNT
} dec_state;

typedef enum dec_event_kind {
    DEC_EVENT_ADMIT, /* again, for a known request: newer epoch */
    DEC_EVENT_OPENED,
    DEC_EVENT_OPEN_FAILED,
    DEC_EVENT_COMMITTED,       /* the last commit is verified: all blocks and h_final are here */
    DEC_EVENT_TRANSFER_FAILED, /* code says why; a TRANSFER_CLOSED follows */
    DEC_EVENT_TRANSFER_CLOSED, /* no byte will be written into the pages any more */
    DEC_EVENT_FINISHED,        /* the engine ended the sequence and freed its pages */
    DEC_EVENT_ENGINE_CLOSED,   /* answer to CLOSE_ENGINE */
    DEC_EVENT_CANCEL,
    DEC_EVENT_DETACH, /* the router's stream broke: wait for it to come back */
    DEC_EVENT_ATTACH, /* it came back for this sequence */
    DEC_EVENT_EXTEND, /* the prefill node was told to rest, or goes on: other time for it */
    DEC_EVENT_TICK,   /* time passed */
    DEC_EVENT_COUNT
} dec_event_kind;

typedef struct dec_event {
    dec_event_kind kind;
    uint32_t epoch;      /* ADMIT */
    bool self_prefill;   /* ADMIT */
    uint64_t prefill_ns; /* ADMIT: how long the transfer may take; EXTEND: from now on */
    sl_code code;        /* OPEN_FAILED, TRANSFER_FAILED */
    uint64_t park_ns;    /* DETACH: how long; 0: as CANCEL */
} dec_event;

/* What the caller must do, in this order. */
typedef enum dec_action {
    DEC_ACTION_REVOKE_TRANSFER = 1u << 0, /* kvt: answers TRANSFER_CLOSED */
    DEC_ACTION_OPEN_TRANSFER = 1u << 1,   /* kvt: from the verified watermark on */
    DEC_ACTION_SEND_ADMITTED = 1u << 2,
    DEC_ACTION_SEND_REFUSED = 1u << 3, /* code; the router may admit again with a newer epoch */
    DEC_ACTION_ADOPT = 1u << 4,        /* engine: generate from the fetched pages */
    DEC_ACTION_RUN_SELF = 1u << 5,     /* engine: compute the prompt, then generate */
    DEC_ACTION_CLOSE_ENGINE = 1u << 6, /* engine: answers ENGINE_CLOSED */
    DEC_ACTION_SEND_FAILED = 1u << 7,  /* the request ends here with `code` */
} dec_action;

typedef struct dec_sequence {
    dec_state state;
    uint32_t epoch;
    bool self_prefill;
    bool cancelled;
    bool transfer_open;
    bool engine_open;    /* the engine holds pages for it */
    bool engine_closing; /* CLOSE_ENGINE was asked for */
    bool reopen;         /* STALLED: a newer epoch waits for the old transfer to close */
    uint64_t prefill_ns;
    sl_time_ns deadline; /* FETCHING: of the transfer; STALLED: for a newer epoch; else SL_NEVER */
    sl_code stall_code;  /* STALLED: what the router was told, and is again when it comes back */
    /* Parked: what runs goes on, its tokens wait in the log; then the router must be back.
     * SL_NEVER: not parked. */
    sl_time_ns park_deadline;
} dec_sequence;

/* How long a stalled sequence keeps its pages for a newer epoch. */
#define DEC_STALL_NS (10 * SL_S_NS)

typedef struct dec_outcome {
    uint32_t actions; /* of dec_action */
    sl_code code;     /* for SEND_REFUSED, SEND_FAILED */
} dec_outcome;

/* A new sequence, OPENING; the caller asks the engine to bind its pages. */
void dec_sequence_init(dec_sequence *sequence, uint32_t epoch, bool self_prefill,
                       uint64_t prefill_ns);
/* SL_CONFLICT in outcome.code with actions 0: an ADMIT whose epoch is not newer, or after
 * generation began. */
dec_outcome dec_sequence_handle(dec_sequence *sequence, const dec_event *event, sl_time_ns now);
bool dec_sequence_is_parked(const dec_sequence *sequence);
/* When to send TICK; SL_NEVER = not. */
sl_time_ns dec_sequence_due(const dec_sequence *sequence);
const char *dec_state_name(dec_state state);

#ifdef __cplusplus
}
#endif
#endif
