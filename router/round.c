/* See round.h. Owns the calls of a round, and the channels that they go by. */
#include "router/round.h"

#include "base/alloc.h"
#include "base/assert.h"

typedef struct question {
    rtr_round *round;
    rtr_round_reply_fn fn;
    void *of;
    rpc_channel *channel; /* shares the connection that there is to the member */
    rpc_call *call;       /* NULL: it has ended */
} question;

struct rtr_round {
    rtr_round_options options;
    question *questions; /* [count] of the round under way */
    size_t room, count, open;
    sl_timer *end; /* a round ends in a turn of its own */
};

static void forget(rtr_round *round)
{
    for (size_t i = 0; i < round->count; i++) {
        rpc_call_drop(round->questions[i].call);
        rpc_channel_destroy(round->questions[i].channel);
    }
    sl_free(round->questions);
    round->questions = NULL;
    round->count = round->open = 0;
}

static void on_end(void *context, sl_time_ns now)
{
    rtr_round *round = context;
    forget(round);
    round->options.on_end(round->options.context, now);
}

rtr_round *rtr_round_create(const rtr_round_options *options)
{
    rtr_round *round = sl_alloc(1, sizeof *round, "router round");
    round->options = *options;
    round->end = sl_timer_create(rpc_runtime_loop(options->runtime), on_end, round);
    return round;
}

void rtr_round_destroy(rtr_round *round)
{
    if (!round)
        return;
    forget(round);
    sl_timer_destroy(round->end);
    sl_free(round);
}

bool rtr_round_is_open(const rtr_round *round)
{
    return round->questions != NULL;
}

void rtr_round_begin(rtr_round *round, size_t members)
{
    sl_assert(!round->questions);
    round->room = members < RTR_NODES_MAX ? members : RTR_NODES_MAX;
    /* One more, so that a round of none is a round too. */
    round->questions = sl_alloc(round->room + 1, sizeof *round->questions, "router round");
}

bool rtr_round_is_full(const rtr_round *round)
{
    return round->count == round->room;
}

static void on_reply(void *context, const ProtobufCMessage *reply, const sl_err *err)
{
    question *asked = context;
    rtr_round *round = asked->round;
    asked->call = NULL;
    asked->fn(round->options.context, asked->of, reply);
    if (--round->open == 0)
        sl_timer_set(round->end, sl_now_ns());
}

void rtr_round_ask(rtr_round *round, const clu_view_member *member, const rpc_method *method,
                   const ProtobufCMessage *request, rtr_round_reply_fn fn, void *of)
{
    rpc_channel_options channel = {.tls = round->options.tls};
    rpc_call_options options = {.deadline = sl_now_ns() + round->options.timeout_ns};
    sl_err err;
    sl_assert(!rtr_round_is_full(round));
    question *asked = &round->questions[round->count++];
    *asked = (question){.round = round, .fn = fn, .of = of};
    sl_status status = rpc_channel_create(round->options.runtime, member->info.control, &channel,
                                          &asked->channel, &err);
    if (sl_is_ok(status))
        status = rpc_unary(asked->channel, method, request, &options, on_reply, asked, &asked->call,
                           &err);
    if (sl_is_ok(status)) {
        round->open++;
    } else {
        asked->call = NULL;
        fn(round->options.context, of, NULL);
    }
}

void rtr_round_asked(rtr_round *round)
{
    if (round->open == 0)
        sl_timer_set(round->end, sl_now_ns());
}

void rtr_round_drop(rtr_round *round)
{
    forget(round);
    sl_timer_set(round->end, SL_NEVER);
}
