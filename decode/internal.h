/* What the files of decode/ share: the slot table and the routers' streams. Not for other folders.
 */
#ifndef DECODE_INTERNAL_H
#define DECODE_INTERNAL_H

#include "decode/compiler.h"
#include "decode/constraint.h"
#include "decode/moves.h"
#include "decode/sequence.h"
#include "decode/service.h"
#include "proto/sluice/v1/decode.pb-c.h"

#define DEC_STREAMS_MAX 64u
#define DEC_ROUTER_MAX  128u
/* Messages a router has not taken yet; beyond, tokens wait in the slots and later messages carry
 * more of them. */
#define DEC_WINDOW_MESSAGES 64u

typedef struct dec_token {
    uint32_t id;
    float logprob;
    uint32_t top_count;
    uint32_t weights_version; /* that drew it */
    eng_logprob *top;         /* into the slot's pool; NULL without logprobs */
} dec_token;

/* Whose requests they are: one loop of one router process. */
typedef struct dec_owner {
    char router[DEC_ROUTER_MAX];
    uint64_t incarnation;
    uint32_t loop;
} dec_owner;

typedef struct dec_stream {
    dec_service *service;
    rpc_server_call *call;
    dec_owner owner;
    bool greeted;
    bool left;     /* the router ended it in an orderly way: it does not come back */
    bool dirty;    /* a slot of it has something to say */
    bool load_due; /* a slot became free since its last message: the router may wait for that */
    uint64_t messages_sent;
    uint64_t messages_taken;
} dec_stream;

typedef struct dec_slot {
    bool used;
    char request_id[DEC_REQUEST_ID_MAX];
    dec_owner owner;
    dec_stream
        *stream; /* NULL: it broke (parked: its owner may come back), or the router is gone */
    dec_sequence core;
    dec_job *job;
    /* the transfer */
    kvt_recv *recv;
    kvt_nonce nonce;
    uint16_t
        *groups_verified;   /* [block_count]: how many groups of each block have arrived verified */
    uint32_t prompt_blocks; /* blocks that the prefill fills */
    uint32_t first_block;   /* of the open transfer */
    bool keeping;           /* KEEP was asked for */
    uint32_t token_count;   /* tokens that the prefill covers */
    sl_time_ns admitted_at;
    /* the token log: what was generated here, kept until sent */
    dec_token *log;
    eng_logprob *log_top; /* [log_capacity][top_logprobs] or NULL */
    uint32_t log_count;
    uint32_t log_capacity;
    uint32_t log_sent;
    uint32_t rows_sent;   /* of the prompt's rows, before the log */
    uint32_t first_index; /* of log[0] among all generated tokens of the request */
    Sluice__V1__Finish finish;
    bool finish_sent;
    sl_err err; /* of finish FAILED, or of a refusal */
} dec_slot;

struct dec_service {
    dec_service_options options;
    const mdl_shape *shape;
    const eng_cache_layout *layout;
    kvt_piece_slice slices[KVT_GROUPS_MAX];
    dec_batch *batch;
    dec_constraints *constraints;
    dec_compiler *compiler; /* NULL where masks is */
    mdl_masks *masks;       /* NULL: the model has no tokenizer, so nothing can be constrained */
    eng_worker_client *client;
    sl_watch *engine_watch;
    sl_timer *timer;
    dec_slot slots[DEC_SEQUENCES_MAX];
    uint32_t live_count;
    dec_moves moves;
    dec_stream *streams[DEC_STREAMS_MAX];
    bool draining, fetches_only;
    bool held;
    sl_time_ns pause_until; /* 0: none */
    bool rests;
    sl_metric *generated, *admitted, *refused, *parked;
    sl_metric *transfer_seconds;
};

/* Runs one event through the slot's state machine and carries its actions out. */
void dec_slot_event(dec_service *service, dec_slot *slot, const dec_event *event);
/* NULL: none here. */
dec_slot *dec_slot_find(dec_service *service, const char *request_id);
/* Tells the router what a FETCHING slot waits for. */
void dec_send_ticket(dec_service *service, dec_slot *slot);
/* As when the client had gone. */
void dec_slot_cancel(dec_service *service, dec_slot *slot);
/* A parked slot gets the stream of its owner, which has all tokens before next_index and all of the
 * prompt's rows before next_row. SL_INVALID: tokens that the slot has not got. */
SL_MUST_USE sl_status dec_slot_attach(dec_service *service, dec_slot *slot, dec_stream *stream,
                                      uint32_t next_index, uint32_t next_row);
/* Frees a slot whose state is DONE once nothing is left to send. */
void dec_slot_settle(dec_service *service, dec_slot *slot);
void dec_service_arm_timer(dec_service *service);

/* stream.c */
extern const rpc_server_call_events DEC_STREAM_EVENTS;
void dec_stream_on_call(void *context, rpc_server_call *call, const ProtobufCMessage *request);
/* Once a router has greeted; again when the stamp is another. */
void dec_stream_send_hello(dec_stream *stream);
void dec_stream_send_admitted(dec_slot *slot, const Sluice__V1__Ticket *ticket);
void dec_stream_send_refused(dec_stream *stream, const char *request_id, uint32_t epoch,
                             const sl_err *err);
bool dec_owner_equal(const dec_owner *a, const dec_owner *b);
/* Sends what the slots of this stream have, as far as the router's window allows. */
void dec_stream_flush(dec_stream *stream);

/* Of routing, masks and prompt rows in one message; with the window this stays within what a call
 * may queue. */
#define DEC_MESSAGE_HANDOUT_BYTES (64u << 10)

/* admit.c: checks an Admit, makes the slot and its job. */
void dec_admit(dec_service *service, dec_stream *stream, const Sluice__V1__Admit *admit);
/* dec_compiler_fn of the service: the admission comes again, or is refused. */
void dec_admit_compiled(void *context, void *stream, const Sluice__V1__Admit *admit,
                        sl_status status, const sl_err *err);

#endif
