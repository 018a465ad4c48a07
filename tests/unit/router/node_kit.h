/* A router loop with false nodes around it: the nodes' gRPC servers, the router's front and the
 * HTTP clients share one loop, which the test turns by hand. The nodes do what the test says. */
#ifndef TESTS_UNIT_ROUTER_NODE_KIT_H
#define TESTS_UNIT_ROUTER_NODE_KIT_H

#include "tests/unit/router/api_kit.h"

#include "base/log.h"
#include "base/net.h"
#include "router/front.h"
#include "rpc/rpc.h"

#define KIT_NODES   4
#define KIT_WAIT_NS (20 * SL_S_NS)
#define KIT_ADMITS  64

typedef struct kit kit;

typedef struct kit_admit {
    char request_id[64];
    uint32_t epoch;
    uint32_t token_count;
    uint32_t prompt_count;
    uint32_t first_token, last_token;
    uint64_t seed;
    int32_t max_tokens, priority;
    bool self_prefill, fetch_only, cancelled, moved;
    char fork_of[64];
} kit_admit;

typedef struct kit_node {
    kit *owner;
    char name[32];
    bool decode;
    rpc_server *server;
    clu_member_info info;
    /* decode */
    rpc_server_call *serve;
    kit_admit admits[KIT_ADMITS];
    size_t admit_count;
    size_t cancels;
    size_t attaches;
    uint32_t attach_index, attach_epoch; /* of the last one */
    size_t extends;
    Sluice__V1__Extend extend; /* the last one; its request is admits[0]'s */
    bool grant;                /* answer admissions at once */
    uint64_t sent, taken;
    uint32_t slots_free, pages_free;
    uint32_t pause_ms;    /* it rests for so long */
    uint32_t first_block; /* in its tickets */
    /* prefill */
    rpc_server_call *run;
    char run_id[64];
    uint32_t run_epoch, run_tokens;
    uint32_t run_computed; /* tells this of the next ones */
    bool run_offer;
    size_t runs, runs_cancelled;
    bool finish_runs; /* answer at once that all is done */
} kit_node;

struct kit {
    sl_loop *loop;
    rpc_runtime *runtime;
    sl_metrics *metrics;
    rtr_shared shared;
    rtr_front *front;
    int listen_fd;
    uint16_t port;
    kit_node nodes[KIT_NODES];
    size_t node_count;
    bool stopped;
};

static inline void kit_turn(kit *k)
{
    sl_loop_run_once(k->loop, 5);
}

#define KIT_UNTIL(k, condition)                             \
    do {                                                    \
        sl_time_ns kit_limit_ = sl_now_ns() + KIT_WAIT_NS;  \
        while (!(condition)) {                              \
            if (sl_now_ns() > kit_limit_)                   \
                fail_msg("never became true: " #condition); \
            kit_turn(k);                                    \
        }                                                   \
    } while (0)

/* ---- decode node */

static inline void kit_write(kit_node *n, const Sluice__V1__DecodeMessage *message)
{
    assert_non_null(n->serve);
    sl_status status = rpc_server_call_write(n->serve, &message->base);
    assert_true(sl_is_ok(status));
    n->sent++;
}

static inline Sluice__V1__Load kit_load_of(const kit_node *n)
{
    Sluice__V1__Load load = SLUICE__V1__LOAD__INIT;
    load.slots_total = 64;
    load.slots_free = n->slots_free;
    load.pages_total = 10000;
    load.pages_free = n->pages_free;
    load.pause_ms = n->pause_ms;
    load.rests = n->pause_ms > 0;
    return load;
}

static inline void kit_tell_load(kit_node *n)
{
    Sluice__V1__Load load = kit_load_of(n);
    Sluice__V1__Step step = SLUICE__V1__STEP__INIT;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    step.load = &load;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_STEP;
    message.step = &step;
    kit_write(n, &message);
}

static inline void kit_admitted(kit_node *n, const char *request_id, uint32_t epoch)
{
    Sluice__V1__Load load = kit_load_of(n);
    Sluice__V1__Ticket ticket = SLUICE__V1__TICKET__INIT;
    Sluice__V1__Admitted admitted = SLUICE__V1__ADMITTED__INIT;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    ticket.request_id = (char *)request_id;
    ticket.epoch = epoch;
    ticket.node = n->name;
    ticket.first_block = n->first_block;
    admitted.ticket = &ticket;
    admitted.load = &load;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_ADMITTED;
    message.admitted = &admitted;
    kit_write(n, &message);
}

static inline void kit_refuse(kit_node *n, const char *request_id, uint32_t epoch, sl_code code)
{
    Sluice__V1__Load load = kit_load_of(n);
    Sluice__V1__Failure failure = SLUICE__V1__FAILURE__INIT;
    Sluice__V1__Refused refused = SLUICE__V1__REFUSED__INIT;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    failure.code = (uint32_t)code;
    failure.message = (char *)"said no";
    refused.request_id = (char *)request_id;
    refused.epoch = epoch;
    refused.failure = &failure;
    refused.load = &load;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_REFUSED;
    message.refused = &refused;
    kit_write(n, &message);
}

/* Tokens `first`.. of the last admission: token i is always id 100 + i % 1000, whoever sends it. */
static inline void kit_tokens_of(kit_node *n, size_t admit, uint32_t first, uint32_t count,
                                 Sluice__V1__Finish finish)
{
    uint32_t *ids = sl_alloc(count, sizeof *ids, "kit ids");
    for (uint32_t i = 0; i < count; i++)
        ids[i] = 100 + (first + i) % 1000;
    Sluice__V1__Load load = kit_load_of(n);
    Sluice__V1__TokenRun run = SLUICE__V1__TOKEN_RUN__INIT;
    Sluice__V1__TokenRun *runs[] = {&run};
    Sluice__V1__Step step = SLUICE__V1__STEP__INIT;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    run.request_id = n->admits[admit].request_id;
    run.epoch = n->admits[admit].epoch;
    run.first_index = first;
    run.n_ids = count;
    run.ids = ids;
    run.finish = finish;
    step.n_runs = 1;
    step.runs = runs;
    step.load = &load;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_STEP;
    message.step = &step;
    kit_write(n, &message);
    sl_free(ids);
}

static inline void kit_tokens(kit_node *n, uint32_t first, uint32_t count,
                              Sluice__V1__Finish finish)
{
    assert_true(n->admit_count > 0);
    kit_tokens_of(n, n->admit_count - 1, first, count, finish);
}

static inline void kit_hello(kit_node *n)
{
    Sluice__V1__Load load = kit_load_of(n);
    Sluice__V1__Stamp stamp = SLUICE__V1__STAMP__INIT;
    Sluice__V1__HelloReply hello = SLUICE__V1__HELLO_REPLY__INIT;
    Sluice__V1__DecodeMessage message = SLUICE__V1__DECODE_MESSAGE__INIT;
    stamp.numerics_id = n->info.stamp.numerics_id;
    stamp.model_hash = n->info.stamp.model_hash;
    stamp.weights_version = n->info.stamp.weights_version;
    stamp.cache_format = n->info.stamp.cache_format;
    hello.node = n->name;
    hello.incarnation = n->info.incarnation;
    hello.stamp = &stamp;
    hello.window = 4;
    hello.load = &load;
    hello.context_max = 100000;
    message.body_case = SLUICE__V1__DECODE_MESSAGE__BODY_HELLO;
    message.hello = &hello;
    kit_write(n, &message);
}

static inline void kit_on_admit(kit_node *n, const Sluice__V1__Admit *admit)
{
    assert_true(n->admit_count < KIT_ADMITS);
    kit_admit *a = &n->admits[n->admit_count++];
    snprintf(a->request_id, sizeof a->request_id, "%s", admit->request_id);
    a->epoch = admit->epoch;
    a->token_count = (uint32_t)admit->n_tokens;
    a->prompt_count = admit->prompt_count;
    a->first_token = admit->tokens[0];
    a->last_token = admit->tokens[admit->n_tokens - 1];
    a->seed = admit->sampling->seed;
    a->max_tokens = admit->sampling->max_tokens;
    a->priority = admit->priority;
    a->self_prefill = admit->self_prefill;
    a->fetch_only = admit->fetch_only;
    snprintf(a->fork_of, sizeof a->fork_of, "%s", admit->fork_of);
    a->cancelled = false;
    n->slots_free -= n->slots_free > 0;
    if (n->grant && !admit->self_prefill)
        kit_admitted(n, admit->request_id, admit->epoch);
}

static inline void kit_on_serve_message(void *context, rpc_server_call *call,
                                        const ProtobufCMessage *base)
{
    kit_node *n = context;
    const Sluice__V1__RouterMessage *m = (const Sluice__V1__RouterMessage *)base;
    switch (m->body_case) {
    case SLUICE__V1__ROUTER_MESSAGE__BODY_HELLO:
        assert_string_equal(m->hello->router, "router-test");
        kit_hello(n);
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_ADMIT:
        kit_on_admit(n, m->admit);
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_CANCEL:
        n->cancels++;
        for (size_t i = 0; i < n->admit_count; i++)
            if (strcmp(n->admits[i].request_id, m->cancel->request_id) == 0)
                n->admits[i].cancelled = true, n->admits[i].moved = m->cancel->moved;
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_ATTACH:
        n->attaches++;
        n->attach_index = m->attach->next_index;
        n->attach_epoch = m->attach->epoch;
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_EXTEND:
        assert_string_equal(m->extend->request_id, n->admits[0].request_id);
        n->extends++;
        n->extend = *m->extend;
        n->extend.request_id = n->admits[0].request_id;
        break;
    case SLUICE__V1__ROUTER_MESSAGE__BODY_CREDIT:
        assert_true(m->credit->messages_taken <= n->sent);
        n->taken = m->credit->messages_taken;
        break;
    default:
        fail_msg("empty message");
    }
}

static inline void kit_on_serve_closed(void *context, rpc_server_call *call, bool cancelled)
{
    kit_node *n = context;
    if (n->serve == call)
        n->serve = NULL;
}

static inline void kit_on_serve(void *context, rpc_server_call *call,
                                const ProtobufCMessage *request)
{
    static const rpc_server_call_events EVENTS = {.on_message = kit_on_serve_message,
                                                  .on_closed = kit_on_serve_closed};
    kit_node *n = context;
    n->serve = call;
    n->sent = n->taken = 0;
    rpc_server_call_set(call, &EVENTS, n);
}

#endif
