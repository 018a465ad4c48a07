/* A round of questions: members are asked at once, each by one unary call, and the round is over
 * when all have answered or could not. At most RTR_NODES_MAX questions.
 *
 * Begin, ask, then say that no more is asked. Thread: the runtime's loop. */
#ifndef ROUTER_ROUND_H
#define ROUTER_ROUND_H

#include "cluster/view.h"
#include "router/limits.h"
#include "rpc/client.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct rtr_round rtr_round;

/* of: what the question was given. reply: borrowed; NULL: the member cannot be asked (then from
 * inside rtr_round_ask), or has not answered in time. */
typedef void (*rtr_round_reply_fn)(void *context, void *of, const ProtobufCMessage *reply);

typedef struct rtr_round_options {
    rpc_runtime *runtime;
    const rpc_tls *tls; /* NULL: plain text */
    uint64_t timeout_ns;
    void (*on_end)(void *context, sl_time_ns now); /* in a turn of its own: the next may begin */
    void *context;
} rtr_round_options;

rtr_round *rtr_round_create(const rtr_round_options *options);
/* Before the runtime. NULL is fine. */
void rtr_round_destroy(rtr_round *round);
bool rtr_round_is_open(const rtr_round *round);
/* None is open. members: how many there may be to ask. */
void rtr_round_begin(rtr_round *round, size_t members);
bool rtr_round_is_full(const rtr_round *round);
/* It is not full. request: borrowed for the call. */
void rtr_round_ask(rtr_round *round, const clu_view_member *member, const rpc_method *method,
                   const ProtobufCMessage *request, rtr_round_reply_fn fn, void *of);
void rtr_round_asked(rtr_round *round);
/* Nothing more comes of the one that is open. */
void rtr_round_drop(rtr_round *round);

#ifdef __cplusplus
}
#endif
#endif
